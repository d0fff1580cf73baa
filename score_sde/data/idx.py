"""Data sets in MNIST's IDX format."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from score_sde.data.examples import Arrays, Source
from score_sde.errors import UserError


def idx(split: str, path: str) -> Source:
    """Any set in MNIST's IDX format: a folder with train-images-idx3-ubyte, t10k-labels-idx1-ubyte, ..., or .gz."""
    prefix = "train" if split == "train" else "t10k"
    images = read_idx(_find_idx(path, f"{prefix}-images-idx3-ubyte"))
    labels = read_idx(_find_idx(path, f"{prefix}-labels-idx1-ubyte"))
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels) or not images.size:
        raise UserError(
            f"idx: expected images (n, height, width) and a label for each in {path}, got {images.shape} "
            f"and {labels.shape}",
            "path",
        )
    return Source(Arrays(images[..., None], labels), (*images.shape[1:], 1), 256, int(labels.max()) + 1)


def read_idx(path: Path) -> np.ndarray:
    """The array of unsigned bytes in an IDX file, gzipped or not (LeCun's format: 0, 0, type, rank, sizes, data)."""
    raw = path.read_bytes()
    try:
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
        zero, kind, rank = struct.unpack_from(">HBB", raw)
        shape = struct.unpack_from(f">{rank}I", raw, 4)
    except (OSError, EOFError, zlib.error, struct.error):
        zero = kind = None
    if zero != 0 or kind != 8:
        raise UserError(f"idx: {path} is no IDX file of unsigned bytes, or is damaged", "path")
    data = np.frombuffer(raw, np.uint8, offset=4 + 4 * rank)
    if data.size != math.prod(shape):
        raise UserError(f"idx: {path} is cut short: its header says {shape}, it holds {data.size} bytes")
    return data.reshape(shape)


def _find_idx(folder: str, name: str) -> Path:
    for candidate in (Path(folder) / name, Path(folder) / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise UserError(f"idx: no {name} or {name}.gz in {folder or 'the folder'!r} (set --config.data.path to the folder)")
