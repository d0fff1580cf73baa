"""The Inception network of 2015, which defines the FID (Heusel et al. 2017), with TensorFlow 1's preprocessing.

The architecture is that of Szegedy et al. 2016, "Rethinking the Inception Architecture for Computer Vision", in the
version of December 2015: average pooling excludes the padding, the last block has max pooling, and there are 1,008
logits. Layers have the names of pytorch-fid's conversion, whose weights are loaded.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

SIDE = 299  # pixels per side of an input
EPSILON = 1e-3  # of batch normalization, which is folded into the convolutions
WEIGHTS_FILE = "pt_inception-2015-12-05-6726825d.pth"
WEIGHTS_URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{WEIGHTS_FILE}"


def _conv(name: str, features: int, size: Any = 1, stride: int = 1) -> Callable:
    """Return a convolution with folded normalization and a ReLU; with stride 2 it has no padding."""
    size = (size, size) if isinstance(size, int) else size
    layer = nn.Conv(features, size, (stride, stride), "SAME" if stride == 1 else "VALID", name=name)
    return lambda x: nn.relu(layer(x))


def _avg_pool(x):
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def _max_pool(x):
    return nn.max_pool(x, (3, 3), padding="SAME")


def _max_pool_2x(x):
    return nn.max_pool(x, (3, 3), (2, 2))


def _sequential(x: jax.Array, *layers: Callable) -> jax.Array:
    return functools.reduce(lambda x, layer: layer(x), layers, x)


def _concat(*branches: jax.Array) -> jax.Array:
    return jnp.concatenate(branches, axis=-1)


class BlockA(nn.Module):
    """A block at 35x35.

    Attributes:
      pool_features: Number of channels of the pooling branch.
    """

    pool_features: int

    @nn.compact
    def __call__(self, x):
        """Return the concatenated branches (batch, height, width, channels)."""
        return _concat(
            _sequential(x, _conv("branch1x1", 64)),
            _sequential(x, _conv("branch5x5_1", 48), _conv("branch5x5_2", 64, 5)),
            _sequential(x, _conv("branch3x3dbl_1", 64), _conv("branch3x3dbl_2", 96, 3), _conv("branch3x3dbl_3", 96, 3)),
            _sequential(x, _avg_pool, _conv("branch_pool", self.pool_features)),
        )


class BlockB(nn.Module):
    """A block from 35x35 to 17x17."""

    @nn.compact
    def __call__(self, x):
        """Return the concatenated branches (batch, height, width, channels)."""
        return _concat(
            _sequential(x, _conv("branch3x3", 384, 3, 2)),
            _sequential(
                x, _conv("branch3x3dbl_1", 64), _conv("branch3x3dbl_2", 96, 3), _conv("branch3x3dbl_3", 96, 3, 2)
            ),
            _max_pool_2x(x),
        )


class BlockC(nn.Module):
    """A block at 17x17, with 7x7 convolutions factored into 1x7 and 7x1.

    Attributes:
      inner: Number of channels within the branches.
    """

    inner: int

    @nn.compact
    def __call__(self, x):
        """Return the concatenated branches (batch, height, width, channels)."""
        n = self.inner
        return _concat(
            _sequential(x, _conv("branch1x1", 192)),
            _sequential(x, _conv("branch7x7_1", n), _conv("branch7x7_2", n, (1, 7)), _conv("branch7x7_3", 192, (7, 1))),
            _sequential(
                x,
                _conv("branch7x7dbl_1", n),
                _conv("branch7x7dbl_2", n, (7, 1)),
                _conv("branch7x7dbl_3", n, (1, 7)),
                _conv("branch7x7dbl_4", n, (7, 1)),
                _conv("branch7x7dbl_5", 192, (1, 7)),
            ),
            _sequential(x, _avg_pool, _conv("branch_pool", 192)),
        )


class BlockD(nn.Module):
    """A block from 17x17 to 8x8."""

    @nn.compact
    def __call__(self, x):
        """Return the concatenated branches (batch, height, width, channels)."""
        return _concat(
            _sequential(x, _conv("branch3x3_1", 192), _conv("branch3x3_2", 320, 3, 2)),
            _sequential(
                x,
                _conv("branch7x7x3_1", 192),
                _conv("branch7x7x3_2", 192, (1, 7)),
                _conv("branch7x7x3_3", 192, (7, 1)),
                _conv("branch7x7x3_4", 192, 3, 2),
            ),
            _max_pool_2x(x),
        )


class BlockE(nn.Module):
    """A block at 8x8, with forked branches.

    Attributes:
      pool: Pooling of the pooling branch.
    """

    pool: Callable

    @nn.compact
    def __call__(self, x):
        """Return the concatenated branches (batch, height, width, channels)."""
        single = _sequential(x, _conv("branch3x3_1", 384))
        double = _sequential(x, _conv("branch3x3dbl_1", 448), _conv("branch3x3dbl_2", 384, 3))
        return _concat(
            _sequential(x, _conv("branch1x1", 320)),
            *(_sequential(single, _conv(f"branch3x3_2{n}", 384, size)) for n, size in (("a", (1, 3)), ("b", (3, 1)))),
            *(
                _sequential(double, _conv(f"branch3x3dbl_3{n}", 384, size))
                for n, size in (("a", (1, 3)), ("b", (3, 1)))
            ),
            _sequential(x, self.pool, _conv("branch_pool", 192)),
        )


class Inception(nn.Module):
    """A network from (batch, 299, 299, 3) images in [-1, 1] to 2,048 features and 1,008 logits."""

    @nn.compact
    def __call__(self, x):
        """Return (features (batch, 2048), logits (batch, 1008))."""

        def unpadded(name, features, stride=1):
            layer = nn.Conv(features, (3, 3), (stride, stride), "VALID", name=name)
            return lambda x: nn.relu(layer(x))

        x = _sequential(
            x, unpadded("Conv2d_1a_3x3", 32, 2), unpadded("Conv2d_2a_3x3", 32), _conv("Conv2d_2b_3x3", 64, 3)
        )
        x = _sequential(_max_pool_2x(x), _conv("Conv2d_3b_1x1", 80), unpadded("Conv2d_4a_3x3", 192))
        x = _max_pool_2x(x)
        for name, pool_features in (("b", 32), ("c", 64), ("d", 64)):
            x = BlockA(pool_features, name=f"Mixed_5{name}")(x)
        x = BlockB(name="Mixed_6a")(x)
        for name, inner in (("b", 128), ("c", 160), ("d", 160), ("e", 192)):
            x = BlockC(inner, name=f"Mixed_6{name}")(x)
        x = BlockD(name="Mixed_7a")(x)
        x = BlockE(_avg_pool, name="Mixed_7b")(x)
        x = BlockE(_max_pool, name="Mixed_7c")(x)
        features = jnp.mean(x, axis=(1, 2))
        return features, nn.Dense(1008, name="fc")(features)


def prepare(images: np.ndarray) -> np.ndarray:
    """Resize (n, height, width, 3) uint8 to (n, 299, 299, 3) in [-1, 1), as the graph of the released file does."""
    return (resize(images) - np.float32(128)) * np.float32(1 / 128)


def resize(images: np.ndarray, side: int = SIDE) -> np.ndarray:
    """Resize to a square as TensorFlow 1's `resize_bilinear` does, bit for bit, without centering or antialiasing.

    NumPy rounds to float32 at every operation of TensorFlow's kernel; a compiled program might not.

    Args:
      images: (n, height, width, channels) pixels.
      side: Side of the result.
    """
    x = np.asarray(images, np.float32)
    for axis in (2, 1):  # within rows first, as the kernel does
        length = x.shape[axis]
        positions = np.arange(side, dtype=np.float32) * np.float32(np.float32(length) / np.float32(side))
        low = positions.astype(np.int64)
        weight = (positions - low.astype(np.float32)).reshape((-1,) + (1,) * (3 - axis))
        near, far = (np.take(x, np.minimum(low + n, length - 1), axis) for n in (0, 1))
        x = near + (far - near) * weight
    return x


def convert(arrays: Mapping[str, np.ndarray]) -> tuple[Inception, dict[str, Any]]:
    """Return the network for pytorch-fid's weights, and its parameters, with batch normalization folded in.

    Args:
      arrays: Weights by pytorch-fid's names.

    Raises:
      KeyError: if an array is missing.
    """
    params: dict[str, Any] = {"fc": {"kernel": arrays["fc.weight"].T, "bias": arrays["fc.bias"]}}
    for name in (name for name in arrays if name.endswith(".conv.weight")):
        layer = name.removesuffix(".conv.weight")
        weight, bias, mean, variance = (
            arrays[f"{layer}.bn.{part}"].astype(np.float64)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale = weight / np.sqrt(variance + EPSILON)
        subtree = params
        for part in layer.split("."):
            subtree = subtree.setdefault(part, {})
        subtree["kernel"] = (arrays[name].transpose(2, 3, 1, 0) * scale).astype(np.float32)
        subtree["bias"] = (bias - mean * scale).astype(np.float32)
    return Inception(), params
