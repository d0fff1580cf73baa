"""What images are compared in: pixels, a small classifier's features, Inception's, DINOv2's."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np

from score_sde.data import Dataset, to_levels, to_unit_range
from score_sde.errors import UserError, lookup
from score_sde.evaluation.extractors import dinov2, inception, weights
from score_sde.evaluation.extractors.small_classifier import fitted
from score_sde.runtime.hashing import hash_file, hash_json

LARGEST = 4096  # pixels whose covariance is taken
LIBRARIES = {"inception": inception, "dinov2": dinov2}  # networks whose weights others trained


class Extractor(NamedTuple):
    """From images to features."""

    prepare: Callable[
        [np.ndarray], np.ndarray
    ]  # pixels (n, height, width, channels) -> what `apply` takes, on the host
    apply: Callable[[Any, jax.Array], tuple[jax.Array, jax.Array]]  # (params, prepared) -> features (n, d), logits
    params: Any
    fingerprint: str


def pixels(source: Dataset, data: Mapping[str, Any], file: str = "") -> Extractor:
    """The pixels themselves, on a scale from -1 to 1."""

    def apply(params, images):
        flat = to_unit_range(images, source.levels).reshape(len(images), -1)
        return flat, flat[:, :0]

    return Extractor(lambda images: images, apply, {}, hash_json("pixels", source.levels))


def classifier(source: Dataset, data: Mapping[str, Any], file: str = "") -> Extractor:
    """A small classifier's features and logits; it is trained once a data set."""
    made = fitted(source, data)

    def apply(params, images):
        return made.module.apply({"params": params}, to_unit_range(images, source.levels))

    return Extractor(lambda images: images, apply, made.params, made.fingerprint)


def of_library(source: Dataset, data: Mapping[str, Any], file: str, library: ModuleType) -> Extractor:
    """A network that others trained, shown grey images as colourless ones and any number of levels as 256."""
    path = weights.find(file, library)
    module, params = weights.load(path, library)

    def prepare(images):
        if source.levels != 256:
            images = to_levels(to_unit_range(images, source.levels), 256)
        return library.prepare(np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images)

    def apply(params, images):
        return module.apply({"params": params}, images)

    return Extractor(prepare, apply, params, hash_file(path))


# (the training split, config.data, the file of weights) -> Extractor
EXTRACTORS: dict[str, Callable[[Dataset, Mapping[str, Any], str], Extractor]] = {
    "classifier": classifier,
    "pixels": pixels,
} | {name: partial(of_library, library=library) for name, library in LIBRARIES.items()}


def choose(features: Sequence[str], source: Dataset, files: Mapping[str, str]) -> tuple[str, ...]:
    """The extractors that are asked for, or, where none are named, those that need no download and fit the images.

    Args:
      features: keys of `EXTRACTORS`, or none.
      source: the training split.
      files: weights of `LIBRARIES`, "" for their place in the cache.

    Raises:
      UserError: one is unknown, doesn't fit the images, or lacks its weights; or none is left.
    """
    channels = source.event_shape[-1]
    small, classes = np.prod(source.event_shape) <= LARGEST, source.num_classes > 1
    for name in features:
        lookup("features", EXTRACTORS, name)
        if name == "pixels" and not small:
            raise UserError(
                f"a covariance is taken of {LARGEST} pixels at most, not of {source.image_shape}", "features"
            )
        if name == "classifier" and not classes:
            raise UserError("the data have no classes to train a classifier on", "features")
        if name in LIBRARIES:
            if channels not in (1, 3):
                raise UserError(f"{name} sees photographs, not images of {channels} channels", "features")
            weights.find(files[name], LIBRARIES[name])
    chosen = tuple(features) or ("classifier",) * classes + ("pixels",) * bool(small)
    if not chosen:
        raise UserError(
            f"the images {source.image_shape} are too large to compare in pixels, and have no classes to train a "
            "classifier on",
            "features=inception",
            "features=dinov2",
            "image_size",
        )
    return chosen
