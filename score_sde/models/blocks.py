"""Residual and attention blocks of the U-Nets; the differences between papers are options."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from score_sde.errors import UserError
from score_sde.models.layers import Conv, GroupNorm, dense
from score_sde.models.resampling import BOX, downsample, upsample


class BlockConfig(NamedTuple):
    """Options of the blocks, by which the papers differ.

    Attributes:
      rescale: Whether to divide sums of branches by sqrt(2).
      scale_shift: Whether the embedding scales and shifts after the second normalization, rather than being added
        before it.
      project_resampled: Whether the shortcut of resampling blocks has a 1x1 convolution even at equal channels.
      taps: Filter of resampling blocks; empty for averages on the way down and repeated pixels on the way up.
      groups: Number of groups of normalizations; None for a quarter of the channels, at most 32.
      epsilon: Constant of normalizations.
      head_channels: Number of channels per attention head; None for a single head.
      heads: Number of attention heads, in place of `head_channels`.
      dropout: Dropout rate.
      dtype: Data type of the computation; None follows the input.
    """

    rescale: bool = False
    scale_shift: bool = False
    project_resampled: bool = False
    taps: Sequence[float] = ()
    groups: int | None = None
    epsilon: float = 1e-6
    head_channels: int | None = None
    heads: int | None = None
    dropout: float = 0.0
    dtype: Any = None

    def norm(self, name: str) -> GroupNorm:
        """Return a normalization layer."""
        return GroupNorm(self.groups, self.epsilon, name=name)

    def add(self, shortcut: jax.Array, branch: jax.Array) -> jax.Array:
        """Return the sum of two branches, divided by sqrt(2) with `rescale`."""
        return (shortcut + branch) / math.sqrt(2) if self.rescale else shortcut + branch


class ResidualBlock(nn.Module):
    """Normalization, activation and convolution, twice, with the noise embedding in between (Ho et al. 2020).

    With `resample` "down" or "up" both branches are halved or doubled, as in BigGAN (Brock et al. 2019).
    """

    features: int
    config: BlockConfig
    resample: str = "none"

    @nn.compact
    def __call__(self, x, embedding, train):
        """Map x (batch, height, width, channels) and embedding (batch, n) to (batch, height', width', features)."""
        config = self.config
        hidden = self._resampled(nn.swish(config.norm("norm_0")(x)))
        hidden = Conv(self.features, dtype=config.dtype, name="conv_0")(hidden)
        modulation = dense((1 + config.scale_shift) * self.features, name="embedding")(embedding)
        modulation = modulation[:, None, None, :].astype(hidden.dtype)
        if config.scale_shift:
            scale, shift = modulation[..., : self.features], modulation[..., self.features :]
            hidden = config.norm("norm_1")(hidden) * (1 + scale) + shift
        else:
            hidden = config.norm("norm_1")(hidden + modulation)
        hidden = nn.Dropout(config.dropout, deterministic=not train)(nn.swish(hidden))
        hidden = Conv(self.features, init_scale=0.0, dtype=config.dtype, name="conv_1")(hidden)
        shortcut = self._resampled(x)
        if x.shape[-1] != self.features or (self.resample != "none" and config.project_resampled):
            shortcut = Conv(self.features, 1, dtype=config.dtype, name="shortcut")(shortcut)
        return config.add(shortcut, hidden)

    def _resampled(self, x):
        if self.resample == "none":
            return x
        return {"down": downsample, "up": upsample}[self.resample](x, self.config.taps or BOX)


class Attention(nn.Module):
    """Self-attention over positions on a residual branch, which keeps the shape (batch, height, width, channels)."""

    config: BlockConfig

    @nn.compact
    def __call__(self, x):
        """Add the attention branch to x."""
        config = self.config
        batch, height, width, channels = x.shape
        heads = count_heads(channels, config.heads, config.head_channels)
        hidden = config.norm("norm")(x)
        shape = (batch, height * width, heads, channels // heads)
        query, key, value = (
            Conv(channels, 1, dtype=config.dtype, name=name)(hidden).reshape(shape)
            for name in ("query", "key", "value")
        )
        hidden = jax.nn.dot_product_attention(query, key, value).reshape(x.shape)  # its softmax is in float32
        return config.add(x, Conv(channels, 1, 0.0, dtype=config.dtype, name="out")(hidden))


def count_heads(channels: int, heads: int | None, head_channels: int | None) -> int:
    """Return the number of attention heads; raise UserError unless they divide the channels."""
    heads = heads or (channels // head_channels if head_channels else 1)
    if heads < 1 or channels % heads or (head_channels and channels != heads * head_channels):
        requested = f"heads of {head_channels} channels" if head_channels else f"{heads} heads"
        raise UserError(f"attention: {requested} don't divide {channels} channels", "head_channels", "heads")
    return heads
