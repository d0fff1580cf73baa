"""Diffusion transformer (Peebles and Xie 2023): image patches, and blocks with adaptive normalization.

With `bottleneck`, `normalization="rms"`, `swiglu`, `normalize_qk` and `rotary` it is JiT (Li and He 2025, "Back to
Basics") without its class tokens.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from score_sde.errors import UserError, lookup
from score_sde.models.blocks import count_heads
from score_sde.models.embedding import (
    LabelEmbedding,
    NextLevelEmbedding,
    check_labels,
    check_rates,
    check_two_times,
    positional_embedding,
)
from score_sde.models.layers import Dropout, at_least_float32, compute_dtype

SIZES = {  # width, depth, heads: Table 1
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "XL": (1152, 28, 16),
}
NUM_FREQUENCIES = 256  # sines and cosines of the noise level
small = nn.initializers.normal(0.02)
xavier = nn.initializers.xavier_uniform()


def modulate(x, shift, scale, normalization, name):
    """Return normalized tokens (batch, tokens, width) with a shift and a scale per example, (batch, width) each."""
    return normalize(x, normalization, name) * (1 + scale[:, None]) + shift[:, None]


NORMALIZATIONS: dict[str, Callable[..., Any]] = {
    "layer": partial(nn.LayerNorm, use_scale=False, use_bias=False),
    "rms": nn.RMSNorm,
}


def normalize(x, normalization, name):
    """Return x normalized along the last axis in float32: "layer" to mean 0 and variance 1, "rms" to mean square 1.

    "rms" also multiplies by a trained scale (Zhang and Sennrich 2019).
    """
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    return NORMALIZATIONS[normalization](epsilon=1e-6, dtype=dtype, name=name)(x).astype(x.dtype)


def adaln_params(conditioning, count, dtype, name):
    """Return `count` modulation vectors (batch, width) of the conditioning, initially zero (adaLN-Zero)."""
    width = conditioning.shape[-1]
    zeros = nn.initializers.zeros
    vectors = nn.Dense(count * width, dtype=dtype, kernel_init=zeros, name=name)(nn.swish(conditioning))
    return jnp.split(vectors, count, axis=-1)


class Block(nn.Module):
    """Transformer block whose two branches are modulated and gated by the conditioning (Section 3.2)."""

    heads: int
    dropout: float = 0.0
    normalization: str = "layer"
    swiglu: bool = False
    normalize_qk: bool = False
    rotary: tuple[int, int] | None = None  # rows and columns of the patches, or None for no rotation
    dtype: Any = None

    @nn.compact
    def __call__(self, tokens, conditioning, train):
        """Return tokens (batch, tokens, width), given tokens and the conditioning (batch, width)."""
        batch, count, width = tokens.shape
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = adaln_params(conditioning, 6, self.dtype, "modulation")
        hidden = modulate(tokens, shift, scale, self.normalization, "norm_attention")
        hidden = nn.Dense(3 * width, dtype=self.dtype, kernel_init=xavier, name="qkv")(hidden)
        query, key, value = jnp.unstack(hidden.reshape(batch, count, 3, self.heads, width // self.heads), axis=2)
        if self.normalize_qk:
            query, key = normalize(query, "rms", "norm_query"), normalize(key, "rms", "norm_key")
        if self.rotary:
            query, key = rotate(query, *self.rotary), rotate(key, *self.rotary)
        hidden = jax.nn.dot_product_attention(query, key, value).reshape(tokens.shape)
        hidden = nn.Dense(width, dtype=self.dtype, kernel_init=xavier, name="out")(hidden)
        tokens = tokens + gate[:, None] * hidden
        hidden = modulate(tokens, shift_mlp, scale_mlp, self.normalization, "norm_mlp")
        if self.swiglu:  # Shazeer 2020; the width gives it as many parameters as the MLP with GELU
            hidden = nn.Dense(2 * (8 * width // 3), dtype=self.dtype, kernel_init=xavier, name="mlp_0")(hidden)
            gates, hidden = jnp.split(hidden, 2, axis=-1)
            hidden = nn.swish(gates) * hidden
        else:
            hidden = nn.Dense(4 * width, dtype=self.dtype, kernel_init=xavier, name="mlp_0")(hidden)
            hidden = nn.gelu(hidden, approximate=True)
        hidden = Dropout(self.dropout)(hidden, train)
        hidden = nn.Dense(width, dtype=self.dtype, kernel_init=xavier, name="mlp_1")(hidden)
        return tokens + gate_mlp[:, None] * hidden


class DiT(nn.Module):
    """Diffusion transformer.

    The blocks are scanned, so that all of them share one compilation.

    Attributes:
      size: "S", "B", "L" or "XL" of the paper's Table 1, or "" for `width`, `depth` and `heads`.
      patch: Height and width of a patch in pixels; 2, 4 or 8 in the paper.
      width: Width of the tokens.
      depth: Number of blocks.
      heads: Number of attention heads.
      dropout: Dropout rate in the blocks' MLPs; 0 in the paper.
      bottleneck: Number of features between a patch and its embedding, at most patch^2 times channels; 0 for no
        bottleneck. JiT-B and JiT-L have 128.
      normalization: "layer" or "rms"; JiT has "rms".
      swiglu: Whether the MLPs use SwiGLU instead of GELU, as in JiT.
      normalize_qk: Whether queries and keys are normalized to mean square 1, as in JiT.
      rotary: Whether queries and keys are rotated by their positions, in addition to the embeddings of the positions,
        as in JiT.
      outputs: Number of outputs of the images' shape, stacked along channels; 2 for a learned variance.
      num_classes: Number of classes; 0 for an unconditional network.
      label_dropout: Probability that a label is replaced by the null label in training.
      two_times: Whether the network takes a second time, as a flow map does.
      remat: Whether each block's activations are recomputed in the backward pass, which saves memory.
      dtype: Dtype of the computation, "bfloat16" for speed; None follows the input.
    """

    size: str = ""
    patch: int = 2
    width: int = 384
    depth: int = 12
    heads: int = 6
    dropout: float = 0.0
    bottleneck: int = 0
    normalization: str = "layer"
    swiglu: bool = False
    normalize_qk: bool = False
    rotary: bool = False
    outputs: int = 1
    num_classes: int = 0
    label_dropout: float = 0.0
    two_times: bool = False
    remat: bool = False
    dtype: str | None = None

    @nn.compact
    def __call__(self, x, noise_level, labels=None, train=False, next_level=None):
        """Return the raw output.

        Args:
          x: Images, (batch, height, width, channels).
          noise_level: Noise levels, (batch,).
          labels: Class labels, (batch,), -1 for the null label; None for null labels.
          train: Whether dropout of activations and labels is active, which takes a "dropout" key.
          next_level: Noise levels of the second time, (batch,); None for those of the first.

        Raises:
          UserError: if the patches don't divide the image, the heads don't divide the width, an option is unknown or
            out of range, or an unconditional network gets labels.
        """
        width, depth, heads = self._sizes(x, labels)
        check_two_times("dit", self.two_times, next_level)
        dtype = compute_dtype(self.dtype)
        rows, columns = x.shape[1] // self.patch, x.shape[2] // self.patch
        tokens = to_patches(x, self.patch)
        if self.bottleneck:
            tokens = nn.Dense(self.bottleneck, use_bias=False, dtype=dtype, kernel_init=xavier, name="bottleneck")(
                tokens
            )
        tokens = nn.Dense(width, dtype=dtype, kernel_init=xavier, name="patches")(tokens)
        tokens = tokens + positions(rows, columns, width).astype(tokens.dtype)[None]
        conditioning = self._conditioning(noise_level, labels, width, train)
        if self.two_times:
            later = self._level_features(noise_level if next_level is None else next_level)
            conditioning = conditioning + NextLevelEmbedding(width, name="next")(later)

        block = nn.remat(Block, static_argnums=(3,), prevent_cse=False) if self.remat else Block

        def step(module, tokens, conditioning):
            return module(tokens, conditioning, train), None

        scanned = nn.scan(
            step,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=nn.broadcast,
            length=depth,
        )
        options = (self.normalization, self.swiglu, self.normalize_qk, (rows, columns) if self.rotary else None)
        tokens, _ = scanned(block(heads, self.dropout, *options, dtype, name="blocks"), tokens, conditioning)

        shift, scale = adaln_params(conditioning, 2, dtype, "modulation")
        zeros = nn.initializers.zeros
        channels = self.outputs * x.shape[-1]
        tokens = modulate(tokens, shift, scale, self.normalization, "norm")
        tokens = nn.Dense(self.patch**2 * channels, dtype=dtype, kernel_init=zeros, name="out")(tokens)
        return from_patches(at_least_float32(tokens), self.patch, (*x.shape[1:3], channels))

    def _conditioning(self, noise_level, labels, width, train):
        """Return the embedding of noise level and class in float32, (batch, width)."""
        conditioning = self._level_features(noise_level)
        conditioning = nn.swish(nn.Dense(width, kernel_init=small, name="level_0")(conditioning))
        conditioning = nn.Dense(width, kernel_init=small, name="level_1")(conditioning)
        if not self.num_classes:
            return conditioning
        labels = jnp.full(len(conditioning), -1) if labels is None else labels
        return conditioning + LabelEmbedding(self.num_classes, width, self.label_dropout, name="label")(labels, train)

    def _level_features(self, noise_level):
        return positional_embedding(noise_level, NUM_FREQUENCIES, endpoint=False, cosine_first=True)

    def _sizes(self, x, labels):
        """Return (width, depth, heads), or raise UserError if the options don't fit each other or x."""
        if x.shape[1] % self.patch or x.shape[2] % self.patch:
            raise UserError(f"dit: patches of {self.patch} don't divide an image of {x.shape[1]}x{x.shape[2]}", "patch")
        given = (self.width, self.depth, self.heads)
        width, depth, heads = lookup("size", SIZES | {"": given}, self.size, "size")
        count_heads(width, heads, None)
        if width % 4:
            raise UserError(f"dit: expected a width that is a multiple of 4, got {width}", "width")
        if self.rotary and width // heads % 4:
            raise UserError(f"dit: rotary: expected a multiple of 4 for width / heads, got {width} / {heads}", "width")
        lookup("normalization", NORMALIZATIONS, self.normalization, "normalization")
        features = self.patch**2 * x.shape[-1]
        if not 0 <= self.bottleneck <= features:
            raise UserError(
                f"dit: expected 0 <= bottleneck <= {features}, patch^2 times channels, got {self.bottleneck}",
                "bottleneck",
            )
        check_rates("dit", self)
        check_labels("dit", self.num_classes, labels)
        return width, depth, heads


