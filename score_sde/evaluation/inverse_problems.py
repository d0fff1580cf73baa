"""What an inverse problem's samples are worth: truth, measurement and completions side by side, and figures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from PIL import Image

from score_sde.data import images_of, to_levels, to_unit_range
from score_sde.errors import not_none
from score_sde.evaluation.image_grid import save_grid
from score_sde.experiment import Experiment
from score_sde.operators import gain
from score_sde.runtime.disk import replacing
from score_sde.sampling import draw_whole

ROWS = 8  # of a picture


class Restored(NamedTuple):
    """Images, what was measured of them, and samples of what they may have been."""

    truth: np.ndarray  # (n, *event) in [-1, 1]
    measured: np.ndarray  # (n, *measured)
    completions: np.ndarray  # (n, completions, *event)


def draw_restorations(
    experiment: Experiment, params: Any, interrupted: Callable[[], Any] = lambda: None
) -> Restored | None:
    """Draws config.sampling's completions of the first test images; None where interrupted (one process alone)."""
    sampler, task = not_none(experiment.sampler), not_none(experiment.task)
    samples = draw_whole(sampler, params, experiment.num_samples, interrupted)
    if samples is None:
        return None
    beside = sampler.beside()
    return Restored(
        beside["truth"],
        beside["measured"],
        samples.reshape(-1, task.completions, *experiment.event_shape),
    )


def save_restorations(path: Path, experiment: Experiment, restored: Restored) -> None:
    """Writes a PNG with a row an image, the truth, what was measured, the completions; and all numbers as .npz."""
    shown = restored.measured
    if shown.shape != restored.truth.shape:  # of another shape: the least image that gives it
        operator = not_none(not_none(experiment.task).operator)
        shown = np.asarray(gain(operator, jnp.asarray(shown), 1.0, 0.0))
    columns = np.concatenate([restored.truth[:, None], shown[:, None], restored.completions], axis=1)[:ROWS]
    cells = to_levels(columns.reshape(-1, *experiment.event_shape), 256)
    with replacing(path.with_suffix(".npz")) as partial:
        np.savez_compressed(partial, **restored._asdict())
    save_grid(path, cells, columns=columns.shape[1])


def figures_of(experiment: Experiment, restored: Restored) -> dict[str, Any]:
    """PSNR (of a range of 2, in dB, mean over images) and consistency with the measurement.

    "psnr_posterior_mean" is of the mean over completions, "psnr_completions" of single ones, "psnr_mean_image" of the
    training split's mean; of super-resolution "psnr_bicubic" is of bicubic interpolation. "consistency" is the root
    mean square of A x - y over the completions, where A sees, to be held against "task_noise".
    """
    task, truth = not_none(experiment.task), restored.truth
    source = experiment.source("train")
    seen = to_unit_range(images_of(source, experiment.evaluation["num_real"])[0], source.levels)
    figures = {
        "task": task.name,
        "num_images": len(truth),
        "completions": task.completions,
        "task_noise": task.noise,
        "psnr_posterior_mean": psnr(restored.completions.mean(1), truth),
        "psnr_completions": psnr(restored.completions, truth[:, None]),
        "psnr_mean_image": psnr(seen.mean(0)[None], truth),
    }
    if task.name == "super_resolve":
        figures["psnr_bicubic"] = psnr(bicubic(restored.measured, truth.shape[1]), truth)
    if task.operator is not None:
        flat = restored.completions.reshape(-1, *experiment.event_shape)
        again = np.asarray(task.operator.forward(flat)) - restored.measured.repeat(task.completions, 0)
        figures["consistency"] = float(np.sqrt((again**2).sum() / (len(flat) * _rank(task.operator))))
    return figures


def psnr(images: np.ndarray, truth: np.ndarray) -> float:
    """The peak signal-to-noise ratio of images in [-1, 1], 10 log10(4 / mean square error), the images' mean."""
    error = np.mean((np.asarray(images, np.float64) - truth) ** 2, axis=(-3, -2, -1))
    return float(np.mean(10 * np.log10(4 / np.maximum(error, 1e-12))))


def bicubic(images: np.ndarray, size: int) -> np.ndarray:
    """(n, h, w, channels) floats to (n, size, size, channels), by bicubic interpolation."""

    def enlarge(channel):
        return np.asarray(Image.fromarray(channel.astype(np.float32)).resize((size, size), Image.Resampling.BICUBIC))

    return np.stack(
        [np.stack([enlarge(image[..., c]) for c in range(image.shape[-1])], axis=-1) for image in np.asarray(images)]
    )


def _rank(operator) -> int:
    return max(int((np.asarray(operator.svd.singular) > 0).sum()), 1)
