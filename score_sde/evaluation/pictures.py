"""What samples look like: DIR/samples/step_<8 digits>.png and, with the samples one by one, .npz."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from score_sde.data import to_levels
from score_sde.errors import not_none
from score_sde.evaluation.accuracy import draw_accuracy
from score_sde.evaluation.image_grid import by_class, save_grid
from score_sde.evaluation.inverse_problems import draw_restorations, save_restorations
from score_sde.evaluation.scatter import save_paths, save_scatter
from score_sde.experiment import Experiment
from score_sde.runtime import distributed
from score_sde.runtime.disk import replacing
from score_sde.sampling import draw_whole

FRAMES = 11  # of a strip, the first pure noise, the last the sample
ROWS = 6


def picture_path(experiment: Experiment, workdir: Path, step: int, suffix: str = "") -> Path:
    """Where the picture of a step's samples lies; of how they came about with "_denoising"."""
    task = f"_{experiment.task.name}" if experiment.task else ""
    return workdir / "samples" / f"step_{step:08d}{task}{suffix}.png"


def draw_samples(
    experiment: Experiment,
    params: Any,
    step: int,
    workdir: Path,
    interrupted: Callable[[], Any] = lambda: None,
) -> Path:
    """Draws the experiment's samples and writes them as a picture and as numbers.

    Images become a grid, a row for each class where all are asked for in turn, with `images` (n, height, width,
    channels) uint8 and their `labels`, if they have any, in the .npz; points a scatter plot over the data beside the
    score field, with `samples` (n, features) float32. Of an inverse problem a row shows the truth, what was measured,
    and completions; of a classifier the picture is its accuracy by noise level.

    Args:
      experiment: the parts of a run.
      params: the network's parameters (the moving average).
      step: the step they are of, which names the files.
      workdir: the run's folder.
      interrupted: asked after each batch; where it says so, nothing is written (by one process alone: several draw on).

    Returns:
      The path of the PNG.
    """
    path = picture_path(experiment, workdir, step)
    if distributed.is_main_process():
        path.parent.mkdir(parents=True, exist_ok=True)
    if experiment.logits is not None:
        draw_accuracy(experiment, params, path)
        return path
    if experiment.task is not None:
        restored = draw_restorations(experiment, params, interrupted)
        if restored is not None and distributed.is_main_process():
            save_restorations(path, experiment, restored)
        return path
    samples = draw_whole(not_none(experiment.sampler), params, experiment.num_samples, interrupted)
    if samples is None or not distributed.is_main_process():
        return path
    labels = experiment.class_of(jnp.arange(len(samples)))
    told: dict[str, Any] = {} if labels is None else {"labels": np.asarray(labels)}
    if len(experiment.event_shape) == 3:
        images = to_levels(samples, 256)
        _save_numbers(path, images=images, **told)
        if told and experiment.config["sampling"]["label"] < 0:
            save_grid(path, *by_class(images, told["labels"]))
        else:
            save_grid(path, images)
    else:
        _save_numbers(path, samples=samples, **told)
        save_scatter(path, experiment, params, samples)
    return path


def _save_numbers(picture: Path, **arrays: Any) -> None:
    """Writes the .npz of a picture; the picture comes after it, so that where it is, both are whole."""
    with replacing(picture.with_suffix(".npz")) as partial:
        np.savez_compressed(partial, **arrays)


def draw_denoising(experiment: Experiment, params: Any, step: int, workdir: Path) -> Path | None:
    """Draws how the first samples came about: a strip of images from noise to data, or the paths of points.

    Returns:
      The path of the PNG; None for a solver that chooses its own times, which has no trajectory.
    """
    trajectory_of = not_none(experiment.sampler).trajectory
    if trajectory_of is None:
        return None
    path = picture_path(experiment, workdir, step, "_denoising")
    if not distributed.is_main_process():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    if len(experiment.event_shape) == 3:
        trajectory = trajectory_of(params, min(ROWS, experiment.num_samples))
        save_grid(path, denoising_strip(trajectory), columns=min(FRAMES, len(trajectory)))
    else:
        save_paths(path, trajectory_of(params, min(100, experiment.num_samples)))
    return path


def denoising_strip(trajectory: np.ndarray, num_frames: int = FRAMES) -> np.ndarray:
    """Images for a picture of denoising, a row for each sample, a column for each of some evenly spaced times.

    Args:
      trajectory: (num_steps + 1, n, height, width, channels), as `solve(..., trajectory=True)` returns it.
      num_frames: the number of columns, at most.

    Returns:
      (n * columns, height, width, channels) uint8, row by row, each frame scaled so that its own 99th percentile of |x|
      is white or black where that is above 1: noise of any scale is then seen as noise.
    """
    steps = np.unique(np.rint(np.linspace(0, len(trajectory) - 1, num_frames)).astype(int))
    frames = trajectory[steps]
    scale = np.percentile(np.abs(frames), 99, axis=tuple(range(1, frames.ndim)), keepdims=True)
    images = to_levels(frames / np.maximum(scale, 1.0), 256)
    return images.swapaxes(0, 1).reshape(-1, *images.shape[2:])
