"""Where data comes from. A source is random access to `{"image": uint8 (height, width, channels), "label": int}`.

Or, for data that are not images, to `{"image": float32 (features,), ...}`. A new one is a function (split, path) ->
Source and an entry of `SOURCES`; what else it takes is `--config.data.kwargs`.
"""

import gzip
import os
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from score_sde.data import toys
from score_sde.errors import UserError, build

SPLITS = ("train", "test")


class Source(NamedTuple):
    """Images with labels, and what has to be known about them."""

    examples: Sequence[dict[str, Any]]  # len() and [i] -> {"image": an array of image_shape, "label": int}
    image_shape: tuple[int, ...]  # (height, width, channels); (features,) where the data are not images
    levels: int | None  # pixels are integers 0 .. levels - 1; None: real numbers, taken as they are
    num_classes: int


class Arrays:
    """A sequence of examples over arrays in memory: images (n, height, width, channels), labels (n,)."""

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], "label": int(self.labels[index])}


class Padded:
    """A sequence of examples whose images are padded with the level 0, evenly on both sides, to size x size."""

    def __init__(self, examples: Sequence[dict[str, Any]], size: int):
        self.examples, self.size = examples, size

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self.examples[index]
        margins = [self.size - n for n in example["image"].shape[:2]]
        pads = [(margin // 2, margin - margin // 2) for margin in margins]
        return example | {"image": np.pad(example["image"], [*pads, (0, 0)])}


def load(
    name: str,
    split: str,
    image_size: int,
    channels: int,
    path: str = "",
    kwargs: Mapping[str, Any] | None = None,
) -> Source:
    """Opens a data set.

    Args:
      name: a key of `SOURCES`.
      split: "train" or "test".
      image_size: height and width that the network gets; smaller images are padded to it. 0: the data are not images.
      channels: what the images must have; the number of features of data that are not images.
      path: the folder the data set is in; "" is its usual place.
      kwargs: what the source takes beside these.

    Raises:
      UserError: the name or split is unknown, the data set is missing, or its images don't fit.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    given = {"split": split, "path": path} | dict(kwargs or {})
    source = build("data set", SOURCES, name, given, "--config.data")
    if image_size == 0 or len(source.image_shape) == 1:
        expected = (channels,) if image_size == 0 else (image_size, image_size, channels)
        if source.image_shape != expected:
            raise UserError(
                f"{name}: the data have the shape {source.image_shape}, not {expected} (set "
                "--config.data.channels, and --config.data.image_size, to 0 for data that are not images)"
            )
        return source
    height, width, found = source.image_shape
    if found != channels:
        raise UserError(f"{name}: the images have {found} channels, not {channels} (set --config.data.channels)")
    if max(height, width) > image_size:
        raise UserError(
            f"{name}: the images are {height}x{width}, larger than {image_size} (set --config.data.image_size)"
        )
    if (height, width) == (image_size, image_size):
        return source
    shape = (image_size, image_size, channels)
    return source._replace(examples=Padded(source.examples, image_size), image_shape=shape)


def digits(split: str, path: str = "") -> Source:
    """The UCI handwritten digits that ship with scikit-learn: 1,797 images, 8x8, 17 grey levels; 1,500 train, 297 test.

    The split is a fixed permutation: the file is ordered by writer, so its last images are of other hands.
    """
    from sklearn.datasets import load_digits

    if path:
        raise UserError(f"digits ships with scikit-learn and is not read from a folder, got --config.data.path={path}")
    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.images))
    chosen = order[:1500] if split == "train" else order[1500:]
    images = bunch.images[chosen].astype(np.uint8)[..., None]
    return Source(Arrays(images, bunch.target[chosen]), image_shape=(8, 8, 1), levels=17, num_classes=10)


def toy(split: str, path: str, draw: toys.Draw, num_examples: int) -> Source:
    """Points drawn once from a fixed seed: num_examples to train on, as many as that and at most 10,000 to test."""
    if path:
        raise UserError(f"toys are drawn, not read from a folder, got --config.data.path={path}")
    if num_examples < 1:
        raise UserError(f"a toy needs num_examples >= 1, got {num_examples} (set --config.data.kwargs.num_examples)")
    train = split == "train"
    rng = np.random.default_rng(0 if train else 1)
    points, labels = draw(rng, num_examples if train else min(num_examples, 10_000))
    return Source(
        Arrays(points.astype(np.float32), labels), points.shape[1:], levels=None, num_classes=labels.max() + 1
    )


def mixture(split: str, path: str, means, stds, weights=(), num_examples: int = 10_000) -> Source:
    """A Gaussian mixture in any dimension (`toys.draw_mixture`)."""
    return toy(split, path, toys.draw_mixture(means, stds, weights), num_examples)


def two_moons(split: str, path: str, noise: float = 0.05, num_examples: int = 10_000) -> Source:
    """`toys.draw_two_moons`."""
    return toy(split, path, toys.draw_two_moons(noise), num_examples)


def swiss_roll(split: str, path: str, noise: float = 0.03, num_examples: int = 10_000) -> Source:
    """`toys.draw_swiss_roll`."""
    return toy(split, path, toys.draw_swiss_roll(noise), num_examples)


def checkerboard(split: str, path: str, num_examples: int = 10_000) -> Source:
    """`toys.draw_checkerboard`."""
    return toy(split, path, toys.draw_checkerboard(), num_examples)


def idx(split: str, path: str) -> Source:
    """Any set in MNIST's IDX format: a folder with train-images-idx3-ubyte, t10k-labels-idx1-ubyte, ..., or .gz."""
    prefix = "train" if split == "train" else "t10k"
    images = read_idx(_find_idx(path, f"{prefix}-images-idx3-ubyte"))[..., None]
    labels = read_idx(_find_idx(path, f"{prefix}-labels-idx1-ubyte"))
    if len(images) != len(labels):
        raise UserError(f"idx: {len(images)} images but {len(labels)} labels in {path} (set --config.data.path)")
    return Source(Arrays(images, labels), images.shape[1:], levels=256, num_classes=int(labels.max()) + 1)


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
        raise UserError(f"idx: {path} is no IDX file of unsigned bytes, or is damaged (set --config.data.path)")
    data = np.frombuffer(raw, np.uint8, offset=4 + 4 * rank)
    if data.size != np.prod(shape):
        raise UserError(f"idx: {path} is cut short: its header says {shape}, it holds {data.size} bytes")
    return data.reshape(shape)


def _find_idx(folder: str, name: str) -> Path:
    for candidate in (Path(folder) / name, Path(folder) / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise UserError(f"idx: no {name} or {name}.gz in {folder or 'the folder'!r} (set --config.data.path to the folder)")


def tfds(split: str, path: str, name: str) -> Source:
    """An image classification set of TensorFlow Datasets, prepared as array_record; TensorFlow itself is not needed."""
    import tensorflow_datasets

    builder = tensorflow_datasets.builder(name, data_dir=path or None)
    folder = Path(os.fspath(builder.data_path))
    root = path or folder.parents[1]
    command = f"tfds build {name} --file_format=array_record --data_dir={root}"
    if not (folder / "dataset_info.json").is_file():
        raise UserError(
            f"{name} is not prepared in {folder}. On a machine with network access and TensorFlow "
            f"(pip install tensorflow-cpu) run `{command}`; without network access here, run it there and copy "
            "the folder (set --config.data.path to the folder above it)"
        )
    if builder.info.file_format.value != "array_record":
        raise UserError(f"{name} in {folder} is {builder.info.file_format.value}, not array_record: run `{command}`")
    info = builder.info.features
    return Source(builder.as_data_source(split), info["image"].shape, 256, info["label"].num_classes)


def _idx_or_tfds(split: str, path: str, name: str) -> Source:
    """IDX files where the folder has them, TensorFlow Datasets otherwise."""
    folder = Path(path)
    if path and (any(folder.glob("*-idx3-ubyte")) or any(folder.glob("*-idx3-ubyte.gz"))):
        return idx(split, path)
    if path and not (folder / name).is_dir():
        raise UserError(
            f"{name}: {path} holds neither IDX files (train-images-idx3-ubyte[.gz], ...) nor a TensorFlow Datasets "
            f"folder {name}; on a machine with network access and TensorFlow (pip install tensorflow-cpu) run "
            f"`tfds build {name} --file_format=array_record --data_dir={path}` (or set --config.data.path)"
        )
    return tfds(split, path, name)


SOURCES: dict[str, Callable[..., Source]] = {
    "digits": digits,
    "mixture": mixture,
    "two_moons": two_moons,
    "swiss_roll": swiss_roll,
    "checkerboard": checkerboard,
    "idx": idx,
    "mnist": partial(_idx_or_tfds, name="mnist"),
    "fashion_mnist": partial(_idx_or_tfds, name="fashion_mnist"),
    "cifar10": partial(tfds, name="cifar10"),
}
