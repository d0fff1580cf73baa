"""Sample grids: DIR/samples/step_<8 digits>.png and, with the images one by one, .npz."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from score_sde.data import to_levels
from score_sde.experiment import Experiment


def grid(images: np.ndarray, margin: int = 1) -> np.ndarray:
    """Lays images side by side, as square as it goes, in reading order.

    Args:
      images: (n, height, width, channels) uint8.
      margin: black pixels around each image.

    Returns:
      (grid height, grid width, channels) uint8; places without an image are black.
    """
    n, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    cells = np.zeros((rows * columns, height + margin, width + margin, channels), np.uint8)
    cells[:n, margin:, margin:] = images
    cells = cells.reshape(rows, columns, *cells.shape[1:]).swapaxes(1, 2)
    sheet = cells.reshape(rows * (height + margin), columns * (width + margin), channels)
    return np.pad(sheet, ((0, margin), (0, margin), (0, 0)))


def save_grid(path: Path, images: np.ndarray, min_side: int = 512) -> None:
    """Writes a grid of (n, height, width, channels) uint8 images as PNG, small pixels enlarged to squares."""
    sheet = grid(images)
    factor = max(1, math.ceil(min_side / max(sheet.shape[:2])))
    sheet = sheet.repeat(factor, 0).repeat(factor, 1)
    Image.fromarray(sheet[..., 0] if sheet.shape[-1] == 1 else sheet).save(path)


def grid_path(workdir: Path, step: int) -> Path:
    """Where the grid of a step's samples lies."""
    return workdir / "samples" / f"step_{step:08d}.png"


def draw_grid(experiment: Experiment, params: Any, step: int, workdir: Path) -> Path:
    """Draws the experiment's samples and writes them as a PNG grid and as `images` (n, ...) uint8 in an .npz.

    Args:
      experiment: the parts of a run.
      params: the network's parameters (the moving average).
      step: the step they are of, which names the files.
      workdir: the run's folder.

    Returns:
      The path of the PNG.
    """
    samples = np.concatenate(list(experiment.sampler(params, experiment.num_samples)))
    images = to_levels(samples, 256)
    path = grid_path(workdir, step)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path.with_suffix(".npz"), images=images)
    partial = path.with_name(f"partial_{path.name}")
    save_grid(partial, images)
    partial.replace(path)  # last and in one step: where the PNG is, both are whole
    return path
