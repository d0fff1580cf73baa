"""Comparison of samples with real data: distances between distributions, PRDC and classifier metrics."""

from typing import Any

import jax
import numpy as np

from score_sde.errors import UserError
from score_sde.evaluation.features import NUM_STORED_FEATURES, Features
from score_sde.evaluation.metrics import (
    frechet_distance,
    inception_score,
    kid,
    precision_recall,
    sliced_wasserstein,
)

MIN_SAMPLES = 6  # density and coverage take the five nearest other vectors


def check_count(count: int, kind: str, argument: str) -> None:
    """Raise UserError if there are too few images for a comparison; call it before sampling.

    Args:
      count: Number of images.
      kind: Noun for the images, for the message.
      argument: Argument that holds the number.
    """
    if count < MIN_SAMPLES:
        raise UserError(f"images are compared in sets of at least {MIN_SAMPLES}, got {count} {kind}", argument)


def compute_metrics(name: str, samples: list[Features], real: Features, held_out: Features) -> dict[str, Any]:
    """Return the metrics of samples against the training split, and of the test split against it as a reference.

    Args:
      name: Name of the features.
      samples: Features of sets of samples, all of one size.
      real: Features of the training split.
      held_out: Features of the test split.

    Returns:
      Metrics by names that hold the features and the number of samples. Frechet distances have the mean, standard
      deviation and minimum over the sets; the minimum depends on the number of sets, which is in its name. KID and
      overlap (PRDC) are for the first set. Features with logits also give a classifier score, which for Inception is
      the Inception score.
    """
    count = samples[0].moments.num_vectors
    distances = [frechet_distance(features.moments, real.moments) for features in samples]
    between = frechet_distance(held_out.moments, real.moments)
    vectors = [features.vectors[:NUM_STORED_FEATURES] for features in (real, samples[0], held_out)]
    metrics = {
        f"fd_{name}_{count}": {
            "mean": float(np.mean(distances)),
            "std": float(np.std(distances, ddof=1)) if len(distances) > 1 else None,
            f"minimum_of_{len(distances)}": min(distances),
        },
        f"fd_{name}_test_train": between,
        f"fd_{name}_ratio": float(np.mean(distances)) / between,
        f"kid_{name}_{count}": kid(samples[0].vectors, real.vectors)._asdict(),
        f"kid_{name}_test_train": kid(held_out.vectors, real.vectors)._asdict(),
        f"overlap_{name}_{count}": precision_recall(vectors[0], vectors[1])._asdict(),
        f"overlap_{name}_test_train": precision_recall(vectors[0], vectors[2])._asdict(),
    }
    if samples[0].logits.shape[1]:
        metrics[f"{name}_score_{count}"] = inception_score(samples[0].logits)._asdict()
        metrics[f"{name}_score_test"] = inception_score(held_out.logits)._asdict()
    return metrics


def classifier_metrics(
    samples: Features, held_out: Features, test_labels: np.ndarray, fingerprint: str
) -> dict[str, Any]:
    """Return the classifier's accuracy, its confidence on samples and test images, and the classes of the samples.

    Args:
      samples: Features of samples, by the small classifier.
      held_out: Features of the test split, by the same.
      test_labels: Classes of the first images of the test split.
      fingerprint: Fingerprint of the classifier.
    """
    confidence = [np.asarray(jax.nn.softmax(features.logits)).max(1) for features in (samples, held_out)]
    counts = np.bincount(samples.logits.argmax(1), minlength=samples.logits.shape[1])
    correct = held_out.logits.argmax(1) == test_labels[: len(held_out.logits)]
    return {
        "classifier": {"test_accuracy": float(np.mean(correct)), "fingerprint": fingerprint},
        "top_class_probability_samples": float(confidence[0].mean()),
        "top_class_probability_test": float(confidence[1].mean()),
        "class_shares": (counts / len(samples.logits)).tolist(),
    }


def compare_points(samples: np.ndarray, train: np.ndarray, test: np.ndarray) -> dict[str, float]:
    """Return the distances of samples and of test data to the training data, all points (n, d)."""
    distances = [sliced_wasserstein(points, train) for points in (samples, test)]
    return {
        "sliced_wasserstein_test_train": distances[1],
        "sliced_wasserstein_samples_train": distances[0],
        "sliced_wasserstein_ratio": distances[0] / distances[1],
    }