def to_patches(x: jax.Array, patch: int) -> jax.Array:
    """Split images (batch, height, width, channels) into patches (batch, tokens, patch^2 channels), row by row."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // patch, patch, width // patch, patch, channels).swapaxes(2, 3)
    return x.reshape(batch, -1, patch**2 * channels)


def from_patches(tokens: jax.Array, patch: int, shape: tuple[int, int, int]) -> jax.Array:
    """Join patches into images of a shape (height, width, channels), the inverse of `to_patches`."""
    height, width, channels = shape
    x = tokens.reshape(-1, height // patch, width // patch, patch, patch, channels).swapaxes(2, 3)
    return x.reshape(-1, height, width, channels)


def positions(rows: int, columns: int, width: int) -> jax.Array:
    """Return fixed embeddings of grid positions, (rows columns, width).

    Half of the features are sines and cosines of the column, the other half of the row.
    """
    encoded = [f(angles) for angles in position_angles(rows, columns, width // 4) for f in (np.sin, np.cos)]
    return jnp.asarray(np.concatenate(encoded, axis=1))


def rotate(x: jax.Array, rows: int, columns: int) -> jax.Array:
    """Rotate pairs of features by angles proportional to the column and the row (Su et al. 2021, in two dimensions).

    The product of a query and a key then depends only on the difference of their positions.

    Args:
      x: Queries or keys, (batch, rows columns, heads, features), with a multiple of 4 features.
      rows: Rows of patches.
      columns: Columns of patches.
    """
    angles = np.concatenate(position_angles(rows, columns, x.shape[-1] // 4), axis=1)[None, :, None]
    cos, sin = jnp.asarray(np.cos(angles), x.dtype), jnp.asarray(np.sin(angles), x.dtype)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([cos * first - sin * second, sin * first + cos * second], axis=-1)


def position_angles(rows: int, columns: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the column and the row of each patch times `count` frequencies, (rows columns, count) each."""
    frequencies = 10_000.0 ** -(np.arange(count) / count)
    row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    return column.reshape(-1, 1) * frequencies, row.reshape(-1, 1) * frequencies
