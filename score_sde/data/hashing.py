"""Hashes of data sets, which tell whether two runs saw the same data."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from score_sde.data.examples import Arrays, Changed, Source
from score_sde.data.folders import Pictures
from score_sde.runtime.hashing import hash_file, hash_json, hash_pytree

NUM_HASHED = 64  # examples of a large data set
MAX_HASHED_BYTES = 2**30  # of integers in memory, all of which are hashed


def hash_dataset(source: Source) -> str:
    """Returns a hash of a data set's examples and labels, within seconds.

    For a folder it covers every file's name and size, and the contents of 64 files; for integers in memory all of them
    up to 1 GiB; otherwise 64 examples. Real numbers are rounded to three digits, since the last ones of a toy data set
    depend on the machine.
    """
    examples: Any = source.examples
    while isinstance(examples, Changed):
        examples = examples.examples
    number = len(examples)
    indices = np.unique(np.linspace(0, number - 1, min(number, NUM_HASHED)).astype(int))
    if isinstance(examples, Pictures):
        root = os.path.commonpath([path.parent for path in examples.paths])
        sizes = [[os.path.relpath(path, root), path.stat().st_size] for path in examples.paths]
        return hash_json(sizes, examples.labels, [hash_file(examples.paths[i]) for i in indices])
    if isinstance(examples, Arrays):
        images, labels = np.asarray(examples.images), np.asarray(examples.labels)
        whole = images.dtype.kind in "iu" and images.nbytes <= MAX_HASHED_BYTES
        hashed = images if whole else images[indices]
        return hash_json(number, hash_pytree([_rounded(hashed), labels.astype(np.int64)]))
    chosen = [examples[int(i)] for i in indices]
    return hash_json(number, hash_pytree([[_rounded(one["image"]), np.int64(one.get("label", 0))] for one in chosen]))


def hash_split(source: Source, data: Mapping[str, Any], split: str, number: int | None = None) -> str:
    """Returns a hash of a split's first images, computed from four of them and from the options that shape them.

    Args:
      source: The split.
      data: Options of the data set: name, kwargs, image_size, channels, crop.
      split: Name of the split.
      number: Number of images covered; None for all.
    """
    number = len(source.examples) if number is None else min(number, len(source.examples))
    chosen = {key: data[key] for key in ("name", "kwargs", "image_size", "channels", "crop")}
    images = [source.examples[i]["image"] for i in sorted({0, number // 3, number // 2, number - 1})]
    return hash_json(chosen, split, number, hash_pytree(images))


def _rounded(image: Any) -> np.ndarray:
    image = np.asarray(image)
    return image if image.dtype.kind in "iu" else image.astype(np.float16)
