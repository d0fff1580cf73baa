"""Samples against real images: distances of distributions, overlap, and what a classifier sees; or of points."""

from typing import Any

import jax
import numpy as np

from score_sde.errors import UserError
from score_sde.evaluation.features import KEPT, Features
from score_sde.evaluation.metrics import (
    frechet_distance,
    inception_score,
    kernel_distance,
    manifolds,
    sliced_wasserstein,
)

FEWEST = 6  # a sample needs its five nearest others


def check_number(number: int, kind: str, argument: str) -> None:
    """Raises UserError if there are too few images for a comparison; call it before samples are drawn."""
    if number < FEWEST:
        raise UserError(f"images are compared in sets of at least {FEWEST}, got {number} {kind}", argument)


def compare(name: str, draws: list[Features], real: Features, held_out: Features) -> dict[str, Any]:
    """The figures of samples against a training split in some features, and of the test split against it, for scale.

    Args:
      name: of the features.
      draws: sets of as many samples each.
      real: of the training split.
      held_out: of the test split.

    Returns:
      Names carry the features and the number of samples. Distances to the training split: mean and std over the draws,
      and the minimum of so many, which is not what a single draw gives; KID with its standard error and overlap are of
      the first draw. Of features with logits also a classifier score, the Inception score of Inception.
    """
    number = draws[0].moments.number
    distances = [frechet_distance(draw.moments, real.moments) for draw in draws]
    between = frechet_distance(held_out.moments, real.moments)
    shown = [features.vectors[:KEPT] for features in (real, draws[0], held_out)]
    figures = {
        f"fd_{name}_{number}": {
            "mean": float(np.mean(distances)),
            "std": float(np.std(distances, ddof=1)) if len(distances) > 1 else None,
            f"minimum_of_{len(distances)}": min(distances),
        },
        f"fd_{name}_test_train": between,
        f"fd_{name}_ratio": float(np.mean(distances)) / between,
        f"kid_{name}_{number}": kernel_distance(draws[0].vectors, real.vectors)._asdict(),
        f"kid_{name}_test_train": kernel_distance(held_out.vectors, real.vectors)._asdict(),
        f"overlap_{name}_{number}": manifolds(shown[0], shown[1])._asdict(),
        f"overlap_{name}_test_train": manifolds(shown[0], shown[2])._asdict(),
    }
    if draws[0].logits.shape[1]:
        figures[f"{name}_score_{number}"] = inception_score(draws[0].logits)._asdict()
        figures[f"{name}_score_test"] = inception_score(held_out.logits)._asdict()
    return figures


def classified(shown: Features, held_out: Features, test_labels: np.ndarray, fingerprint: str) -> dict[str, Any]:
    """How good the data's own classifier is, how sure it is of samples, and how they spread over its classes.

    Args:
      shown, held_out: the classifier's features of samples and of the test split.
      test_labels: the classes of its first images.
      fingerprint: the classifier's.
    """
    sure = [np.asarray(jax.nn.softmax(each.logits)).max(1) for each in (shown, held_out)]
    counts = np.bincount(shown.logits.argmax(1), minlength=shown.logits.shape[1])
    right = held_out.logits.argmax(1) == test_labels[: len(held_out.logits)]
    return {
        "classifier": {"test_accuracy": float(np.mean(right)), "fingerprint": fingerprint},
        "top_class_probability_samples": float(sure[0].mean()),
        "top_class_probability_test": float(sure[1].mean()),
        "class_shares": (counts / len(shown.logits)).tolist(),
    }


def compare_points(samples: np.ndarray, train: np.ndarray, test: np.ndarray) -> dict[str, float]:
    """The figures of points (n, features): distances of the samples to the training data, and of test data to them."""
    distances = [sliced_wasserstein(points, train) for points in (samples, test)]
    return {
        "sliced_wasserstein_test_train": distances[1],
        "sliced_wasserstein_samples_train": distances[0],
        "sliced_wasserstein_ratio": distances[0] / distances[1],
    }
