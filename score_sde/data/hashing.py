"""Hashes of data sets, to check that two runs have the same data."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from score_sde.data.examples import Arrays, Dataset, source
from score_sde.data.folders import ImageFiles
from score_sde.runtime.hashing import hash_files, hash_json, hash_pytree


def hash_dataset(dataset: Dataset) -> str:
    """Return a hash of all examples and labels of a data set.

    The contents of files are hashed when they change. The numbers of a toy data set are rounded to three digits,
    because their last digits depend on the machine.
    """
    examples = source(dataset.examples)
    if isinstance(examples, ImageFiles):
        root = os.path.commonpath([path.parent for path in examples.paths])
        names = [os.path.relpath(path, root) for path in examples.paths]
        return hash_json(names, examples.labels, examples.sha)
    if isinstance(examples, Arrays):
        images = np.asarray(examples.images)
        rounded = images if examples.exact else images.astype(np.float16)
        return hash_json(images.shape, hash_pytree([rounded, np.asarray(examples.labels).astype(np.int64)]))
    if dataset.files:
        return hash_json(len(examples), hash_files(dataset.files))
    return hash_json([hash_pytree(examples[i]) for i in range(len(examples))])


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
