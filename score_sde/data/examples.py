"""Sequences of examples, {"image": an array, "label": int}, and what is done to their images."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from score_sde.errors import not_none


class Examples(Protocol):
    """Random access to {"image": an array, "label": int}."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Any]: ...


class Source(NamedTuple):
    """Images with labels, and what has to be known about them."""

    examples: Examples  # whose images are arrays of image_shape
    image_shape: tuple[int | None, ...]  # (height, width, channels); (features,) where the data are not images
    levels: int | None  # pixels are integers 0 .. levels - 1; None: real numbers, taken as they are
    num_classes: int

    @property
    def event_shape(self) -> tuple[int, ...]:
        """image_shape, of a source whose images all have one size."""
        return tuple(not_none(n) for n in self.image_shape)


def images_of(source: Source, limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The first examples of a source, at most so many (None: all): images (n, *image_shape), labels (n,)."""
    number = len(source.examples) if limit is None else min(limit, len(source.examples))
    examples = [source.examples[i] for i in range(number)]
    return np.stack([example["image"] for example in examples]), np.array([example["label"] for example in examples])


class Arrays:
    """A sequence of examples over arrays in memory: images (n, height, width, channels), labels (n,)."""

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], "label": int(self.labels[index])}


class Changed:
    """A sequence of examples, each changed when it is asked for."""

    def __init__(self, examples: Examples, change: Callable[[dict[str, Any]], dict[str, Any]]):
        self.examples, self.change = examples, change

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.change(self.examples[index])


def pad(example: dict[str, Any], size: int) -> dict[str, Any]:
    """The image padded with the level 0, evenly on both sides, to size x size."""
    margins = [size - n for n in example["image"].shape[:2]]
    pads = [(margin // 2, margin - margin // 2) for margin in margins]
    return example | {"image": np.pad(example["image"], [*pads, (0, 0)])}


def crop(example: dict[str, Any], size: int) -> dict[str, Any]:
    """Crops the image to a square about its center and resizes it to size x size by a Lanczos filter."""
    image = np.asarray(example["image"])
    side = min(image.shape[:2])
    top, left = ((n - side) // 2 for n in image.shape[:2])
    square = image[top : top + side, left : left + side]
    if side != size:
        # Pillow takes 1, 3 or 4 channels; of other numbers each is resized by itself.
        channels = square.shape[-1]
        parts = [square] if channels in (3, 4) else [square[..., n] for n in range(channels)]
        resized = [Image.fromarray(part).resize((size, size), Image.Resampling.LANCZOS) for part in parts]
        square = np.concatenate([np.asarray(part).reshape(size, size, -1) for part in resized], axis=-1)
    return example | {"image": square}


def without_label(example: dict[str, Any]) -> dict[str, Any]:
    """The image of an example that has no label, as of one class."""
    return {"image": example["image"], "label": 0}
