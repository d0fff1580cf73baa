"""How the layers of another library lie in ours: for each parameter of a layer, its name there and a rearrangement.

A `Source` is the names of the arrays that a parameter is made of, and how. A family lists layers, (ours, theirs, kind),
and for each kind its parameters.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np

Path = tuple[str, ...]


class Source(NamedTuple):
    """Where a parameter comes from."""

    names: tuple[str, ...]
    make: Callable[..., np.ndarray]  # of the named arrays


def same(array):
    return array


def convolution(kernel):
    """(out, in, height, width) -> (height, width, in, out)."""
    return kernel.transpose(2, 3, 1, 0)


def transposed(kernel):
    """(out, in) -> (in, out)."""
    return kernel.T


def pointwise(kernel):
    """(in, out) -> a 1x1 convolution (1, 1, in, out)."""
    return kernel[None, None]


def linear_as_convolution(kernel):
    """(out, in) -> a 1x1 convolution (1, 1, in, out)."""
    return kernel.reshape(kernel.shape[:2]).T[None, None]


def share(array, part: int, heads: int, interleaved: bool):
    """Query, key or value, part 0, 1 or 2, of rows (3 out, ...) that lie as (heads, 3, channels) or interleaved."""
    shape = (heads, -1, 3) if interleaved else (heads, 3, -1)
    parts = array.reshape(*shape, *array.shape[1:])
    return (parts[:, :, part] if interleaved else parts[:, part]).reshape(-1, *array.shape[1:])


def layer(kind: Callable, weight: str = "weight", bias: str | None = "bias") -> dict[Path, tuple[str, Callable]]:
    """A layer with a kernel, rearranged by `kind`, and a bias."""
    parameters = {("kernel",): (weight, kind)}
    return parameters | ({("bias",): (bias, same)} if bias else {})


NORM = {("scale",): ("weight", same), ("bias",): ("bias", same)}
CONV, DENSE = layer(convolution), layer(transposed)


def inside(parts: Mapping[str, tuple[str, Mapping]]) -> dict[Path, tuple[str, Callable]]:
    """A block of layers: {ours: (theirs, parameters)} to the block's parameters."""
    return {
        (ours, *path): (f"{theirs}.{name}", make)
        for ours, (theirs, parameters) in parts.items()
        for path, (name, make) in parameters.items()
    }


def fused_attention(theirs: str, heads: int, interleaved: bool = True) -> dict[Path, Source]:
    """Query, key and value of one 1x1 convolution `theirs`, (3 channels, channels, 1, 1)."""
    sources: dict[Path, Source] = {}
    for part, ours in enumerate(("query", "key", "value")):
        cut = partial(share, part=part, heads=heads, interleaved=interleaved)
        sources[ours, "kernel"] = Source((f"{theirs}.weight",), lambda w, cut=cut: linear_as_convolution(cut(w)))
        sources[ours, "bias"] = Source((f"{theirs}.bias",), cut)
    return sources


def sources_of(layers: Iterable[tuple[str, str, Mapping]]) -> dict[Path, Source]:
    """(ours, theirs, parameters) for each layer or block, to the sources of all parameters.

    ours may name a parameter inside a block, "noise/dense_0"; a parameter's entry is (name, make) or a `Source`.
    """
    sources = {}
    for ours, theirs, parameters in layers:
        for path, entry in parameters.items():
            if not isinstance(entry, Source):
                entry = Source((f"{theirs}.{entry[0]}",), entry[1])
            sources[(*ours.split("/"), *path)] = entry
    return sources
