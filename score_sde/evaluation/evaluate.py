"""`--mode=evaluate`: draws samples from a finished run and writes DIR/evaluation.json."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from score_sde.data import Source, to_levels, to_unit_range
from score_sde.evaluation.accuracy import accuracy
from score_sde.evaluation.classifier import fit_svm, top_class
from score_sde.evaluation.figures import write_figures
from score_sde.evaluation.frechet import frechet_distance
from score_sde.evaluation.restorations import draw_restorations, figures_of
from score_sde.evaluation.wasserstein import sliced_wasserstein
from score_sde.experiment import Experiment
from score_sde.training.metrics import progress_bar
from score_sde.training.trained import trained


def evaluate(experiment: Experiment, workdir: Path) -> str:
    """Compares samples with real data, in pixels or coordinates, and writes the figures to evaluation.json.

    Of a classifier it is its accuracy by noise level, of an inverse problem what its completions are worth, under
    "accuracy" and "restore_<task>".

    Returns:
      The figures as a short text.

    Raises:
      UserError: the folder has no checkpoint, or the data set is missing.
    """
    if experiment.logits is not None:
        params, step = trained(experiment, workdir)
        return _written(workdir, "accuracy", {"step": step, "levels": accuracy(experiment, params)})
    if experiment.task is not None:
        params, step = trained(experiment, workdir)
        figures = figures_of(experiment, draw_restorations(experiment, params))
        return _written(
            workdir,
            f"restore_{experiment.task.name}",
            {"step": step, "sampling": experiment.config["sampling"]} | figures,
        )
    num_samples = experiment.evaluation["num_samples"]
    sources = {split: experiment.source(split) for split in ("train", "test")}
    real = {split: _images(source, experiment.evaluation["num_real"]) for split, source in sources.items()}
    params, step = trained(experiment, workdir)
    levels = sources["train"].levels

    samples, evaluations = [], []
    with progress_bar(num_samples, 0, "image", "samples") as bar:
        for batch in experiment.sampler.draw(params, num_samples):
            samples.append(batch.x if levels is None else to_unit_range(to_levels(batch.x, levels), levels))
            evaluations.append(batch.nfe)
            bar.update(len(batch.x))

    figures = {"step": step, "num_samples": num_samples, "seed": experiment.config["seed"]}
    figures |= {"sampling": experiment.config["sampling"], "devices": f"{jax.device_count()} {jax.default_backend()}"}
    figures |= {"nfe": None if evaluations[0] is None else float(np.concatenate(evaluations).mean())}
    figures |= {"num_train": len(real["train"][0]), "num_test": len(real["test"][0])}
    if levels is None:
        figures |= compare_points(np.concatenate(samples), real["train"][0], real["test"][0])
    else:
        figures |= compare(np.concatenate(samples), *real["train"], *real["test"])
    write_figures(workdir, figures)
    return json.dumps(figures, indent=2)


def _written(workdir: Path, section: str, figures: dict[str, Any]) -> str:
    write_figures(workdir, {section: figures})
    return json.dumps(figures, indent=2)


def compare(
    samples: np.ndarray,
    train_images: np.ndarray,
    train_labels: np.ndarray,
    test_images: np.ndarray,
    test_labels: np.ndarray,
) -> dict[str, Any]:
    """The figures of samples against real images; images are (n, height, width, channels) in [-1, 1].

    The classifier is trained on the training images. Its mean top-class probability says how sure it is of samples, and
    of test images; `class_shares` how samples spread over the classes. Frechet distances are of pixels, to the training
    images.
    """
    machine = fit_svm(train_images, train_labels)
    test_classes, test_probabilities = top_class(machine, test_images)
    sample_classes, sample_probabilities = top_class(machine, samples)
    flat = [images.reshape(len(images), -1) for images in (samples, train_images, test_images)]
    sample_distance, test_distance = frechet_distance(flat[0], flat[1]), frechet_distance(flat[2], flat[1])
    return {
        "svm_test_accuracy": float(np.mean(test_classes == test_labels)),
        "top_class_probability_test": float(test_probabilities.mean()),
        "top_class_probability_samples": float(sample_probabilities.mean()),
        "class_shares": [float(np.mean(sample_classes == label)) for label in machine.classes_],
        "frechet_pixels_test_train": test_distance,
        "frechet_pixels_samples_train": sample_distance,
        "frechet_ratio": sample_distance / test_distance,
    }


def compare_points(samples: np.ndarray, train: np.ndarray, test: np.ndarray) -> dict[str, float]:
    """The figures of points (n, features): distances of the samples to the training data, and of test data to them."""
    distances = [sliced_wasserstein(points, train) for points in (samples, test)]
    return {
        "sliced_wasserstein_test_train": distances[1],
        "sliced_wasserstein_samples_train": distances[0],
        "sliced_wasserstein_ratio": distances[0] / distances[1],
    }


def _images(source: Source, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """The first images of a split, at most `limit`, in [-1, 1], and their labels."""
    examples = [source.examples[i] for i in range(min(limit, len(source.examples)))]
    images = np.stack([example["image"] for example in examples])
    return to_unit_range(images, source.levels), np.array([example["label"] for example in examples])
