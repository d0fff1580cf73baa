"""Sequences of examples, {"image": an array, "label": int}, and what is done to their images."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image


class Source(NamedTuple):
    """Images with labels, and what has to be known about them."""

    examples: Sequence[dict[str, Any]]  # len() and [i] -> {"image": an array of image_shape, "label": int}
    image_shape: tuple[int | None, ...]  # (height, width, channels); (features,) where the data are not images
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


class Cropped:
    """A sequence of examples whose images are cut to a square about their centre, and resized by a Lanczos filter."""

    def __init__(self, examples: Sequence[dict[str, Any]], size: int):
        self.examples, self.size = examples, size

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self.examples[index]
        image = np.asarray(example["image"])
        if image.shape[:2] == (self.size, self.size):
            return example
        side = min(image.shape[:2])
        top, left = ((n - side) // 2 for n in image.shape[:2])
        square = image[top : top + side, left : left + side]
        picture = Image.fromarray(square[..., 0] if image.shape[-1] == 1 else square)
        resized = np.asarray(picture.resize((self.size, self.size), Image.Resampling.LANCZOS))
        return example | {"image": resized.reshape(self.size, self.size, image.shape[-1])}


class Unlabelled:
    """A sequence of examples without labels, as of one class."""

    def __init__(self, examples: Sequence[dict[str, Any]]):
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.examples[index]["image"], "label": 0}
