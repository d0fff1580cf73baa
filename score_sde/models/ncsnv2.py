"""NCSNv2 (Song and Ermon 2020): a RefineNet (Lin et al. 2017) of dilated residual blocks.

Its layers are independent of the noise level; only its output is divided by sigma.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from score_sde.errors import UserError
from score_sde.models.layers import Conv, at_least_float32, compute_dtype
from score_sde.models.resampling import downsample


class InstanceNormPlus(nn.Module):
    """Instance normalization++ (Song and Ermon 2019), which preserves differences between the channels' means."""

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x):
        """Return x (batch, height, width, channels), normalized."""
        shape = (1, 1, 1, x.shape[-1])
        near_one = lambda key, shape: 1 + 0.02 * jax.random.normal(key, shape)  # noqa: E731
        alpha, gamma = (self.param(name, near_one, shape) for name in ("alpha", "gamma"))
        beta = self.param("beta", nn.initializers.zeros, shape)

        def standardize(y, axes):
            centered = y - jnp.mean(y, axis=axes, keepdims=True)
            return centered * jax.lax.rsqrt(jnp.mean(centered**2, axis=axes, keepdims=True) + self.epsilon)

        wide = at_least_float32(x)
        means = jnp.mean(wide, axis=(1, 2), keepdims=True)
        hidden = standardize(wide, (1, 2)) + alpha * standardize(means, -1)
        return (gamma * hidden + beta).astype(x.dtype)


class DilatedBlock(nn.Module):
    """Residual block with dilated convolutions; with `down` and without dilation it halves the image."""

    features: int
    down: bool = False
    dilation: int = 1
    dtype: Any = None

    @nn.compact
    def __call__(self, x):
        """Return (batch, height', width', features) for x (batch, height, width, channels)."""
        halve = downsample if self.down and self.dilation == 1 else lambda y: y
        inner = x.shape[-1] if self.down else self.features
        hidden = nn.elu(InstanceNormPlus(name="norm_0")(x))
        hidden = Conv(inner, dilation=self.dilation, dtype=self.dtype, name="conv_0")(hidden)
        hidden = nn.elu(InstanceNormPlus(name="norm_1")(hidden))
        hidden = halve(Conv(self.features, dilation=self.dilation, dtype=self.dtype, name="conv_1")(hidden))
        if not self.down and x.shape[-1] == self.features:
            return x + hidden
        size = 1 if self.dilation == 1 else 3
        shortcut = Conv(self.features, size, dilation=self.dilation, dtype=self.dtype, name="shortcut")
        return halve(shortcut(x)) + hidden


class Refine(nn.Module):
    """RefineNet block: residual units per input, fusion at the first input's size, chained pooling, residual units."""

    features: int
    last: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, inputs):
        """Return (batch, height, width, features) at the size of the first of the inputs."""

        def conv(features, name):
            return Conv(features, use_bias=False, dtype=self.dtype, name=name)

        def adapt(x, blocks, name):
            for i in range(blocks):
                hidden = x
                for stage in range(2):
                    hidden = conv(x.shape[-1], f"{name}_{i}_{stage}")(nn.elu(hidden))
                x = x + hidden
            return x

        adapted = [adapt(x, 2, f"adapt_{i}") for i, x in enumerate(inputs)]
        hidden = adapted[0]
        if len(adapted) > 1:
            fused = [Conv(self.features, dtype=self.dtype, name=f"fuse_{i}")(x) for i, x in enumerate(adapted)]
            hidden = sum(resize(x, fused[0].shape[1:3]) for x in fused)
        path = hidden = nn.elu(hidden)
        for i in range(2):
            path = conv(self.features, f"pool_{i}")(nn.max_pool(path, (5, 5), padding="SAME"))
            hidden = hidden + path
        return adapt(hidden, 3 if self.last else 1, "out")


def resize(x: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Resize images (batch, height, width, channels) to (height, width) bilinearly, with corners aligned."""
    for axis, size in zip((1, 2), shape, strict=True):
        if x.shape[axis] == size:
            continue
        coordinates = np.linspace(0, x.shape[axis] - 1, size)
        tent = np.maximum(0, 1 - np.abs(coordinates[:, None] - np.arange(x.shape[axis])[None]))
        x = jnp.moveaxis(jnp.moveaxis(x, axis, -1) @ jnp.asarray(tent.T, x.dtype), -1, axis)
    return x


class NCSNv2(nn.Module):
    """NCSNv2, for preconditioning "log_sigma" and prediction "score".

    Attributes:
      channels: Channels of the first level; the others have twice as many.
      dtype: Dtype of the computation, "bfloat16" for speed; None follows the input.
    """

    channels: int = 128
    dtype: str | None = None
    scale_by_sigma = True  # a constant, because the network always divides by sigma

    @nn.compact
    def __call__(self, x, noise_level, labels=None, train=False):
        """Return the score, (batch, height, width, channels).

        Args:
          x: Images, (batch, height, width, channels).
          noise_level: log sigma, (batch,).
          labels: None, because the network is unconditional.
          train: Unused.

        Raises:
          UserError: if the image's height or width is odd, or there are labels.
        """
        if labels is not None:
            raise UserError("ncsnv2: got labels, but this network is unconditional")
        if x.shape[1] % 2 or x.shape[2] % 2:
            raise UserError(f"ncsnv2: expected an even height and width, got {x.shape[1]}x{x.shape[2]}", "image_size")
        dtype = compute_dtype(self.dtype)
        narrow, wide = self.channels, 2 * self.channels
        hidden = Conv(narrow, dtype=dtype, name="conv_in")(x)
        levels = []
        stages = [(narrow, False, 1), (wide, True, 1), (wide, True, 2), (wide, True, 4)]
        for level, (features, down, dilation) in enumerate(stages):
            hidden = DilatedBlock(features, down, dilation, dtype, name=f"down_{level}_0")(hidden)
            hidden = DilatedBlock(features, False, dilation, dtype, name=f"down_{level}_1")(hidden)
            levels.append(hidden)
        hidden = Refine(wide, dtype=dtype, name="refine_3")([levels[3]])
        hidden = Refine(wide, dtype=dtype, name="refine_2")([levels[2], hidden])
        hidden = Refine(narrow, dtype=dtype, name="refine_1")([levels[1], hidden])
        hidden = Refine(narrow, last=True, dtype=dtype, name="refine_0")([levels[0], hidden])
        hidden = nn.elu(InstanceNormPlus(name="norm_out")(hidden))
        out = at_least_float32(Conv(x.shape[-1], dtype=dtype, name="conv_out")(hidden))
        return out / jnp.exp(noise_level).reshape(-1, 1, 1, 1)
