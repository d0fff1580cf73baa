"""What samples look like: DIR/samples/step_<8 digits>.png and, with the samples one by one, .npz."""

from pathlib import Path
from typing import Any

import numpy as np

from score_sde.data import to_levels
from score_sde.evaluation.grids import save_grid
from score_sde.evaluation.scatter import save_scatter
from score_sde.experiment import Experiment


def picture_path(workdir: Path, step: int) -> Path:
    """Where the picture of a step's samples lies."""
    return workdir / "samples" / f"step_{step:08d}.png"


def draw_samples(experiment: Experiment, params: Any, step: int, workdir: Path) -> Path:
    """Draws the experiment's samples and writes them as a picture and as numbers.

    Images become a grid, with `images` (n, height, width, channels) uint8 in the .npz; points a scatter plot over the
    data beside the score field, with `samples` (n, features) float32.

    Args:
      experiment: the parts of a run.
      params: the network's parameters (the moving average).
      step: the step they are of, which names the files.
      workdir: the run's folder.

    Returns:
      The path of the PNG.
    """
    samples = np.concatenate(list(experiment.sampler(params, experiment.num_samples)))
    path = picture_path(workdir, step)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"partial_{path.name}")
    if len(experiment.event_shape) == 3:
        images = to_levels(samples, 256)
        np.savez_compressed(path.with_suffix(".npz"), images=images)
        save_grid(partial, images)
    else:
        np.savez_compressed(path.with_suffix(".npz"), samples=samples)
        save_scatter(partial, experiment, params, samples)
    partial.replace(path)  # last and in one step: where the PNG is, both are whole
    return path
