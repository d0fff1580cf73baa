"""Layers that networks share (convolution, dense layer, normalization), with one dtype policy.

Parameters are float32. `dtype` is the data type of convolutions and products: None follows the input (float32, or
float64 under x64), and jnp.bfloat16 halves memory and is fast on GPUs and TPUs. Normalization, softmax and embeddings
stay in float32 at least.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from score_sde.models.convolution import convolve


def initializer(scale: float = 1.0):
    """Return a uniform initializer of variance scale / fan_avg; scale 0 means 1e-10 (Ho et al. 2020)."""
    return nn.initializers.variance_scaling(max(scale, 1e-10), "fan_avg", "uniform")


dense = partial(nn.Dense, kernel_init=initializer())  # with the U-Nets' initial weights


def at_least_float32(x: jax.Array) -> jax.Array:
    """Return x in float32, or unchanged if its type is wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


class Conv(nn.Module):
    """Convolution."""

    features: int
    size: int = 3
    init_scale: float = 1.0
    stride: int = 1
    padding: Any = "SAME"
    dilation: int = 1
    use_bias: bool = True
    dtype: Any = None

    @nn.compact
    def __call__(self, x):
        """Map (batch, height, width, in) to (batch, height / stride, width / stride, features)."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", initializer(self.init_scale), shape)
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
        if self.size == 1 and self.stride == 1:  # a product over channels
            y = x @ kernel[0, 0]
        else:
            y = convolve(x, kernel, (self.stride,) * 2, self.padding, kernel_dilation=(self.dilation,) * 2)
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(y.dtype)
        return y + bias.reshape((1,) * (x.ndim - 1) + (-1,))


class GroupNorm(nn.Module):
    """Group normalization (Wu and He 2018) over space and channel groups, with a scale and a bias per channel.

    Statistics are taken in two stages, over space and then over the channels of a group, so that no activation is
    reshaped. The variance is that of centered values, since E[x^2] - E[x]^2 cancels in float32.
    """

    num_groups: int | None = None  # None: a quarter of the channels, at most 32
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x):
        """Normalize (batch, height, width, channels)."""
        channels = x.shape[-1]
        groups = self.num_groups or max(1, min(channels // 4, 32))
        if channels % groups:
            raise ValueError(f"GroupNorm: {groups} groups don't divide {channels} channels")
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))

        def group_mean(y):  # (batch, height, width, channels) -> (batch, 1, 1, channels)
            by_channel = jnp.mean(y, axis=(1, 2))
            by_group = jnp.mean(by_channel.reshape(-1, groups, channels // groups), axis=2, keepdims=True)
            return jnp.broadcast_to(by_group, (*by_group.shape[:2], channels // groups)).reshape(-1, 1, 1, channels)

        wide = at_least_float32(x)
        centered = wide - group_mean(wide)
        inverse_deviation = jax.lax.rsqrt(group_mean(centered**2) + self.epsilon)
        normal = centered * (inverse_deviation * scale.reshape(1, 1, 1, -1)) + bias.reshape(1, 1, 1, -1)
        return normal.astype(x.dtype)
