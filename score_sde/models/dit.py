"""The diffusion transformer of Peebles and Xie 2023: images as patches, blocks with adaptive layer normalization."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from score_sde.errors import UserError, lookup
from score_sde.models.blocks import count_heads
from score_sde.models.embedding import LabelEmbedding, check_labels, check_rates, positional_embedding
from score_sde.models.layers import at_least_float32

SIZES = {  # width, depth, heads: Table 1
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "XL": (1152, 28, 16),
}
FREQUENCIES = 256  # of the noise level's embedding
small = nn.initializers.normal(0.02)
xavier = nn.initializers.xavier_uniform()


def modulate(x, shift, scale):
    """Normalizes tokens (batch, tokens, width) and gives them a mean and scale an example, (batch, width) each."""
    normal = nn.LayerNorm(epsilon=1e-6, use_scale=False, use_bias=False, dtype=jnp.promote_types(x.dtype, jnp.float32))
    return normal(x).astype(x.dtype) * (1 + scale[:, None]) + shift[:, None]


def from_condition(told, count, dtype, name):
    """`count` vectors of the tokens' width from what the network is told; zero at first (adaLN-Zero)."""
    width = told.shape[-1]
    zeros = nn.initializers.zeros
    vectors = nn.Dense(count * width, dtype=dtype, kernel_init=zeros, name=name)(nn.swish(told))
    return jnp.split(vectors, count, axis=-1)


