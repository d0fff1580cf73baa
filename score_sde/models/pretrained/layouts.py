"""Mappings from the layers of other libraries to layers of this project.

A `WeightMapping` makes one parameter from named arrays of another library. A family lists layers as (our name, their
name, parameters), and the parameters of a layer as {path: (their name, transformation)}.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np

Path = tuple[str, ...]


class WeightMapping(NamedTuple):
    """Names of the arrays that a parameter is made from, and the function that makes it from them."""

    names: tuple[str, ...]
    transform: Callable[..., np.ndarray]


def same(array):
    """Return the array unchanged."""
    return array


def convolution(kernel):
    """Transpose a kernel (out, in, height, width) to (height, width, in, out)."""
    return kernel.transpose(2, 3, 1, 0)


def transposed(kernel):
    """Transpose a kernel (out, in) to (in, out)."""
    return kernel.T


def pointwise(kernel):
    """Reshape a kernel (in, out) to a 1x1 convolution (1, 1, in, out)."""
    return kernel[None, None]


def linear_as_convolution(kernel):
    """Transpose a kernel (out, in) or (out, in, 1, 1) to a 1x1 convolution (1, 1, in, out)."""
    return kernel.reshape(kernel.shape[:2]).T[None, None]


def split_qkv(array, part: int, heads: int, interleaved: bool):
    """Return the rows of query, key or value from fused rows.

    Args:
      array: Fused rows, (3 out, ...).
      part: 0 for query, 1 for key, 2 for value.
      heads: Number of attention heads.
      interleaved: Whether rows are ordered (heads, channels, 3), or (heads, 3, channels).
    """
    shape = (heads, -1, 3) if interleaved else (heads, 3, -1)
    rows = array.reshape(*shape, *array.shape[1:])
    return (rows[:, :, part] if interleaved else rows[:, part]).reshape(-1, *array.shape[1:])


def layer(kind: Callable, weight: str = "weight", bias: str | None = "bias") -> dict[Path, tuple[str, Callable]]:
    """Return the parameters of a layer with a kernel, transformed by `kind`, and a bias."""
    parameters = {("kernel",): (weight, kind)}
    return parameters | ({("bias",): (bias, same)} if bias else {})


NORM = {("scale",): ("weight", same), ("bias",): ("bias", same)}
CONV, DENSE = layer(convolution), layer(transposed)


def nested(layers: Mapping[str, tuple[str, Mapping]]) -> dict[Path, tuple[str, Callable]]:
    """Return the parameters of a block from its layers, {ours: (theirs, parameters)}."""
    return {
        (ours, *path): (f"{theirs}.{name}", transform)
        for ours, (theirs, parameters) in layers.items()
        for path, (name, transform) in parameters.items()
    }


def fused_attention(theirs: str, heads: int, interleaved: bool = True) -> dict[Path, WeightMapping]:
    """Return the mappings of query, key and value from one 1x1 convolution `theirs`, (3 channels, channels, 1, 1)."""
    mappings: dict[Path, WeightMapping] = {}
    for part, ours in enumerate(("query", "key", "value")):
        split = partial(split_qkv, part=part, heads=heads, interleaved=interleaved)
        mappings[ours, "kernel"] = WeightMapping(
            (f"{theirs}.weight",), lambda w, split=split: linear_as_convolution(split(w))
        )
        mappings[ours, "bias"] = WeightMapping((f"{theirs}.bias",), split)
    return mappings


def weight_mappings(layers: Iterable[tuple[str, str, Mapping]]) -> dict[Path, WeightMapping]:
    """Return the mappings of all parameters.

    Args:
      layers: (ours, theirs, parameters) of each layer or block. Our name may be nested, as "noise/dense_0". The entries
        of `parameters` are (name, transformation) or a `WeightMapping`.
    """
    mappings = {}
    for ours, theirs, parameters in layers:
        for path, entry in parameters.items():
            if not isinstance(entry, WeightMapping):
                entry = WeightMapping((f"{theirs}.{entry[0]}",), entry[1])
            mappings[(*ours.split("/"), *path)] = entry
    return mappings
