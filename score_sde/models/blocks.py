"""The residual block and the attention block of all U-Nets, with the differences between papers as options."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from score_sde.errors import UserError
from score_sde.models.layers import Conv, Dropout, GroupNorm, dense
from score_sde.models.resampling import BOX, downsample, upsample


class BlockConfig(NamedTuple):
    """Options of residual and attention blocks.

    Attributes:
      rescale: Whether sums of two branches are divided by sqrt(2).
      scale_shift: Whether the embedding scales and shifts after the second normalization, or only shifts before it.
      project_resampled: Whether the shortcut of a resampling block always has a 1x1 convolution; otherwise only if the
        number of channels changes.
      taps: Coefficients of the filter of resampling blocks; if empty, pixels are averaged or repeated.
      groups: Number of groups of the normalizations; None for a quarter of the channels, at most 32.
      epsilon: Constant added to the variance in normalizations.
      head_channels: Channels per attention head; None for a single head.
      heads: Number of attention heads; replaces `head_channels`.
      dropout: Dropout rate in residual blocks.
      dtype: Dtype of the computation; None follows the input.
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
        """Return a group normalization layer."""
        return GroupNorm(self.groups, self.epsilon, name=name)

    def add(self, shortcut: jax.Array, branch: jax.Array) -> jax.Array:
        """Return the sum of two branches, over sqrt(2) with `rescale`."""
        return (shortcut + branch) / math.sqrt(2) if self.rescale else shortcut + branch


class ResidualBlock(nn.Module):
    """Residual block: normalization, activation and convolution, twice, with the embedding in between (Ho et al. 2020).

    With `resample` "down" or "up" both branches are resampled by 2, as in BigGAN (Brock et al. 2019).
    """

    features: int
    config: BlockConfig
    resample: str = "none"

    @nn.compact
    def __call__(self, x, embedding, train):
        """Return (batch, height', width', features).

        Args:
          x: Activations, (batch, height, width, channels).
          embedding: Embedding of the noise level and other conditioning, (batch, n).
          train: Whether dropout is active, which takes a "dropout" key.
        """
        config = self.config
        hidden = self._resample(nn.swish(config.norm("norm_0")(x)))
        hidden = Conv(self.features, dtype=config.dtype, name="conv_0")(hidden)
        modulation = dense((1 + config.scale_shift) * self.features, name="embedding")(embedding)
        modulation = modulation[:, None, None, :].astype(hidden.dtype)
        if config.scale_shift:
            scale, shift = modulation[..., : self.features], modulation[..., self.features :]
            hidden = config.norm("norm_1")(hidden) * (1 + scale) + shift
        else:
            hidden = config.norm("norm_1")(hidden + modulation)
        hidden = Dropout(config.dropout)(nn.swish(hidden), train)
        hidden = Conv(self.features, init_scale=0.0, dtype=config.dtype, name="conv_1")(hidden)
        shortcut = self._resample(x)
        if x.shape[-1] != self.features or (self.resample != "none" and config.project_resampled):
            shortcut = Conv(self.features, 1, dtype=config.dtype, name="shortcut")(shortcut)
        return config.add(shortcut, hidden)

    def _resample(self, x):
        if self.resample == "none":
            return x
        return {"down": downsample, "up": upsample}[self.resample](x, self.config.taps or BOX)


class Attention(nn.Module):
    """Self-attention over positions on a residual branch."""

    config: BlockConfig

    @nn.compact
    def __call__(self, x):
        """Return activations of the shape of x, (batch, height, width, channels)."""
        config = self.config
        batch, height, width, channels = x.shape
        heads = count_heads(channels, config.heads, config.head_channels)
        hidden = config.norm("norm")(x)
        shape = (batch, height * width, heads, channels // heads)
        query, key, value = (
            Conv(channels, 1, dtype=config.dtype, name=name)(hidden).reshape(shape)
            for name in ("query", "key", "value")
        )
        hidden = jax.nn.dot_product_attention(query, key, value).reshape(x.shape)  # softmax in float32
        return config.add(x, Conv(channels, 1, 0.0, dtype=config.dtype, name="out")(hidden))


def count_heads(channels: int, heads: int | None, head_channels: int | None) -> int:
    """Return the number of attention heads.

    Args:
      channels: Number of channels of the activations.
      heads: Number of heads; None derives it from `head_channels`.
      head_channels: Channels per head; None for a single head.

    Raises:
      UserError: if the heads don't divide the channels.
    """
    count = heads or (channels // head_channels if head_channels else 1)
    if count < 1 or channels % count or (head_channels and channels != count * head_channels):
        requested = f"heads of {head_channels} channels" if head_channels else f"{count} heads"
        arguments = {"head_channels": head_channels, "heads": heads}
        raise UserError(
            f"attention: {requested} don't divide {channels} channels",
            *(name for name, value in arguments.items() if value),
        )
    return count
