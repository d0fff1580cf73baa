"""Short hashes of values, arrays, files and data sets."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from score_sde.data import Source
from score_sde.data.examples import Arrays, Changed
from score_sde.data.folders import Pictures

LOOKED_AT = 64  # examples of a large data set
WHOLE = 2**30  # bytes of integers in memory that are hashed without exception


def of_values(*values: Any) -> str:
    """Returns a hash of JSON-serializable values."""
    return _short(hashlib.sha256(json.dumps(values, sort_keys=True).encode()))


def of_arrays(tree: Any) -> str:
    """Returns a hash of the leaves of a pytree; names are ignored."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return _short(digest)


def of_file(path: Path) -> str:
    """Returns a hash of a file's contents."""
    with path.open("rb") as file:
        return _short(hashlib.file_digest(file, "sha256"))


def of_data(source: Source) -> str:
    """Hash of a data set's examples and labels, in seconds.

    Of a folder it covers every file's name and size, and the contents of 64 files; of integers in memory all of them up
    to 1 GiB; of everything else 64 examples. Real numbers count to three digits, as a toy's last ones are a machine's.
    """
    examples: Any = source.examples
    while isinstance(examples, Changed):
        examples = examples.examples
    number = len(examples)
    places = np.unique(np.linspace(0, number - 1, min(number, LOOKED_AT)).astype(int))
    if isinstance(examples, Pictures):
        root = os.path.commonpath([path.parent for path in examples.paths])
        sizes = [[os.path.relpath(path, root), path.stat().st_size] for path in examples.paths]
        return of_values(sizes, examples.labels, [of_file(examples.paths[i]) for i in places])
    if isinstance(examples, Arrays):
        images, labels = np.asarray(examples.images), np.asarray(examples.labels)
        whole = images.dtype.kind in "iu" and images.nbytes <= WHOLE
        return of_values(number, of_arrays([_rounded(images if whole else images[places]), labels.astype(np.int64)]))
    shown = [examples[int(i)] for i in places]
    return of_values(number, of_arrays([[_rounded(one["image"]), np.int64(one.get("label", 0))] for one in shown]))


def _rounded(image: Any) -> np.ndarray:
    image = np.asarray(image)
    return image if image.dtype.kind in "iu" else image.astype(np.float16)


def _short(digest) -> str:
    return digest.hexdigest()[:16]
