"""Layers that networks share: convolution, dense layer and normalization, with one dtype policy.

Parameters are float32. Convolutions and products compute in `dtype`. None follows the input: float32, or float64 under
x64. jnp.bfloat16 halves memory and is fast on GPUs and TPUs. Normalization, softmax and embeddings compute at least in
float32.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from score_sde.errors import UserError, cut, lookup
from score_sde.models.convolution import convolve


def initializer(scale: float = 1.0):
    """Return an initializer of uniform weights with variance scale / fan_avg.

    Scale 0 is replaced by 1e-10, which makes the initial weights nearly zero (Ho et al. 2020).
    """
    return nn.initializers.variance_scaling(max(scale, 1e-10), "fan_avg", "uniform")


def compute_dtype(name: Any) -> Any:
    """Return the dtype with a name, or None.

    Raises:
      UserError: if networks don't support it; the message lists the names.
    """
    if name is None or name == "":
        return None
    known = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}
    return jnp.dtype(lookup("dtype", known, name if isinstance(name, str) else jnp.dtype(name).name, "dtype"))


dense = partial(nn.Dense, kernel_init=initializer())  # with the initializer of the U-Nets


def at_least_float32(x: jax.Array) -> jax.Array:
    """Return x in float32, or unchanged if its dtype is wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


class Dropout(nn.Module):
    """Dropout by 16 random bits per activation, since the generator takes a large part of a train step on CPUs.

    Attributes:
      rate: Probability that an activation becomes 0, in [0, 1); it is rounded to a multiple of 2^-16.
    """

    rate: float

    @nn.compact
    def __call__(self, x, train):
        """Return x with dropout and the same mean; `train` activates it and takes a "dropout" key."""
        dropped = min(round(self.rate * 2**16), 2**16 - 1)  # of the 2^16 numbers
        if dropped == 0 or not train:
            return x
        words = jax.random.bits(self.make_rng("dropout"), (-(-x.size // 2),), jnp.uint32)
        numbers = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(-1)[: x.size].reshape(x.shape)
        return jnp.where(numbers >= dropped, x / (1 - dropped / 2**16), 0)


class Conv(nn.Module):
    """Convolution: (batch, height, width, in) -> (batch, height / stride, width / stride, features)."""

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
        """Return the convolution of x (batch, height, width, in)."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", initializer(self.init_scale), shape)
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
        if self.size == 1 and self.stride == 1:  # a matrix product over channels
            y = x @ kernel[0, 0]
        else:
            y = convolve(x, kernel, (self.stride,) * 2, self.padding, kernel_dilation=(self.dilation,) * 2)
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(y.dtype)
        return y + bias.reshape((1,) * (x.ndim - 1) + (-1,))


class GroupNorm(nn.Module):
    """Group normalization (Wu and He 2018) over space and channel groups, with a scale and a bias per channel.

    Statistics are computed in two stages, first over space and then over the channels of a group, so that no activation
    is reshaped. The variance is computed from centered values, because E[x^2] - E[x]^2 cancels in float32.
    """

    num_groups: int | None = None  # None: a quarter of the channels, at most 32
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x):
        """Return x (batch, height, width, channels), normalized.

        Raises:
          UserError: if the number of groups doesn't divide the number of channels.
        """
        channels = x.shape[-1]
        groups = self.num_groups or max(1, min(channels // 4, 32))
        if channels % groups:
            divisors = [n for n in range(1, channels + 1) if channels % n == 0]
            raise UserError(
                f"GroupNorm: expected a number of groups that divides {channels} channels, {cut(repr(divisors))}, got "
                f"{groups}; without groups there are a quarter of the channels, at most 32, so any multiple of 4 up to "
                "128 fits, and above that any multiple of 32",
                "groups",
                "channels",
            )
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))

        def group_mean(y):  # (batch, height, width, channels) -> (batch, 1, 1, channels)
            channel_means = jnp.mean(y, axis=(1, 2))
            group_means = jnp.mean(channel_means.reshape(-1, groups, channels // groups), axis=2, keepdims=True)
            return jnp.broadcast_to(group_means, (*group_means.shape[:2], channels // groups)).reshape(
                -1, 1, 1, channels
            )

        wide = at_least_float32(x)
        centered = wide - group_mean(wide)
        inverse_std = jax.lax.rsqrt(group_mean(centered**2) + self.epsilon)
        normalized = centered * (inverse_std * scale.reshape(1, 1, 1, -1)) + bias.reshape(1, 1, 1, -1)
        return normalized.astype(x.dtype)
