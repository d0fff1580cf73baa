"""Halving and doubling images, with an anti-aliasing filter (Karnewar and Wang 2019; Zhang 2019) or a convolution.

The filter (1, 1) is averaging and repeating pixels; (1, 3, 3, 1) is NCSN++'s.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from score_sde.models.layers import Conv

BOX = (1, 1)


def downsample(x: jax.Array, taps: Sequence[float] = BOX, margin: int = 0) -> jax.Array:
    """Halve images (batch, height, width, channels): filter them and keep every second pixel.

    Args:
      x: Images of even sizes.
      taps: Coefficients of the separable filter, an even number.
      margin: If not 0, every pixel is kept, and the result is larger by this many on each side, for a following
        convolution with stride 2 and no padding.
    """
    kept = len(taps) // 2 - 1 + margin
    stride = 1 if margin else 2
    for axis in (1, 2):
        x = _filtered(x, axis, taps, 1.0, (kept, kept, 0), stride)
    return x


def upsample(x: jax.Array, taps: Sequence[float] = BOX, margin: int = 0) -> jax.Array:
    """Double images (batch, height, width, channels): put zeros between pixels and filter them.

    With a margin the result is larger by this many pixels on each side, for a following convolution without padding.
    """
    half = len(taps) // 2
    for axis in (1, 2):
        x = _filtered(x, axis, taps, 2.0, (half + margin, half + margin, 1), 1)
    return x


def _filtered(x, axis, taps, gain, padding, stride):
    """Correlate along an axis, padded by (low, high, interior), with a stride."""
    config = [(0, 0, 0)] * x.ndim
    config[axis] = padding
    padded = jax.lax.pad(x, jnp.zeros((), x.dtype), config)
    count = (padded.shape[axis] - len(taps)) // stride + 1
    terms = [
        jax.lax.slice_in_dim(padded, k, k + stride * (count - 1) + 1, stride, axis) * (gain * tap / sum(taps))
        for k, tap in enumerate(taps)
    ]
    return sum(terms[1:], terms[0])


class Resample(nn.Module):
    """Resampling by filter and convolution, as in NCSN++, or without a filter as in DDPM.

    Attributes:
      direction: Direction, "down" or "up".
      features: Number of channels of the 3x3 convolution, which has a stride on the way down.
      taps: Coefficients of the filter; empty for only the convolution on the way down, and repeated pixels on the way
        up.
      padding: Padding (low, high) of a strided convolution without a filter; Ho et al. 2020 pad only at the high end.
    """

    direction: str
    features: int
    taps: Sequence[float] = ()
    padding: tuple[int, int] = (0, 1)
    dtype: Any = None

    @nn.compact
    def __call__(self, x):
        """Halve or double images (batch, height, width, channels)."""
        conv = partial(Conv, self.features, dtype=self.dtype, name="conv")
        if self.direction == "down":
            if not self.taps:
                return conv(stride=2, padding=(self.padding,) * 2)(x)
            return conv(stride=2, padding="VALID")(downsample(x, self.taps, margin=1))
        if len(self.taps) <= len(BOX):
            return conv()(upsample(x))
        return conv(padding="VALID")(upsample(x, self.taps, margin=1))
