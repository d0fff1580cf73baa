"""Feature extractors for the comparison of images: pixels, a small classifier, Inception and DINOv2."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np

from score_sde.data import Dataset, to_levels, to_unit_range
from score_sde.errors import UserError, lookup
from score_sde.evaluation.extractors import dinov2, inception, weights
from score_sde.evaluation.extractors.small_classifier import load_or_fit
from score_sde.runtime.hashing import hash_file, hash_json

MAX_PIXELS = 4096  # maximum dimension for a covariance of pixels
LIBRARIES = {"inception": inception, "dinov2": dinov2}  # networks with downloaded weights


class Extractor(NamedTuple):
    """A function from images to features.

    Attributes:
      prepare: Function from pixels (n, height, width, channels) to the input of `apply`, on the host.
      apply: Function (params, input) -> (features (n, d), logits (n, num_classes)).
      params: Parameters of the network.
      fingerprint: Hash of all that the features depend on besides the images.
    """

    prepare: Callable[[np.ndarray], np.ndarray]
    apply: Callable[[Any, jax.Array], tuple[jax.Array, jax.Array]]
    params: Any
    fingerprint: str


def pixels(source: Dataset, data: Mapping[str, Any], file: str = "") -> Extractor:
    """Return the extractor of pixels in [-1, 1]."""

    def apply(params, images):
        flat = to_unit_range(images, source.levels).reshape(len(images), -1)
        return flat, flat[:, :0]

    return Extractor(lambda images: images, apply, {}, hash_json("pixels", source.levels))


def classifier(source: Dataset, data: Mapping[str, Any], file: str = "") -> Extractor:
    """Return the extractor of a small classifier's features and logits; it is trained once per data set."""
    trained = load_or_fit(source, data)

    def apply(params, images):
        return trained.module.apply({"params": params}, to_unit_range(images, source.levels))

    return Extractor(lambda images: images, apply, trained.params, trained.fingerprint)


def pretrained_network(source: Dataset, data: Mapping[str, Any], file: str, library: ModuleType) -> Extractor:
    """Return the extractor of a pretrained network, which takes gray images as RGB and all pixels with 256 levels.

    Args:
      source: Training split.
      data: Config of the data.
      file: Path of the weights; "" for their path in the cache.
      library: Module of the network.
    """
    path = weights.find(file, library)
    module, params = weights.load(path, library)

    def prepare(images):
        if source.levels != 256:
            images = to_levels(to_unit_range(images, source.levels), 256)
        return library.prepare(np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images)

    def apply(params, images):
        return module.apply({"params": params}, images)

    return Extractor(prepare, apply, params, hash_file(path))


# Functions (training split, config of the data, path of the weights) -> Extractor.
EXTRACTORS: dict[str, Callable[[Dataset, Mapping[str, Any], str], Extractor]] = {
    "classifier": classifier,
    "pixels": pixels,
} | {name: partial(pretrained_network, library=library) for name, library in LIBRARIES.items()}


def choose(features: Sequence[str], source: Dataset, files: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names of the requested extractors, or by default of those that fit the images without a download.

    Args:
      features: Names in `EXTRACTORS`; () for the default.
      source: Training split.
      files: Paths of the weights of `LIBRARIES`; "" for their path in the cache.

    Raises:
      UserError: if an extractor is unknown, doesn't fit the images or lacks its weights, or if no extractor fits.
    """
    channels = source.event_shape[-1]
    small, classes = np.prod(source.event_shape) <= MAX_PIXELS, source.num_classes > 1
    for name in features:
        lookup("features", EXTRACTORS, name)
        if name == "pixels" and not small:
            raise UserError(
                f"pixels: expected images of at most {MAX_PIXELS} values for a covariance, got {source.image_shape}",
                "features",
            )
        if name == "classifier" and not classes:
            raise UserError("classifier: the data have no classes to train a classifier on", "features")
        if name in LIBRARIES:
            if channels not in (1, 3):
                raise UserError(f"{name} takes photographs, not images of {channels} channels", "features")
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
