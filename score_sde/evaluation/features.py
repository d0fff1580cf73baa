"""Features of images, computed on all devices, with their moments as they come."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from score_sde import hosts
from score_sde.data import to_unit_range
from score_sde.evaluation.moments import Moments, merge, moments_of
from score_sde.evaluation.small_classifier import Fitted

ROWS = 64  # images a device at a time, always: what an image's features are depends neither on batches nor on devices


class Features(NamedTuple):
    """Of a set of images."""

    vectors: np.ndarray  # (n, d)
    logits: np.ndarray  # (n, classes), of 0 classes where none are known
    moments: Moments


def pixels(images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The pixels themselves, of (n, height, width, channels) in [-1, 1]."""
    flat = images.reshape(len(images), -1)
    return flat, flat[:, :0]


def of_classifier(made: Fitted) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]:
    """The features and logits of a classifier."""
    return lambda images: made.module.apply({"params": made.params}, images)


def make_extract(apply: Callable[[jax.Array], Any], levels: int) -> Callable[[np.ndarray], Features]:
    """Compiles an extractor for all devices; of several processes each does its part, and all get the whole.

    Args:
      apply: images (n, height, width, channels) in [-1, 1] -> (features (n, d), logits (n, classes)).
      levels: of the images.

    Returns:
      pixels (n, height, width, channels) uint8 -> Features. No image is left out, and none counted twice.
    """
    devices = jax.local_devices()
    compiled = jax.pmap(lambda images: apply(to_unit_range(images, levels)), devices=devices)
    whole = ROWS * len(devices) * jax.process_count()

    def extract(images: np.ndarray) -> Features:
        parts, total = [], None
        for first in range(0, len(images), whole):
            places = np.minimum(np.arange(first, first + whole), len(images) - 1)  # the last batch is filled up
            mine = images[places[hosts.my_rows(whole)]].reshape(len(devices), ROWS, *images.shape[1:])
            found = [np.asarray(part).reshape(ROWS * len(devices), part.shape[-1]) for part in compiled(mine)]
            kept = [part[: len(images) - first] for part in hosts.all_rows(found)]
            moments = moments_of(kept[0])
            total = moments if total is None else merge(total, moments)
            parts.append(kept)
        return Features(*(np.concatenate(column) for column in zip(*parts, strict=True)), total)

    return extract
