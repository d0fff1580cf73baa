"""Samples against real images: distances of distributions, overlap, and what a classifier sees; or of points."""

from typing import Any

import jax
import numpy as np

from score_sde.errors import UserError
from score_sde.evaluation.features import Features, make_extract, of_classifier, pixels
from score_sde.evaluation.inception_score import inception_score
from score_sde.evaluation.kernel_distance import kernel_distance
from score_sde.evaluation.manifolds import manifolds
from score_sde.evaluation.moments import frechet_distance
from score_sde.evaluation.small_classifier import Fitted
from score_sde.evaluation.wasserstein import sliced_wasserstein

LARGEST = 4096  # features whose covariance is taken
REAL = 10_000  # images that overlap is measured of, at most
FEWEST = 6  # a sample needs its five nearest others


def check_comparison(num_samples: int, image_shape: tuple[int, ...], num_classes: int) -> None:
    """Refuses what `compare` couldn't do, before samples are drawn for it.

    Args:
      num_samples: of a draw.
      image_shape: (height, width, channels).
      num_classes: of the data.

    Raises:
      UserError: there are too few samples, or no features to compare images in.
    """
    if num_samples < FEWEST:
        raise UserError(
            f"images are compared in sets of at least {FEWEST}, got {num_samples} (set --config.evaluation.num_samples)"
        )
    if num_classes < 2 and np.prod(image_shape) > LARGEST:
        raise UserError(
            f"the images have {np.prod(image_shape)} numbers, more than {LARGEST}, and no classes to train a "
            "classifier on: there are no features to compare them in (set --config.data.image_size)"
        )


def compare(
    draws: list[np.ndarray],
    train: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    levels: int,
    classifier: Fitted | None,
) -> dict[str, Any]:
    """The figures of samples against a training split, and of the test split against it, for scale.

    Args:
      draws: sets of as many samples each, (n, height, width, channels) uint8 as all images here.
      train, test: real images.
      test_labels: the classes of `test`.
      levels: pixels are integers 0 .. levels - 1.
      classifier: of the training split; None where the data have no classes: pixels alone are then compared.

    Returns:
      Names carry the features and the number of samples. Distances to the training split: mean and std over the draws,
      and the minimum of so many, which is not what a single draw gives; KID with its standard error, overlap and
      classifier's figures of the first draw.
    """
    extractors = {} if classifier is None else {"classifier": of_classifier(classifier)}
    if train[0].size <= LARGEST:
        extractors["pixels"] = pixels
    figures: dict[str, Any] = {}
    for name, apply in extractors.items():
        extract = make_extract(apply, levels)
        real, held_out = extract(train), extract(test)
        drawn = [extract(samples) for samples in draws]
        figures |= _distances(name, drawn, real, held_out)
        if name == "classifier":
            figures["classifier"] = {
                "test_accuracy": float(np.mean(held_out.logits.argmax(1) == test_labels)),
                "fingerprint": classifier.fingerprint,
            }
            figures |= _seen(drawn[0], held_out)
    return figures


def _distances(name: str, draws: list[Features], real: Features, held_out: Features) -> dict[str, Any]:
    number = len(draws[0].vectors)
    distances = [frechet_distance(draw.moments, real.moments) for draw in draws]
    between = frechet_distance(held_out.moments, real.moments)
    return {
        f"fd_{name}_{number}": {
            "mean": float(np.mean(distances)),
            "std": float(np.std(distances, ddof=1)) if len(distances) > 1 else None,
            f"minimum_of_{len(distances)}": min(distances),
        },
        f"fd_{name}_test_train": between,
        f"fd_{name}_ratio": float(np.mean(distances)) / between,
        f"kid_{name}_{number}": kernel_distance(draws[0].vectors, real.vectors)._asdict(),
        f"kid_{name}_test_train": kernel_distance(held_out.vectors, real.vectors)._asdict(),
        f"overlap_{name}_{number}": manifolds(real.vectors[:REAL], draws[0].vectors[:REAL])._asdict(),
        f"overlap_{name}_test_train": manifolds(real.vectors[:REAL], held_out.vectors[:REAL])._asdict(),
    }


def _seen(shown: Features, held_out: Features) -> dict[str, Any]:
    """How sure a classifier is of samples, and how they spread over the classes."""
    number = len(shown.logits)
    sure = [np.asarray(jax.nn.softmax(each.logits)).max(1) for each in (shown, held_out)]
    counts = np.bincount(shown.logits.argmax(1), minlength=shown.logits.shape[1])
    return {
        "top_class_probability_samples": float(sure[0].mean()),
        "top_class_probability_test": float(sure[1].mean()),
        "class_shares": (counts / number).tolist(),
        f"classifier_score_{number}": inception_score(shown.logits)._asdict(),
        "classifier_score_test": inception_score(held_out.logits)._asdict(),
    }


def compare_points(samples: np.ndarray, train: np.ndarray, test: np.ndarray) -> dict[str, float]:
    """The figures of points (n, features): distances of the samples to the training data, and of test data to them."""
    distances = [sliced_wasserstein(points, train) for points in (samples, test)]
    return {
        "sliced_wasserstein_test_train": distances[1],
        "sliced_wasserstein_samples_train": distances[0],
        "sliced_wasserstein_ratio": distances[0] / distances[1],
    }
