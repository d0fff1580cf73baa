"""The layers that the U-Nets share: normalization, embedding, attention, resampling, residual blocks.

The defaults are those of Song et al. 2021 (Appendix H): weights uniform with variance 1 / fan_avg, a last layer of
every residual branch that starts at zero, and sums divided by sqrt(2).
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from score_sde.models.convolution import convolve


def initializer(scale: float = 1.0):
    """Uniform weights of variance scale / fan_avg; scale 0 stands for 1e-10, nearly a zero start (Ho et al. 2020)."""
    return nn.initializers.variance_scaling(max(scale, 1e-10), "fan_avg", "uniform")


class Conv(nn.Module):
    """A convolution with bias: (batch, height, width, in) -> (batch, height, width, features), "SAME" padding."""

    features: int
    size: int = 3
    init_scale: float = 1.0

    @nn.compact
    def __call__(self, x):
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", initializer(self.init_scale), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        if self.size == 1:  # a product over channels
            return x @ kernel[0, 0] + bias.reshape((1,) * (x.ndim - 1) + (-1,))
        return convolve(x, kernel) + bias.reshape(1, 1, 1, -1)


class GroupNorm(nn.Module):
    """Group normalization (Wu and He 2018) over space and channel groups, with a scale and a bias a channel.

    Statistics in two stages, first over space and then over the group's channels, so that no activation is reshaped;
    the variance is that of centred values: E[x^2] - E[x]^2 cancels in float32.
    """

    num_groups: int | None = None  # None: a quarter of the channels, at most 32
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x):
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

        centred = x - group_mean(x)
        inverse_deviation = jax.lax.rsqrt(group_mean(centred**2) + self.epsilon)
        return centred * (inverse_deviation * scale.reshape(1, 1, 1, -1)) + bias.reshape(1, 1, 1, -1)


def positional_embedding(noise_level: jax.Array, features: int) -> jax.Array:
    """Sines and cosines of (batch,) noise levels at geometric frequencies (Vaswani et al. 2017): (batch, features)."""
    half = features // 2
    frequencies = jnp.exp(-math.log(10_000.0) / (half - 1) * jnp.arange(half))
    angles = noise_level[:, None] * frequencies[None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class NoiseEmbedding(nn.Module):
    """(batch,) noise levels -> (batch, 4 channels): the positional embedding through two dense layers."""

    channels: int

    @nn.compact
    def __call__(self, noise_level):
        hidden = positional_embedding(noise_level, self.channels)
        hidden = nn.Dense(4 * self.channels, kernel_init=initializer(), name="dense_0")(hidden)
        return nn.Dense(4 * self.channels, kernel_init=initializer(), name="dense_1")(nn.swish(hidden))


class Attention(nn.Module):
    """Self-attention over positions, one head, on a residual branch: (batch, height, width, channels) to the same."""

    @nn.compact
    def __call__(self, x):
        batch, height, width, channels = x.shape
        hidden = GroupNorm(name="norm")(x)
        query, key, value = (Conv(channels, 1, name=name)(hidden) for name in ("query", "key", "value"))
        heads = (batch, height * width, 1, channels)
        hidden = jax.nn.dot_product_attention(query.reshape(heads), key.reshape(heads), value.reshape(heads))
        return (x + Conv(channels, 1, 0.0, name="out")(hidden.reshape(x.shape))) / math.sqrt(2)


def downsample(x: jax.Array) -> jax.Array:
    """Averages 2x2 pixels: (batch, height, width, channels) -> (batch, height / 2, width / 2, channels)."""
    batch, height, width, channels = x.shape
    return jnp.mean(x.reshape(batch, height // 2, 2, width // 2, 2, channels), axis=(2, 4))


def upsample(x: jax.Array) -> jax.Array:
    """Repeats every pixel 2x2 times: (batch, height, width, channels) -> (batch, 2 height, 2 width, channels)."""
    batch, height, width, channels = x.shape
    repeated = jnp.broadcast_to(x[:, :, None, :, None, :], (batch, height, 2, width, 2, channels))
    return repeated.reshape(batch, 2 * height, 2 * width, channels)


class ResidualBlock(nn.Module):
    """BigGAN's residual block (Brock et al. 2019), resampling in both branches, as Song et al. 2021 use it."""

    features: int
    dropout: float = 0.0
    resample: str = "none"  # "none" | "down" | "up"

    @nn.compact
    def __call__(self, x, embedding, train):
        resample = {"none": lambda y: y, "down": downsample, "up": upsample}[self.resample]
        hidden = nn.swish(GroupNorm(name="norm_0")(x))
        hidden = Conv(self.features, name="conv_0")(resample(hidden))
        shift = nn.Dense(self.features, kernel_init=initializer(), name="embedding")(nn.swish(embedding))
        hidden = nn.swish(GroupNorm(name="norm_1")(hidden + shift[:, None, None, :]))
        hidden = nn.Dropout(self.dropout, deterministic=not train)(hidden)
        hidden = Conv(self.features, init_scale=0.0, name="conv_1")(hidden)
        shortcut = resample(x)
        if self.resample != "none" or x.shape[-1] != self.features:
            shortcut = Conv(self.features, 1, name="shortcut")(shortcut)
        return (shortcut + hidden) / math.sqrt(2)