class Block(nn.Module):
    """A transformer block whose two branches are modulated, and gated, by what the network is told (Section 3.2)."""

    heads: int
    dropout: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, tokens, told, train):
        """tokens (batch, tokens, width), told (batch, width) -> tokens."""
        batch, count, width = tokens.shape
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = from_condition(told, 6, self.dtype, "modulation")
        hidden = modulate(tokens, shift, scale)
        hidden = nn.Dense(3 * width, dtype=self.dtype, kernel_init=xavier, name="qkv")(hidden)
        query, key, value = jnp.unstack(hidden.reshape(batch, count, 3, self.heads, width // self.heads), axis=2)
        hidden = jax.nn.dot_product_attention(query, key, value).reshape(tokens.shape)
        hidden = nn.Dense(width, dtype=self.dtype, kernel_init=xavier, name="out")(hidden)
        tokens = tokens + gate[:, None] * hidden
        hidden = modulate(tokens, shift_mlp, scale_mlp)
        hidden = nn.Dense(4 * width, dtype=self.dtype, kernel_init=xavier, name="mlp_0")(hidden)
        hidden = nn.Dropout(self.dropout, deterministic=not train)(nn.gelu(hidden, approximate=True))
        hidden = nn.Dense(width, dtype=self.dtype, kernel_init=xavier, name="mlp_1")(hidden)
        return tokens + gate_mlp[:, None] * hidden


class DiT(nn.Module):
    """(batch, height, width, channels) images and (batch,) noise levels to an output of the images' shape.

    The blocks are scanned, so that one is compiled for all of them.

    Attributes:
      size: "S", "B", "L" or "XL", or "" for width, depth and heads as given.
      patch: height and width of a patch; the papers' are 2, 4 and 8.
      width, depth, heads: of the transformer, where size is "".
      dropout: inside the blocks' perceptrons; the paper has none.
      outputs: how many outputs of the images' shape, along channels: 2 for a learned variance.
      num_classes: of labels, 0 for none; label_dropout: how often they are hidden in training.
      remat: recompute each block's activations in the backward pass, for memory.
      dtype: of the computation, "bfloat16" for speed; None follows the input.
    """

    size: str = ""
    patch: int = 2
    width: int = 384
    depth: int = 12
    heads: int = 6
    dropout: float = 0.0
    outputs: int = 1
    num_classes: int = 0
    label_dropout: float = 0.0
    remat: bool = False
    dtype: str | None = None

    @nn.compact
    def __call__(self, x, noise_level, labels=None, train=False):
        """The raw output; `train` turns dropout on, of activations and labels, which takes a "dropout" key.

        Raises:
          UserError: the patches don't divide the image, the heads don't divide the width, the size is unknown, or there
            are labels and no classes.
        """
        width, depth, heads = self._sizes(x, labels)
        dtype = jnp.dtype(self.dtype) if self.dtype else None
        tokens = nn.Dense(width, dtype=dtype, kernel_init=xavier, name="patches")(to_patches(x, self.patch))
        tokens = (
            tokens + positions(x.shape[1] // self.patch, x.shape[2] // self.patch, width).astype(tokens.dtype)[None]
        )
        told = self._told(noise_level, labels, width, train)

        block = nn.remat(Block, static_argnums=(3,), prevent_cse=False) if self.remat else Block

        def step(module, tokens, told):
            return module(tokens, told, train), None

        scanned = nn.scan(
            step,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=nn.broadcast,
            length=depth,
        )
        tokens, _ = scanned(block(heads, self.dropout, dtype, name="blocks"), tokens, told)

        shift, scale = from_condition(told, 2, dtype, "modulation")
        zeros = nn.initializers.zeros
        channels = self.outputs * x.shape[-1]
        tokens = modulate(tokens, shift, scale)
        tokens = nn.Dense(self.patch**2 * channels, dtype=dtype, kernel_init=zeros, name="out")(tokens)
        return from_patches(at_least_float32(tokens), self.patch, (*x.shape[1:3], channels))

    def _told(self, noise_level, labels, width, train):
        """(batch, width): the noise level and the class, in float32."""
        told = positional_embedding(noise_level, FREQUENCIES, endpoint=False, cosine_first=True)
        told = nn.swish(nn.Dense(width, kernel_init=small, name="level_0")(told))
        told = nn.Dense(width, kernel_init=small, name="level_1")(told)
        if not self.num_classes:
            return told
        labels = jnp.full(len(told), -1) if labels is None else labels
        return told + LabelEmbedding(self.num_classes, width, self.label_dropout, name="label")(labels, train)

    def _sizes(self, x, labels):
        where = "set --config.model.kwargs"
        if x.shape[1] % self.patch or x.shape[2] % self.patch:
            raise UserError(
                f"dit: patches of {self.patch} don't divide an image of {x.shape[1]}x{x.shape[2]} ({where}.patch)"
            )
        given = (self.width, self.depth, self.heads)
        width, depth, heads = lookup("size", SIZES | {"": given}, self.size, "size")
        count_heads(width, heads, None)
        if width % 4:
            raise UserError(f"dit: positions need a width that is a multiple of 4, got {width} ({where}.width)")
        check_rates("dit", self)
        check_labels("dit", self.num_classes, labels)
        return width, depth, heads


def to_patches(x: jax.Array, patch: int) -> jax.Array:
    """(batch, height, width, channels) -> (batch, tokens, patch^2 channels), row by row."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // patch, patch, width // patch, patch, channels).swapaxes(2, 3)
    return x.reshape(batch, -1, patch**2 * channels)


def from_patches(tokens: jax.Array, patch: int, shape: tuple[int, int, int]) -> jax.Array:
    """The inverse of `to_patches`, to images of this shape (height, width, channels)."""
    height, width, channels = shape
    x = tokens.reshape(-1, height // patch, width // patch, patch, patch, channels).swapaxes(2, 3)
    return x.reshape(-1, height, width, channels)


def positions(rows: int, columns: int, width: int) -> jax.Array:
    """Fixed embeddings of a grid's positions, (rows columns, width): half of sines and cosines of each coordinate."""

    def of(coordinate):
        frequencies = 10_000.0 ** -(np.arange(width // 4) / (width // 4))
        angles = coordinate.reshape(-1, 1) * frequencies[None]
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    return jnp.asarray(np.concatenate([of(column), of(row)], axis=1))
