"""Layouts of other libraries' layers: for each parameter the names of its arrays and their rearrangement.

A family lists its layers as (our name, their name, parameters).
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np

Path = tuple[str, ...]


class WeightMapping(NamedTuple):
    """The names of the arrays that a parameter is made of, and the function of these arrays."""

    names: tuple[str, ...]
    make: Callable[..., np.ndarray]


def same(array):
    """Return the array."""
    return array


def convolution(kernel):
    """Transpose (out, in, height, width) to (height, width, in, out)."""
    return kernel.transpose(2, 3, 1, 0)


def transposed(kernel):
    """Transpose (out, in) to (in, out)."""
    return kernel.T


def pointwise(kernel):
    """Reshape (in, out) to a 1x1 convolution (1, 1, in, out)."""
    return kernel[None, None]


def linear_as_convolution(kernel):
    """Transpose (out, in) to a 1x1 convolution (1, 1, in, out)."""
    return kernel.reshape(kernel.shape[:2]).T[None, None]


def split_qkv(array, part: int, heads: int, interleaved: bool):
    """Return query, key or value (part 0, 1, 2) of rows (3 out, ...), in order (heads, 3, channels) or interleaved."""
    shape = (heads, -1, 3) if interleaved else (heads, 3, -1)
    parts = array.reshape(*shape, *array.shape[1:])
    return (parts[:, :, part] if interleaved else parts[:, part]).reshape(-1, *array.shape[1:])


def layer(kind: Callable, weight: str = "weight", bias: str | None = "bias") -> dict[Path, tuple[str, Callable]]:
    """Return the parameters of a layer with a kernel, rearranged by `kind`, and a bias."""
    parameters = {("kernel",): (weight, kind)}
    return parameters | ({("bias",): (bias, same)} if bias else {})


NORM = {("scale",): ("weight", same), ("bias",): ("bias", same)}
CONV, DENSE = layer(convolution), layer(transposed)


def nested(parts: Mapping[str, tuple[str, Mapping]]) -> dict[Path, tuple[str, Callable]]:
    """Return the parameters of a block of layers {our name: (their name, parameters)}."""
    return {
        (ours, *path): (f"{theirs}.{name}", make)
        for ours, (theirs, parameters) in parts.items()
        for path, (name, make) in parameters.items()
    }


def fused_attention(theirs: str, heads: int, interleaved: bool = True) -> dict[Path, WeightMapping]:
    """Return query, key and value from a single 1x1 convolution (3 channels, channels, 1, 1)."""
    sources: dict[Path, WeightMapping] = {}
    for part, ours in enumerate(("query", "key", "value")):
        cut = partial(split_qkv, part=part, heads=heads, interleaved=interleaved)
        sources[ours, "kernel"] = WeightMapping((f"{theirs}.weight",), lambda w, cut=cut: linear_as_convolution(cut(w)))
        sources[ours, "bias"] = WeightMapping((f"{theirs}.bias",), cut)
    return sources


def weight_mappings(layers: Iterable[tuple[str, str, Mapping]]) -> dict[Path, WeightMapping]:
    """Return the mappings of all parameters.

    Args:
      layers: (our name, their name, parameters) of each layer or block. Our name may contain a path, "noise/dense_0".
        A parameter's entry is (name, function) or a `WeightMapping`.
    """
    sources = {}
    for ours, theirs, parameters in layers:
        for path, entry in parameters.items():
            if not isinstance(entry, WeightMapping):
                entry = WeightMapping((f"{theirs}.{entry[0]}",), entry[1])
            sources[(*ours.split("/"), *path)] = entry
    return sources
