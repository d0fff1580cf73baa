"""Hashes of data sets, to check that two runs have the same data."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from score_sde.data.examples import Arrays, Dataset, MappedDataset
from score_sde.data.folders import ImageFiles
from score_sde.runtime.hashing import hash_file, hash_json, hash_pytree

NUM_HASHED = 64  # number of hashed examples of a large data set
MAX_HASHED_BYTES = 2**30  # size up to which integers in memory are all hashed


def hash_dataset(dataset: Dataset) -> str:
    """Return a hash of the examples and labels of a data set, within seconds.

    For a folder the hash covers the names and sizes of all files and the contents of 64 files. For integers in memory
    it covers all of them up to 1 GiB. Otherwise it covers 64 examples. Real numbers are rounded to three digits,
    because the last digits of a toy data set depend on the machine.
    """
    examples: Any = dataset.examples
    while isinstance(examples, MappedDataset):
        examples = examples.examples
    number = len(examples)
    indices = np.unique(np.linspace(0, number - 1, min(number, NUM_HASHED)).astype(int))
    if isinstance(examples, ImageFiles):
        root = os.path.commonpath([path.parent for path in examples.paths])
        sizes = [[os.path.relpath(path, root), path.stat().st_size] for path in examples.paths]
        return hash_json(sizes, examples.labels, [hash_file(examples.paths[i]) for i in indices])
    if isinstance(examples, Arrays):
        images, labels = np.asarray(examples.images), np.asarray(examples.labels)
        hash_all = images.dtype.kind in "iu" and images.nbytes <= MAX_HASHED_BYTES
        hashed = images if hash_all else images[indices]
        return hash_json(number, hash_pytree([_rounded(hashed), labels.astype(np.int64)]))
    chosen = [examples[int(i)] for i in indices]
    leaves = [[_rounded(example["image"]), np.int64(example.get("label", 0))] for example in chosen]
    return hash_json(number, hash_pytree(leaves))


def hash_split(dataset: Dataset, data: Mapping[str, Any], split: str, number: int | None = None) -> str:
    """Return a hash of the first images of a split, from four of them and the options of the data set.

    Args:
      dataset: Split of the data set.
      data: Options of the data set: name, kwargs, image_size, channels, crop.
      split: Name of the split.
      number: Number of images; None for all.
    """
    number = len(dataset.examples) if number is None else min(number, len(dataset.examples))
    options = {key: data[key] for key in ("name", "kwargs", "image_size", "channels", "crop")}
    images = [dataset.examples[i]["image"] for i in sorted({0, number // 3, number // 2, number - 1})]
    return hash_json(options, split, number, hash_pytree(images))


def _rounded(image: Any) -> np.ndarray:
    image = np.asarray(image)
    return image if image.dtype.kind in "iu" else image.astype(np.float16)
