"""Magnitude-preserving U-Net of EDM2 (Karras et al. 2024, configuration G).

"Analyzing and Improving the Training Dynamics of Diffusion Models": the network has neither normalization layers nor
biases, because each layer preserves the magnitude of its input.
"""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from score_sde.models.blocks import count_heads
from score_sde.models.convolution import convolve
from score_sde.models.embedding import check_labels, check_rates, is_unknown
from score_sde.models.layers import Dropout, at_least_float32, compute_dtype
from score_sde.models.resampling import downsample, upsample
from score_sde.models.unet import check_levels

CLIP = 256.0  # bound of activations, so that bfloat16 and float16 don't overflow
KERNEL = "magnitude_preserving"  # name of the weights that `models.constraints` keeps normalized


def normalize(x: jax.Array, axes: int | Sequence[int], epsilon: float = 1e-4) -> jax.Array:
    """Return x over its root mean square along axes."""
    square = jnp.mean(at_least_float32(x) ** 2, axis=axes, keepdims=True)
    root = jnp.where(
        square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0
    )  # has gradient 0 at 0 instead of NaN
    return x / (epsilon + root).astype(x.dtype)


def silu(x: jax.Array) -> jax.Array:
    """Return SiLU(x) over 0.596, its root mean square for normal x."""
    return nn.silu(x) / 0.596


def mix(a: jax.Array, b: jax.Array, t: float) -> jax.Array:
    """Return (1 - t) a + t b, scaled to preserve the magnitude of uncorrelated a and b."""
    return ((1 - t) * a + t * b) / math.sqrt((1 - t) ** 2 + t**2)


def concatenate(a: jax.Array, b: jax.Array, t: float) -> jax.Array:
    """Concatenate channels of a and b, with contributions (1 - t) : t for any numbers of channels."""
    scale = math.sqrt((a.shape[-1] + b.shape[-1]) / ((1 - t) ** 2 + t**2))
    return jnp.concatenate(
        [(scale * (1 - t) / math.sqrt(a.shape[-1])) * a, (scale * t / math.sqrt(b.shape[-1])) * b], axis=-1
    )


class Layer(nn.Module):
    """Convolution without bias, or a dense layer if size is 0, with weights of norm 1 per output.

    Training also keeps the parameters themselves at unit root mean square; see `models.constraints`.
    """

    features: int
    size: int = 3
    dtype: Any = None

    @nn.compact
    def __call__(self, x, gain=1.0):
        """Return the layer's output for x (batch, ..., in), times `gain`."""
        shape = (self.size,) * 2 * bool(self.size) + (x.shape[-1], self.features)
        kernel = self.param(KERNEL, nn.initializers.normal(1.0), shape)
        kernel = normalize(kernel, range(kernel.ndim - 1)) * (gain / math.sqrt(math.prod(shape[:-1])))
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
        if self.size <= 1:
            return x @ kernel.reshape(kernel.shape[-2:])
        return convolve(x, kernel)


class FourierFeatures(nn.Module):
    """Random Fourier features sqrt(2) cos(2 pi (f c + phi)) with fixed normal f and uniform phi."""

    features: int

    @nn.compact
    def __call__(self, noise_level):
        """Return features (batch, features) of noise levels (batch,)."""
        frequencies = self.param("frequencies", nn.initializers.normal(1.0), (self.features,))
        phases = self.param("phases", nn.initializers.uniform(1.0), (self.features,))
        angles = noise_level[:, None] * frequencies[None] + phases[None]
        return math.sqrt(2) * jnp.cos(2 * jnp.pi * jax.lax.stop_gradient(angles))


