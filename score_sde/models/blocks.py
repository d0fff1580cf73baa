"""The residual block and the attention block that all U-Nets share, with what differs between papers as options."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from score_sde.errors import UserError
from score_sde.models.layers import Conv, GroupNorm, dense
from score_sde.models.resampling import BOX, downsample, upsample


class Style(NamedTuple):
    """What one paper's blocks have that another's haven't."""

    rescale: bool = False  # divide sums of branches by sqrt(2)
    scale_shift: bool = False  # the embedding scales and shifts after the second normalization, not before it shifts
    project_resampled: bool = False  # a 1x1 convolution on the shortcut of resampling blocks even at equal channels
    taps: Sequence[float] = ()  # of the filter of resampling blocks; none: average and repeat
    groups: int | None = None  # of normalizations; None: a quarter of the channels, at most 32
    epsilon: float = 1e-6
    head_channels: int | None = None  # channels of an attention head; None: a single head
    heads: int | None = None  # how many, in place of their channels
    dropout: float = 0.0
    dtype: Any = None

    def norm(self, name: str) -> GroupNorm:
        return GroupNorm(self.groups, self.epsilon, name=name)

    def add(self, shortcut: jax.Array, branch: jax.Array) -> jax.Array:
        return (shortcut + branch) / math.sqrt(2) if self.rescale else shortcut + branch


class ResidualBlock(nn.Module):
    """Normalize, activate, convolve, twice, told the noise level in between (Ho et al. 2020).

    With `resample` "down" or "up" both branches are halved or doubled, as in BigGAN (Brock et al. 2019).
    """

    features: int
    style: Style
    resample: str = "none"

    @nn.compact
    def __call__(self, x, embedding, train):
        """x (batch, height, width, channels), embedding (batch, n) -> (batch, height', width', features)."""
        style = self.style
        hidden = self._resampled(nn.swish(style.norm("norm_0")(x)))
        hidden = Conv(self.features, dtype=style.dtype, name="conv_0")(hidden)
        told = dense((1 + style.scale_shift) * self.features, name="embedding")(embedding)
        told = told[:, None, None, :].astype(hidden.dtype)
        if style.scale_shift:
            scale, shift = told[..., : self.features], told[..., self.features :]
            hidden = style.norm("norm_1")(hidden) * (1 + scale) + shift
        else:
            hidden = style.norm("norm_1")(hidden + told)
        hidden = nn.Dropout(style.dropout, deterministic=not train)(nn.swish(hidden))
        hidden = Conv(self.features, init_scale=0.0, dtype=style.dtype, name="conv_1")(hidden)
        shortcut = self._resampled(x)
        if x.shape[-1] != self.features or (self.resample != "none" and style.project_resampled):
            shortcut = Conv(self.features, 1, dtype=style.dtype, name="shortcut")(shortcut)
        return style.add(shortcut, hidden)

    def _resampled(self, x):
        if self.resample == "none":
            return x
        return {"down": downsample, "up": upsample}[self.resample](x, self.style.taps or BOX)


class Attention(nn.Module):
    """Self-attention over positions on a residual branch: (batch, height, width, channels) to the same."""

    style: Style

    @nn.compact
    def __call__(self, x):
        style = self.style
        batch, height, width, channels = x.shape
        heads = count_heads(channels, style.heads, style.head_channels)
        hidden = style.norm("norm")(x)
        shape = (batch, height * width, heads, channels // heads)
        query, key, value = (
            Conv(channels, 1, dtype=style.dtype, name=name)(hidden).reshape(shape) for name in ("query", "key", "value")
        )
        hidden = jax.nn.dot_product_attention(query, key, value).reshape(x.shape)  # its softmax is in float32
        return style.add(x, Conv(channels, 1, 0.0, dtype=style.dtype, name="out")(hidden))


def count_heads(channels: int, heads: int | None, head_channels: int | None) -> int:
    """How many attention heads there are; refuses what doesn't divide the channels."""
    heads = heads or (channels // head_channels if head_channels else 1)
    if heads < 1 or channels % heads or (head_channels and channels != heads * head_channels):
        asked = f"heads of {head_channels} channels" if head_channels else f"{heads} heads"
        raise UserError(
            f"attention: {asked} don't divide {channels} channels (set --config.model.kwargs.head_channels or heads)"
        )
    return heads
