"""Samples of low dimension over the data, and the score field they followed."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from score_sde.data import images_of
from score_sde.errors import not_none
from score_sde.experiment import Experiment
from score_sde.parameterization import score_fn
from score_sde.runtime.disk import replacing
from score_sde.sde import t_from_log_snr

LEVELS = (4.0, 0.0)  # log-SNRs at which the field is drawn: sigma / alpha = 0.14 and 1


def save_scatter(path: Path, experiment: Experiment, params: Any, samples: np.ndarray) -> None:
    """Writes a PNG: data and samples (n, features), their first two features; of two features also the score field."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no display, no global state
    from matplotlib.figure import Figure

    data, _ = images_of(experiment.source("train"), len(samples))
    plane = samples.shape[1] == 2
    figure = Figure(figsize=(4 * (2 + plane * len(LEVELS)), 4), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2 + plane * len(LEVELS))
    reach = 1.1 * np.abs(data).max()
    for panel, title, points in ((panels[0], "data", data), (panels[1], "samples", samples)):
        second = points[:, 1] if points.shape[1] > 1 else np.zeros(len(points))
        panel.scatter(points[:, 0], second, s=2, linewidths=0, color="black")
        panel.set_title(f"{len(points)} {title}")
    for panel, level in zip(panels[2:], LEVELS, strict=True) if plane else ():
        points, field, scaled = score_field(experiment, params, level, reach)
        panel.quiver(*points.T, *field.T, np.log(np.linalg.norm(field, axis=1) + 1e-12), cmap="viridis")
        panel.set_title(f"score where sigma / alpha = {scaled:.2f}")
    for panel in panels:
        panel.set_xlim(-reach, reach)
        panel.set_ylim(-reach, reach)
        panel.set_aspect("equal")
    with replacing(path) as partial:
        figure.savefig(partial, format="png")


def save_paths(path: Path, trajectory: np.ndarray) -> None:
    """Writes a PNG of the paths (num_steps + 1, n, features) of points from the prior to the data, in two features."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 6), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    first, second = trajectory[..., 0], trajectory[..., min(1, trajectory.shape[2] - 1)]
    panel.plot(first, second, color="gray", linewidth=0.5, alpha=0.6)
    for n, color in ((0, "tab:orange"), (-1, "black")):
        panel.scatter(first[n], second[n], s=6, color=color, zorder=2)
    panel.set_title(f"{trajectory.shape[1]} paths from the prior (orange) to the data (black)")
    panel.set_aspect("equal")
    with replacing(path) as partial:
        figure.savefig(partial, format="png")


def score_field(experiment: Experiment, params: Any, level: float, reach: float, side: int = 24):
    """The score on a square grid of x / alpha within +-reach, at the time of a log-SNR.

    Returns:
      (points (side^2, 2), scores (side^2, 2), sigma / alpha).
    """
    sde, denoiser_of = experiment.sde, not_none(experiment.denoiser)
    t = t_from_log_snr(sde, jnp.float32(level))
    axis = np.linspace(-reach, reach, side, dtype=np.float32)
    points = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    score = jax.jit(lambda params, x: score_fn(denoiser_of(params), sde)(x, t))
    return points, np.asarray(score(params, sde.alpha(t) * points)), float(sde.sigma(t) / sde.alpha(t))