class Block(nn.Module):
    """Residual block; in the encoder it also normalizes its input over channels."""

    features: int
    encoder: bool
    resample: str = "none"
    attention: bool = False
    head_channels: int = 64
    dropout: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, x, embedding, train):
        """Return (batch, height', width', features).

        Args:
          x: Activations, (batch, height, width, channels).
          embedding: Embedding of the noise level and class, (batch, n).
          train: Whether dropout is active, which takes a "dropout" key.
        """
        x = {"none": lambda x: x, "down": downsample, "up": upsample}[self.resample](x)
        project = x.shape[-1] != self.features
        if self.encoder:
            x = Layer(self.features, 1, self.dtype, name="shortcut")(x) if project else x
            x = normalize(x, -1)
        hidden = Layer(self.features, dtype=self.dtype, name="conv_0")(silu(x))
        gain = self.param("gain", nn.initializers.zeros, ())
        factor = Layer(self.features, 0, name="embedding")(embedding, gain) + 1
        hidden = silu(hidden * factor[:, None, None, :].astype(hidden.dtype))
        hidden = Dropout(self.dropout)(hidden, train)
        hidden = Layer(self.features, dtype=self.dtype, name="conv_1")(hidden)
        if not self.encoder and project:
            x = Layer(self.features, 1, self.dtype, name="shortcut")(x)
        x = mix(x, hidden, 0.3)
        x = mix(x, self._attend(x), 0.3) if self.attention else x
        return jnp.clip(x, -CLIP, CLIP)

    def _attend(self, x):
        batch, height, width, channels = x.shape
        heads = count_heads(channels, None, self.head_channels)
        query, key, value = (
            normalize(
                Layer(channels, 1, self.dtype, name=name)(x).reshape(batch, height * width, heads, channels // heads),
                -1,
            )
            for name in ("query", "key", "value")
        )
        hidden = jax.nn.dot_product_attention(query, key, value).reshape(x.shape)
        return Layer(channels, 1, self.dtype, name="out")(hidden)


class EDM2(nn.Module):
    """EDM2's U-Net, for preconditioning "edm".

    The defaults are EDM2-S; 128 channels give XS, 256 M, 320 L, 384 XL and 448 XXL.

    Attributes:
      channels, multipliers, num_res_blocks, attention_resolutions, head_channels, outputs, num_classes, label_dropout,
        remat, dtype: See `UNet`. The lowest resolution always has attention as well.
      dropout: Dropout rate in the blocks.
    """

    channels: int = 192
    multipliers: Sequence[int] = (1, 2, 3, 4)
    num_res_blocks: int = 3
    attention_resolutions: Sequence[int] = (16, 8)
    head_channels: int = 64
    dropout: float = 0.0
    outputs: int = 1
    num_classes: int = 0
    label_dropout: float = 0.0
    remat: bool = False
    dtype: str | None = None

    @nn.compact
    def __call__(self, x, noise_level, labels=None, train=False):
        """Return the raw output.

        Args:
          x: Images, (batch, height, width, channels).
          noise_level: Noise levels, (batch,).
          labels: Class labels, (batch,), -1 for the null label; None for null labels.
          train: Whether dropout of activations and labels is active, which takes a "dropout" key.

        Raises:
          UserError: if the image doesn't halve at every level, no level has an attention resolution, the heads don't
            divide the channels, or an unconditional network gets labels.
        """
        check_levels("edm2", x, self.multipliers, self.attention_resolutions)
        check_labels("edm2", self.num_classes, labels)
        check_rates("edm2", self)
        dtype = compute_dtype(self.dtype)
        widths = [self.channels * multiplier for multiplier in self.multipliers]
        embedding = self._conditioning(noise_level, labels, max(widths), train)
        block_class = nn.remat(Block, static_argnums=(3,)) if self.remat else Block

        def block(hidden, level, encoder, name, resample="none", attention=None, features=None):
            size = hidden.shape[1] * {"none": 2, "down": 1, "up": 4}[resample] // 2
            attention = size in self.attention_resolutions if attention is None else attention
            features = features or widths[level]
            module = block_class(
                features, encoder, resample, attention, self.head_channels, self.dropout, dtype, name=name
            )
            return module(hidden, embedding, train)

        ones = jnp.ones_like(x[..., :1])  # replaces biases
        hidden = Layer(self.channels, dtype=dtype, name="conv_in")(jnp.concatenate([x, ones], axis=-1))
        skips, bottom = [hidden], len(widths) - 1
        for level in range(bottom + 1):
            if level > 0:
                name, width = f"down_{level - 1}_resample", hidden.shape[-1]
                hidden = block(hidden, level, True, name, "down", attention=False, features=width)
                skips.append(hidden)
            for i in range(self.num_res_blocks):
                hidden = block(hidden, level, True, f"down_{level}_{i}")
                skips.append(hidden)
        hidden = block(hidden, bottom, False, "middle_0", attention=True)
        hidden = block(hidden, bottom, False, "middle_1", attention=False)
        for level in range(bottom, -1, -1):
            if level < bottom:
                name, width = f"up_{level + 1}_resample", hidden.shape[-1]
                hidden = block(hidden, level, False, name, "up", attention=False, features=width)
            for i in range(self.num_res_blocks + 1):
                hidden = block(concatenate(hidden, skips.pop(), 0.5), level, False, f"up_{level}_{i}")
        gain = self.param("gain", nn.initializers.zeros, ())
        out = Layer(self.outputs * x.shape[-1], dtype=dtype, name="conv_out")(hidden, gain)
        return at_least_float32(out)

    def _conditioning(self, noise_level, labels, width, train):
        """Return the activated embedding of noise level and class in float32, (batch, width)."""
        embedding = Layer(width, 0, name="level")(FourierFeatures(self.channels, name="fourier")(noise_level))
        if self.num_classes:
            labels = jnp.full(len(embedding), -1) if labels is None else labels
            if train and self.label_dropout > 0:
                dropped = jax.random.bernoulli(self.make_rng("dropout"), self.label_dropout, labels.shape)
                labels = jnp.where(dropped, -1, labels)
            classes = jax.nn.one_hot(labels, self.num_classes) * math.sqrt(self.num_classes)  # 0 for the null label
            classes = jnp.where(is_unknown(labels, self.num_classes)[:, None], jnp.nan, classes)
            embedding = mix(embedding, Layer(width, 0, name="label")(classes), 0.5)
        return silu(embedding)
