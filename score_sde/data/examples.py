"""Data sets in memory or on disk, as sequences of examples {"image": an array, "label": int}, and maps of examples."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from score_sde.errors import not_none


class Examples(Protocol):
    """Random access to examples {"image": an array, "label": int}."""

    def __len__(self) -> int:
        """Return the number of examples."""
        ...

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        """Return the example at an index."""
        ...


class Dataset(NamedTuple):
    """One split of a data set: its examples, their shape, their pixel levels and the number of classes."""

    examples: Examples
    image_shape: tuple[int | None, ...]  # (height, width, channels), None for sizes that vary; (features,) for points
    levels: int | None  # pixels are integers 0 .. levels - 1; None for real numbers, which are not scaled
    num_classes: int

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one example, for a data set whose images all have one size."""
        return tuple(not_none(n) for n in self.image_shape)


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

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        """Pair images, (n, *image_shape), with labels, (n,)."""
        self.images, self.labels = images, labels

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
