"""Downsampling and upsampling by 2, with an anti-aliasing filter (Karnewar and Wang 2019; Zhang 2019) or a convolution.

The filter (1, 1) averages pixels on the way down and repeats them on the way up. NCSN++ uses (1, 3, 3, 1).
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
    """Filter images and keep every second pixel: (batch, height / 2, width / 2, channels).

    Args:
      x: Images of even height and width, (batch, height, width, channels).
      taps: Coefficients of the separable filter, an even number of them.
      margin: Number of additional pixels on each side. With a margin every pixel is kept, for a following convolution
        with stride 2 and no padding.
    """
    padding = len(taps) // 2 - 1 + margin
    stride = 1 if margin else 2
    for axis in (1, 2):
        x = _filter_axis(x, axis, taps, 1.0, (padding, padding, 0), stride)
    return x


def upsample(x: jax.Array, taps: Sequence[float] = BOX, margin: int = 0) -> jax.Array:
    """Insert zeros between pixels and filter the result: (batch, 2 height, 2 width, channels).

    Args:
      x: Images, (batch, height, width, channels).
      taps: Coefficients of the separable filter, an even number of them.
      margin: Number of additional pixels on each side, for a following convolution without padding.
    """
    half = len(taps) // 2
    for axis in (1, 2):
        x = _filter_axis(x, axis, taps, 2.0, (half + margin, half + margin, 1), 1)
    return x


def _filter_axis(x, axis, taps, gain, padding, stride):
    """Correlate x with the taps along an axis that is padded by (low, high, interior), with a stride."""
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
    """Resampling by 2 with a filter and a 3x3 convolution, as in NCSN++; without a filter, as in DDPM.

    Attributes:
      direction: "down" or "up".
      features: Output channels of the convolution, which has stride 2 on the way down.
      taps: Coefficients of the filter. If empty, the way down uses only the convolution and the way up repeats pixels.
      padding: (low, high) padding of the strided convolution without a filter; Ho et al. 2020 pad only the high end.
      dtype: Dtype of the computation; None follows the input.
    """

    direction: str
    features: int
    taps: Sequence[float] = ()
    padding: tuple[int, int] = (0, 1)
    dtype: Any = None

    @nn.compact
    def __call__(self, x):
        """Return x (batch, height, width, channels) at half or twice its height and width."""
        conv = partial(Conv, self.features, dtype=self.dtype, name="conv")
        if self.direction == "down":
            if not self.taps:
                return conv(stride=2, padding=(self.padding,) * 2)(x)
            return conv(stride=2, padding="VALID")(downsample(x, self.taps, margin=1))
        if len(self.taps) <= len(BOX):
            return conv()(upsample(x))
        return conv(padding="VALID")(upsample(x, self.taps, margin=1))
