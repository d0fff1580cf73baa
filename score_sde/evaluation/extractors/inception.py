"""The Inception network of 2015 that the FID of Heusel et al. 2017 is taken with, and TensorFlow 1's way to its input.

Szegedy et al. 2016, "Rethinking the Inception Architecture for Computer Vision", as in the file of December 2015:
average pools leave the border out, the last block pools by maxima, there are 1,008 logits. Layers are named as in
pytorch-fid's conversion of that file, whose weights are read.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

SIDE = 299
EPSILON = 1e-3  # of the batch normalization, which is folded into the convolutions
FILE = "pt_inception-2015-12-05-6726825d.pth"
SOURCE = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE}"


def _conv(name: str, features: int, size: Any = 1, stride: int = 1) -> Callable:
    """A convolution, its folded normalization, and a ReLU; of stride 2 without padding, as the network's are."""
    size = (size, size) if isinstance(size, int) else size
    layer = nn.Conv(features, size, (stride, stride), "SAME" if stride == 1 else "VALID", name=name)
    return lambda x: nn.relu(layer(x))


def _average(x):
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def _maximum(x):
    return nn.max_pool(x, (3, 3), padding="SAME")


def _halved(x):
    return nn.max_pool(x, (3, 3), (2, 2))


def _through(x: jax.Array, *layers: Callable) -> jax.Array:
    return functools.reduce(lambda x, layer: layer(x), layers, x)


def _beside(*branches: jax.Array) -> jax.Array:
    return jnp.concatenate(branches, axis=-1)


class BlockA(nn.Module):
    """35x35."""

    pooled: int

    @nn.compact
    def __call__(self, x):
        return _beside(
            _through(x, _conv("branch1x1", 64)),
            _through(x, _conv("branch5x5_1", 48), _conv("branch5x5_2", 64, 5)),
            _through(x, _conv("branch3x3dbl_1", 64), _conv("branch3x3dbl_2", 96, 3), _conv("branch3x3dbl_3", 96, 3)),
            _through(x, _average, _conv("branch_pool", self.pooled)),
        )


class BlockB(nn.Module):
    """35x35 to 17x17."""

    @nn.compact
    def __call__(self, x):
        return _beside(
            _through(x, _conv("branch3x3", 384, 3, 2)),
            _through(x, _conv("branch3x3dbl_1", 64), _conv("branch3x3dbl_2", 96, 3), _conv("branch3x3dbl_3", 96, 3, 2)),
            _halved(x),
        )


class BlockC(nn.Module):
    """17x17, with convolutions of 7x7 in two."""

    inner: int

    @nn.compact
    def __call__(self, x):
        n = self.inner
        return _beside(
            _through(x, _conv("branch1x1", 192)),
            _through(x, _conv("branch7x7_1", n), _conv("branch7x7_2", n, (1, 7)), _conv("branch7x7_3", 192, (7, 1))),
            _through(
                x,
                _conv("branch7x7dbl_1", n),
                _conv("branch7x7dbl_2", n, (7, 1)),
                _conv("branch7x7dbl_3", n, (1, 7)),
                _conv("branch7x7dbl_4", n, (7, 1)),
                _conv("branch7x7dbl_5", 192, (1, 7)),
            ),
            _through(x, _average, _conv("branch_pool", 192)),
        )


class BlockD(nn.Module):
    """17x17 to 8x8."""

    @nn.compact
    def __call__(self, x):
        return _beside(
            _through(x, _conv("branch3x3_1", 192), _conv("branch3x3_2", 320, 3, 2)),
            _through(
                x,
                _conv("branch7x7x3_1", 192),
                _conv("branch7x7x3_2", 192, (1, 7)),
                _conv("branch7x7x3_3", 192, (7, 1)),
                _conv("branch7x7x3_4", 192, 3, 2),
            ),
            _halved(x),
        )


