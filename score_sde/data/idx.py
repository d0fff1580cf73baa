"""Data sets in the IDX format of MNIST."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from score_sde.data.examples import Arrays, Dataset, MissingSplit, check_test_labels
from score_sde.errors import UserError


def idx(split: str, path: str) -> Dataset:
    """Load a split of a data set in the IDX format of MNIST.

    Args:
      split: "train" or "test".
      path: Folder with train-images-idx3-ubyte, t10k-labels-idx1-ubyte, ..., which may be gzipped (.gz).

    Raises:
      UserError: if a file is missing or damaged, or there is not one label per image.
    """
    prefix = "train" if split == "train" else "t10k"
    images = read_idx(_find_idx(path, f"{prefix}-images-idx3-ubyte"))
    labels = read_idx(_find_idx(path, f"{prefix}-labels-idx1-ubyte"))
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels) or not images.size:
        raise UserError(
            f"idx: expected images (n, height, width) and labels (n,) in {path}, got {images.shape} and {labels.shape}",
            "path",
        )
    train_labels = labels if split == "train" else read_idx(_find_idx(path, "train-labels-idx1-ubyte"))
    num_classes = check_test_labels(f"idx: {path}", train_labels, labels)
    return Dataset(Arrays(images[..., None], labels), (*images.shape[1:], 1), 256, num_classes)


def read_idx(path: Path) -> np.ndarray:
    """Read an IDX file of unsigned bytes, gzipped or not: 0, 0, type, rank, sizes, data (LeCun et al.).

    Raises:
      UserError: if the file has another format or is damaged.
    """
    raw = path.read_bytes()
    try:
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
        zero, kind, rank = struct.unpack_from(">HBB", raw)
        shape = struct.unpack_from(f">{rank}I", raw, 4)
    except (OSError, EOFError, zlib.error, struct.error):
        zero = kind = None
    if zero != 0 or kind != 8:
        raise UserError(f"idx: {path} is not an IDX file of unsigned bytes, or is damaged", "path")
    data = np.frombuffer(raw, np.uint8, offset=4 + 4 * rank)
    if data.size != math.prod(shape):
        raise UserError(f"idx: {path} is cut short: expected data of shape {shape}, got {data.size} bytes")
    return data.reshape(shape)


def _find_idx(folder: str, name: str) -> Path:
    for candidate in (Path(folder) / name, Path(folder) / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise MissingSplit(f"idx: no {name} or {name}.gz in the folder {folder or '.'!r}", "path")
