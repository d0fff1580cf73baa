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
    """Filters, keeps every second pixel: (batch, height, width, channels) -> (batch, height / 2, width / 2, channels).

    Args:
      x: images, of even sizes.
      taps: of the separable filter; an even number of them.
      margin: if not 0, every pixel is kept, and so many more on each side: for a convolution to follow that has stride
        2 and no padding.
    """
    kept = len(taps) // 2 - 1 + margin
    stride = 1 if margin else 2
    for axis in (1, 2):
        x = _filtered(x, axis, taps, 1.0, (kept, kept, 0), stride)
    return x


def upsample(x: jax.Array, taps: Sequence[float] = BOX, margin: int = 0) -> jax.Array:
    """Puts zeros between pixels and filters: (batch, height, width, channels) -> (batch, 2 height, 2 width, channels).

    With a margin the result is larger by that many pixels on each side: for a convolution without padding to follow.
    """
    half = len(taps) // 2
    for axis in (1, 2):
        x = _filtered(x, axis, taps, 2.0, (half + margin, half + margin, 1), 1)
    return x


def _filtered(x, axis, taps, gain, padding, stride):
    """Correlates along an axis: pads it by (low, high, interior) and adds the shifted copies, with a stride."""
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
    """Halves or doubles images by filter and convolution: NCSN++'s, and with no filter DDPM's.

    Attributes:
      direction: "down" or "up".
      features: of the 3x3 convolution, which has a stride on the way down.
      taps: of the filter; empty on the way down: the convolution alone; on the way up: repeated pixels.
      padding: (low, high) of a strided convolution with no filter; Ho et al. 2020 pad at the high end alone.
    """

    direction: str
    features: int
    taps: Sequence[float] = ()
    padding: tuple[int, int] = (0, 1)
    dtype: Any = None

    @nn.compact
    def __call__(self, x):
        conv = partial(Conv, self.features, dtype=self.dtype, name="conv")
        if self.direction == "down":
            if not self.taps:
                return conv(stride=2, padding=(self.padding,) * 2)(x)
            return conv(stride=2, padding="VALID")(downsample(x, self.taps, margin=1))
        if len(self.taps) <= len(BOX):
            return conv()(upsample(x))
        return conv(padding="VALID")(upsample(x, self.taps, margin=1))