class BlockE(nn.Module):
    """8x8, branches that fork."""

    pool: Callable

    @nn.compact
    def __call__(self, x):
        single = _through(x, _conv("branch3x3_1", 384))
        double = _through(x, _conv("branch3x3dbl_1", 448), _conv("branch3x3dbl_2", 384, 3))
        return _beside(
            _through(x, _conv("branch1x1", 320)),
            *(_through(single, _conv(f"branch3x3_2{n}", 384, size)) for n, size in (("a", (1, 3)), ("b", (3, 1)))),
            *(_through(double, _conv(f"branch3x3dbl_3{n}", 384, size)) for n, size in (("a", (1, 3)), ("b", (3, 1)))),
            _through(x, self.pool, _conv("branch_pool", 192)),
        )


class Inception(nn.Module):
    """(batch, 299, 299, 3) images in [-1, 1] to 2,048 features and 1,008 logits."""

    @nn.compact
    def __call__(self, x):
        """Returns (features (batch, 2048), logits (batch, 1008))."""

        def unpadded(name, features, stride=1):
            layer = nn.Conv(features, (3, 3), (stride, stride), "VALID", name=name)
            return lambda x: nn.relu(layer(x))

        x = _through(x, unpadded("Conv2d_1a_3x3", 32, 2), unpadded("Conv2d_2a_3x3", 32), _conv("Conv2d_2b_3x3", 64, 3))
        x = _through(_halved(x), _conv("Conv2d_3b_1x1", 80), unpadded("Conv2d_4a_3x3", 192))
        x = _halved(x)
        for name, pooled in (("b", 32), ("c", 64), ("d", 64)):
            x = BlockA(pooled, name=f"Mixed_5{name}")(x)
        x = BlockB(name="Mixed_6a")(x)
        for name, inner in (("b", 128), ("c", 160), ("d", 160), ("e", 192)):
            x = BlockC(inner, name=f"Mixed_6{name}")(x)
        x = BlockD(name="Mixed_7a")(x)
        x = BlockE(_average, name="Mixed_7b")(x)
        x = BlockE(_maximum, name="Mixed_7c")(x)
        features = jnp.mean(x, axis=(1, 2))
        return features, nn.Dense(1008, name="fc")(features)


def prepare(images: np.ndarray) -> np.ndarray:
    """(n, height, width, 3) uint8 to (n, 299, 299, 3) float32 in [-1, 1), as the file's own graph does."""
    return (resize(images) - np.float32(128)) * np.float32(1 / 128)


def resize(images: np.ndarray, side: int = SIDE) -> np.ndarray:
    """TensorFlow 1's `resize_bilinear` to a square, bit for bit: corners are not centred, nothing is smoothed.

    Every number is rounded to float32 where TensorFlow's kernel does it, which a compiled program may not.

    Args:
      images: (n, height, width, channels).
      side: of the result.
    """
    x = np.asarray(images, np.float32)
    for axis in (2, 1):  # rows first, as the kernel
        length = x.shape[axis]
        places = np.arange(side, dtype=np.float32) * np.float32(np.float32(length) / np.float32(side))
        low = places.astype(np.int64)
        weight = (places - low.astype(np.float32)).reshape((-1,) + (1,) * (3 - axis))
        near, far = (np.take(x, np.minimum(low + n, length - 1), axis) for n in (0, 1))
        x = near + (far - near) * weight
    return x


def convert(arrays: Mapping[str, np.ndarray]) -> tuple[Inception, dict[str, Any]]:
    """The network, and its parameters from pytorch-fid's names and layout, batch normalization folded in.

    Raises:
      KeyError: an array is missing.
    """
    params: dict[str, Any] = {"fc": {"kernel": arrays["fc.weight"].T, "bias": arrays["fc.bias"]}}
    for name in (name for name in arrays if name.endswith(".conv.weight")):
        layer = name.removesuffix(".conv.weight")
        weight, bias, mean, variance = (
            arrays[f"{layer}.bn.{part}"].astype(np.float64)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale = weight / np.sqrt(variance + EPSILON)
        place = params
        for part in layer.split("."):
            place = place.setdefault(part, {})
        place["kernel"] = (arrays[name].transpose(2, 3, 1, 0) * scale).astype(np.float32)
        place["bias"] = (bias - mean * scale).astype(np.float32)
    return Inception(), params
