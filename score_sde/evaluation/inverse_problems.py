"""Evaluation of inverse problems: PSNR, consistency with the measurement, and image grids."""

from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from PIL import Image

from score_sde.data import Dataset, load_examples, to_levels, to_unit_range
from score_sde.errors import not_none
from score_sde.evaluation.image_grid import save_grid
from score_sde.operators import regularized_pinv
from score_sde.runtime.disk import replacing
from score_sde.sampling import InverseTask, Sampler

NUM_ROWS = 8  # maximum number of rows of the image grid


class Restorations(NamedTuple):
    """Images, their measurements, and samples given the measurements.

    Attributes:
      truth: (n, *event) images in [-1, 1].
      measured: (n, *measured) measurements.
      completions: (n, samples_per_measurement, *event) samples.
    """

    truth: np.ndarray
    measured: np.ndarray
    completions: np.ndarray


def group_by_measurement(sampler: Sampler, samples: np.ndarray) -> Restorations:
    """Return the samples of an inverse problem, grouped by measurement."""
    num_completions = not_none(sampler.task).samples_per_measurement
    truth, measured = sampler.measured()
    return Restorations(truth, measured, samples.reshape(-1, num_completions, *truth.shape[1:]))


def save_restorations(path: Path, task: InverseTask, restored: Restorations) -> None:
    """Write a PNG with the truth, the measurement and the completions of an image per row, and all arrays as .npz."""
    measured = restored.measured
    if measured.shape != restored.truth.shape:  # plot the image of least norm with this measurement
        measured = np.asarray(regularized_pinv(not_none(task.operator), jnp.asarray(measured), 1.0, 0.0))
    columns = np.concatenate([restored.truth[:, None], measured[:, None], restored.completions], axis=1)[:NUM_ROWS]
    cells = to_levels(columns.reshape(-1, *restored.truth.shape[1:]), 256)
    with replacing(path.with_suffix(".npz")) as partial:
        np.savez_compressed(partial, **restored._asdict())
    save_grid(path, cells, columns=columns.shape[1])


def restoration_metrics(task: InverseTask, restored: Restorations, train: Dataset, num_real: int) -> dict[str, Any]:
    """Return mean PSNRs over images, in dB for a data range of 2, and the consistency with the measurement.

    "psnr_posterior_mean" is for the mean over completions, "psnr_completions" for single ones, "psnr_mean_image" for
    the mean of the training split. For super-resolution "psnr_bicubic" is for bicubic interpolation. "consistency" is
    the root mean square of A x - y over the completions, in the range of A. It should be close to "task_noise".

    Args:
      task: Inverse problem.
      restored: Images, measurements and completions.
      train: Training split.
      num_real: Maximum number of training images in the mean image.
    """
    truth = restored.truth
    train_images = to_unit_range(load_examples(train, num_real)[0], train.levels)
    results = {
        "task": task.name,
        "num_images": len(truth),
        "completions": task.samples_per_measurement,
        "task_noise": task.noise,
        "psnr_posterior_mean": psnr(restored.completions.mean(1), truth),
        "psnr_completions": psnr(restored.completions, truth[:, None]),
        "psnr_mean_image": psnr(train_images.mean(0)[None], truth),
    }
    if task.name == "super_resolve":
        results["psnr_bicubic"] = psnr(bicubic(restored.measured, truth.shape[1]), truth)
    if task.operator is not None:
        flat = restored.completions.reshape(-1, *truth.shape[1:])
        measured = restored.measured.repeat(task.samples_per_measurement, 0)
        residual = np.asarray(task.operator.forward(flat)) - measured
        results["consistency"] = float(np.sqrt((residual**2).sum() / (len(flat) * _rank(task.operator))))
    return results


def psnr(images: np.ndarray, truth: np.ndarray) -> float:
    """Return the mean peak signal-to-noise ratio of images in [-1, 1], 10 log10(4 / mean square error)."""
    error = np.mean((np.asarray(images, np.float64) - truth) ** 2, axis=(-3, -2, -1))
    return float(np.mean(10 * np.log10(4 / np.maximum(error, 1e-12))))


def bicubic(images: np.ndarray, size: int) -> np.ndarray:
    """Resize images (n, height, width, channels) to (n, size, size, channels) by bicubic interpolation."""

    def enlarge(channel):
        return np.asarray(Image.fromarray(channel.astype(np.float32)).resize((size, size), Image.Resampling.BICUBIC))

    return np.stack(
        [np.stack([enlarge(image[..., c]) for c in range(image.shape[-1])], axis=-1) for image in np.asarray(images)]
    )


def _rank(operator) -> int:
    return max(int((np.asarray(operator.svd.singular) > 0).sum()), 1)
