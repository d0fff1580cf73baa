"""Data sets in memory or on disk, as sequences of examples {"image": an array, "label": int}, and maps of examples."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from score_sde.errors import UserError, not_none


class MissingSplit(UserError):
    """A data set without the requested split."""


class Examples(Protocol):
    """Random access to examples {"image": an array, "label": int}."""

    def __len__(self) -> int:
        """Return the number of examples."""
        ...

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        """Return the example at an index."""
        ...


class Dataset(NamedTuple):
    """One split of a data set: its examples, their shape, their pixel levels and their classes."""

    examples: Examples
    image_shape: tuple[int | None, ...]  # (height, width, channels), None for sizes that vary; (features,) for points
    levels: int | None  # pixels are integers 0 .. levels - 1; None for real numbers, which are not scaled
    num_classes: int
    class_names: tuple[str, ...] = ()  # one per class; () if the classes have no names
    ignored: Mapping[str, int] = {}  # numbers of files that were found and left out, by what they are
    files: tuple[Path, ...] = ()  # files of examples that are read one by one, such as records
    scaling: tuple[np.ndarray, np.ndarray] | None = None  # mean and standard deviation that `standardize` has applied

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one example, for a data set whose images all have one size."""
        return tuple(not_none(n) for n in self.image_shape)

    @property
    def class_counts(self) -> np.ndarray | None:
        """Number of examples of each class, (num_classes,); None if the labels are only known example by example."""
        labels = getattr(source(self.examples), "labels", None)
        return None if labels is None else np.bincount(np.asarray(labels, int), minlength=self.num_classes)


def standardize(dataset: Dataset, mean: Any, std: Any) -> Dataset:
    """Return real-valued data with their mean subtracted, divided by their standard deviation; `scaling` keeps both."""
    mean, std = (np.asarray(value, np.float64).reshape(dataset.event_shape) for value in (mean, std))

    def transform(example: dict[str, Any]) -> dict[str, Any]:
        return example | {"image": ((example["image"] - mean) / std).astype(np.float32)}

    return dataset._replace(examples=MappedDataset(dataset.examples, transform), scaling=(mean, std))


def mean_and_std(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Compute the mean and standard deviation of each feature in float64; a constant feature gets 1."""
    examples = load_examples(dataset)[0].astype(np.float64)
    std = examples.std(axis=0)
    return examples.mean(axis=0), np.where(std > 0, std, 1.0)


def source(examples: Any) -> Any:
    """Return the examples below all transforms."""
    while isinstance(examples, MappedDataset):
        examples = examples.examples
    return examples


def check_test_labels(name: str, train: np.ndarray, test: np.ndarray) -> int:
    """Return the number of classes, one more than the highest training label.

    Raises:
      UserError: if a test label is higher.
    """
    num_classes = int(train.max()) + 1
    if test.max() >= num_classes:
        raise UserError(
            f"{name}: expected test labels below {num_classes}, the number of classes of the training split, got "
            f"{test.max()}"
        )
    return num_classes


def load_examples(dataset: Dataset, limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Load the first examples of a data set into memory.

    Args:
      dataset: Data set.
      limit: Maximum number of examples; None loads all.

    Returns:
      Images (n, *image_shape) and labels (n,).
    """
    number = len(dataset.examples) if limit is None else min(limit, len(dataset.examples))
    examples = [dataset.examples[i] for i in range(number)]
    return np.stack([example["image"] for example in examples]), np.array([example["label"] for example in examples])


class Arrays:
    """Examples from arrays in memory."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, exact: bool = True):
        """Pair images, (n, *image_shape), with labels, (n,); `exact` is False if last digits depend on the machine."""
        self.images, self.labels, self.exact = images, labels, exact

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return the example at an index."""
        return {"image": self.images[index], "label": int(self.labels[index])}


class MappedDataset:
    """Examples to which a transform is applied on access."""

    def __init__(self, examples: Examples, transform: Callable[[dict[str, Any]], dict[str, Any]]):
        """Apply `transform`, a map of one example, to `examples`."""
        self.examples, self.transform = examples, transform

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return the transformed example at an index."""
        return self.transform(self.examples[index])


def pad_image(example: dict[str, Any], size: int) -> dict[str, Any]:
    """Pad the image with level 0, evenly on opposite sides, to size x size."""
    margins = [size - n for n in example["image"].shape[:2]]
    widths = [(margin // 2, margin - margin // 2) for margin in margins]
    return example | {"image": np.pad(example["image"], [*widths, (0, 0)])}


def crop_image(example: dict[str, Any], size: int) -> dict[str, Any]:
    """Crop the image to a square about its center and resize it to size x size with a Lanczos filter."""
    image = np.asarray(example["image"])
    side = min(image.shape[:2])
    top, left = ((n - side) // 2 for n in image.shape[:2])
    square = image[top : top + side, left : left + side]
    if side != size:
        # Pillow resizes images of 1, 3 or 4 channels. The channels of other images are resized one by one.
        channels = square.shape[-1]
        planes = [square] if channels in (3, 4) else [square[..., n] for n in range(channels)]
        resized = [Image.fromarray(plane).resize((size, size), Image.Resampling.LANCZOS) for plane in planes]
        square = np.concatenate([np.asarray(plane).reshape(size, size, -1) for plane in resized], axis=-1)
    return example | {"image": square}


def add_label(example: dict[str, Any]) -> dict[str, Any]:
    """Return an example without a label as one of class 0."""
    return {"image": example["image"], "label": 0}


def split_indices(split: str, count: int, test_share: float) -> np.ndarray:
    """Return the sorted indices of a split; the test split is a fixed random subset of the examples.

    Args:
      split: "train" or "test".
      count: Number of examples in both splits.
      test_share: Fraction of examples in the test split.

    Raises:
      UserError: if test_share is out of range or leaves a split empty.
    """
    if not isinstance(test_share, int | float) or not 0 < test_share < 1:
        raise UserError(f"data: expected 0 < test_share < 1, got {test_share!r}", "test_share")
    held_out = round(count * test_share)
    if not 0 < held_out < count:
        raise UserError(f"data: test_share={test_share} of {count} examples leaves a split empty", "test_share")
    order = np.random.default_rng(0).permutation(count)
    return np.sort(order[:held_out] if split == "test" else order[held_out:])
