"""Plots: image grids and scatter plots of samples, denoising trajectories, and results against steps."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from score_sde.data import Dataset, load_examples, to_levels
from score_sde.errors import UserError
from score_sde.evaluation.accuracy import accuracy, plot_accuracy
from score_sde.evaluation.image_grid import by_class, save_grid
from score_sde.evaluation.inverse_problems import group_by_measurement, save_restorations
from score_sde.evaluation.style import COLORS, in_words, new_figure, place_legend, save_figure, series
from score_sde.model import DiffusionModel, NoisyClassifier
from score_sde.parameterization import score_fn
from score_sde.runtime import distributed
from score_sde.runtime.disk import replacing
from score_sde.sampling import Sampler, mean_effective_sample_size
from score_sde.sde import t_from_log_snr
from score_sde.training.data_record import class_names

NUM_FRAMES = 11  # maximum number of times in a denoising plot
NUM_ROWS = 6  # maximum number of samples in a denoising plot
LOSSES = {"train": "training loss", "test": "test loss", "least_train": "least training loss"}
LEVELS = (4.0, 0.0)  # log-SNRs of the plotted score fields: sigma / alpha = 0.14 and 1


def sample_path(workdir: Path, step: int, sampler: Sampler | None = None, suffix: str = "") -> Path:
    """Return the path of the plot of a step's samples, or with the suffix "_denoising" of their trajectories."""
    task = f"_{sampler.task.name}" if sampler is not None and sampler.task is not None else ""
    return workdir / "samples" / f"step_{step:08d}{task}{suffix}.png"


def sample_and_plot(
    path: Path,
    sampler: Sampler,
    model: DiffusionModel,
    params: Any,
    train: Callable[[], Dataset],
    interrupted: Callable[[], Any] = lambda: None,
) -> float | None:
    """Generate samples, and write them as a plot and as arrays.

    Images become a grid, with one row per class if all classes are sampled in turn. The .npz has `images` (n, height,
    width, channels) uint8 and their `labels` and `class_names`, if they have any. Points become a scatter plot next to
    the data and the score field, with `samples` (n, features) float32 in the units of the data. For an inverse problem
    a row shows the truth, the measurement and completions.

    Args:
      path: Path of the PNG; the .npz has the same name.
      sampler: Sampler.
      model: Diffusion model.
      params: Parameters of the model (EMA).
      train: Function that returns the training split, for the plot of points.
      interrupted: Function that returns whether to stop without writing anything. It is called after each batch, and
        ignored with several processes.

    Returns:
      The mean effective sample size of weighted particles, None without them.
    """
    batches = []
    for batch in sampler.batches(params):
        batches.append(batch)
        if interrupted() and jax.process_count() == 1:
            return None
    size = mean_effective_sample_size(batches)
    if not distributed.is_main_process():
        return size
    samples = np.concatenate([batch.x for batch in batches])
    path.parent.mkdir(parents=True, exist_ok=True)
    if sampler.task is not None:
        save_restorations(path, sampler.task, group_by_measurement(sampler, samples))
        return size
    labels = sampler.labels(np.arange(len(samples)))
    arrays: dict[str, Any] = {} if labels is None else {"labels": np.asarray(labels)}
    names = () if labels is None else class_names(path.parents[1]) or _class_names(train)
    arrays |= {"class_names": np.array(names)} if names else {}
    if len(model.event_shape) == 3:
        images = to_levels(samples, 256)
        _save_arrays(path, images=images, **arrays)
        shown = np.unique(arrays.get("labels", 0)).tolist()
        titles = [names[label] if 0 <= label < len(names) else str(label) for label in shown] if names else []
        if len(shown) > 1:
            cells, columns = by_class(images, arrays["labels"])
            save_grid(path, cells, columns, row_titles=titles)
        else:
            save_grid(path, images)
    else:
        source = train()
        mean, std = source.scaling or (0.0, 1.0)
        _save_arrays(path, samples=(mean + std * samples).astype(samples.dtype), **arrays)
        save_scatter(path, model, params, load_examples(source, len(samples))[0], samples)
    return size


def _class_names(train: Callable[[], Dataset]) -> Sequence[str]:
    try:
        return train().class_names
    except UserError:  # the data aren't needed to sample
        return ()


def measure_and_plot(path: Path, classifier: NoisyClassifier, params: Any, test: Dataset, **options: int) -> None:
    """Measure the accuracy of a classifier by noise level, and plot it; see `accuracy` for the options."""
    rows = accuracy(classifier, params, test, **options)
    if distributed.is_main_process():
        path.parent.mkdir(parents=True, exist_ok=True)
        plot_accuracy(path, rows, classifier.num_classes)


def _save_arrays(plot_path: Path, **arrays: Any) -> None:
    """Write the .npz of a plot. Call it before the plot is written, so that a plot implies complete arrays."""
    with replacing(plot_path.with_suffix(".npz")) as partial:
        np.savez_compressed(partial, **arrays)


def plot_trajectory(path: Path, sampler: Sampler, model: DiffusionModel, params: Any) -> bool:
    """Plot the first samples from noise to data: a strip of images, or the paths of points.

    Returns:
      Whether there is a plot; an adaptive solver has no trajectory.
    """
    if not sampler.has_trajectory:
        return False
    if not distributed.is_main_process():
        return True
    path.parent.mkdir(parents=True, exist_ok=True)
    if len(model.event_shape) == 3:
        trajectory = sampler.trajectory(params, min(NUM_ROWS, sampler.num_samples))
        save_grid(path, denoising_strip(trajectory), columns=min(NUM_FRAMES, len(trajectory)))
    else:
        save_paths(path, sampler.trajectory(params, min(100, sampler.num_samples)))
    return True


def denoising_strip(trajectory: np.ndarray, num_frames: int = NUM_FRAMES) -> np.ndarray:
    """Return the images of a denoising plot, with one row per sample and one column per evenly spaced time.

    Args:
      trajectory: (num_steps + 1, n, height, width, channels) images of `solve(..., trajectory=True)`.
      num_frames: Maximum number of columns.

    Returns:
      (n * columns, height, width, channels) uint8 images, row by row. A frame whose 99th percentile of |x|
      exceeds 1 is scaled to 1 there, so that noise of any scale is visible.
    """
    steps = np.unique(np.rint(np.linspace(0, len(trajectory) - 1, num_frames)).astype(int))
    frames = trajectory[steps]
    scale = np.percentile(np.abs(frames), 99, axis=tuple(range(1, frames.ndim)), keepdims=True)
    images = to_levels(frames / np.maximum(scale, 1.0), 256)
    return images.swapaxes(0, 1).reshape(-1, *images.shape[2:])


def save_scatter(path: Path, model: DiffusionModel, params: Any, data: np.ndarray, samples: np.ndarray) -> None:
    """Write a PNG of the first two features of data and samples (n, features), and in 2-D of the score field."""
    plane = samples.shape[1] == 2
    figure, panels = new_figure(2 + plane * len(LEVELS), width=4.0, height=4.4)
    limit = 1.1 * np.abs(data).max()
    for panel, title, points in ((panels[0], "data points", data), (panels[1], "samples", samples)):
        second = points[:, 1] if points.shape[1] > 1 else np.zeros(len(points))
        panel.scatter(points[:, 0], second, s=2, linewidths=0, color="black")
        panel.set_title(f"{len(points)} {title}")
    for panel, level in zip(panels[2:], LEVELS, strict=True) if plane else ():
        points, field, scaled = score_field(model, params, level, limit)
        panel.quiver(*points.T, *field.T, np.log(np.linalg.norm(field, axis=1) + 1e-12), cmap="viridis")
        panel.set_title(f"score for sigma / alpha = {scaled:.2f}")
    for n, panel in enumerate(panels):
        scale = " / alpha" if n > 1 else ""
        panel.set(xlabel=f"first feature{scale}", ylabel=f"second feature{scale}")
        panel.set_xlim(-limit, limit)
        panel.set_ylim(-limit, limit)
        panel.set_aspect("equal")
    save_figure(path, figure)


def save_paths(path: Path, trajectory: np.ndarray) -> None:
    """Write a PNG of the trajectories (num_steps + 1, n, d) from the prior to the data, in two features."""
    figure, (panel,) = new_figure(width=7.0, height=6.0)
    first, second = trajectory[..., 0], trajectory[..., min(1, trajectory.shape[2] - 1)]
    panel.plot(first, second, color="gray", linewidth=0.5, alpha=0.6)
    for n, label, color, marker in ((0, "prior", COLORS[1], "^"), (-1, "data", "black", "o")):
        panel.scatter(first[n], second[n], s=8, color=color, marker=marker, zorder=2, label=label)
    place_legend(panel)
    panel.set(title=f"{trajectory.shape[1]} paths", xlabel="first feature", ylabel="second feature")
    panel.set_aspect("equal")
    save_figure(path, figure)


def score_field(model: DiffusionModel, params: Any, level: float, limit: float, side: int = 24):
    """Return the score on a square grid of x / alpha within +-limit, at the time of a log-SNR.

    Returns:
      (points (side^2, 2), scores (side^2, 2), sigma / alpha).
    """
    sde = model.sde
    t = t_from_log_snr(sde, jnp.float32(level))
    axis = np.linspace(-limit, limit, side, dtype=np.float32)
    points = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    score = jax.jit(lambda params, x: score_fn(model.denoiser(params), sde)(x, t))
    return points, np.asarray(score(params, sde.alpha(t) * points)), float(sde.sigma(t) / sde.alpha(t))


class _Panel(NamedTuple):
    """A panel of a curve: lines as functions from a row of results to a value and its error, by their labels."""

    ylabel: str
    lines: Mapping[str, Callable[[dict[str, Any]], tuple[float, float]]]
    relative: bool = False  # to test data


def save_curve(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write a PNG of results against steps, with a line per EMA, or for a single step with a point per EMA.

    The panels show the distances, the fraction of copies and the losses. Error bars are standard deviations over the
    sets of samples, if there are several, and standard errors of copies and losses.

    Args:
      path: Path of the PNG.
      rows: Results of each checkpoint and EMA, as `evaluate` writes them under "curve".
    """
    steps, emas, contents = sorted({row["step"] for row in rows}), _emas(rows), _panels(rows[0])
    figure, axes = new_figure(len(contents), width=6.0)
    for panel, content in zip(axes, contents, strict=True):
        for n, (ema, (label, estimate)) in enumerate(product(emas, content.lines.items())):
            line = [row for row in rows if row["average"] == ema]
            positions = [row["step"] for row in line] if len(steps) > 1 else [emas.index(ema)]
            values, errors = zip(*map(estimate, line), strict=True)
            words = ", ".join(filter(None, (label, _ema_name(ema))))
            panel.errorbar(positions, values, errors, capsize=3, label=words, **series(n))
        if len(steps) > 1:
            panel.set_xlabel("training step")
        else:
            panel.set_xticks(range(len(rows)), [_ema_name(row["average"]) for row in rows])
            panel.set_xlabel(f"EMA at step {steps[0]}")
            panel.margins(x=0.2)
        panel.set_ylabel(content.ylabel)
        if content.relative:
            panel.set_yscale("log")
            panel.axhline(1.0, color="gray", linestyle=":")
        if len(steps) > 1 or len(content.lines) > 1:
            place_legend(panel)
    figure.suptitle(f"{rows[0]['num_samples']} samples per set (dotted: as close as test data)", fontsize=10)
    save_figure(path, figure)


def save_losses(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write a PNG of the losses of `generalization.make_losses` against training steps, with standard errors.

    Args:
      path: Path of the PNG.
      rows: {"step", "train", "test", "least_train"} of each step.
    """
    figure, (panel,) = new_figure(width=6.0)
    for n, (name, label) in enumerate(LOSSES.items()):
        line = [(row["step"], row[name]["mean"], row[name]["standard_error"]) for row in rows if name in row]
        if line:
            panel.errorbar(*zip(*line, strict=True), capsize=3, label=label, **series(n))
    panel.set(xlabel="training step", ylabel="squared error of eps per dimension")
    place_legend(panel)
    save_figure(path, figure)


def _panels(row: dict[str, Any]) -> list[_Panel]:
    """Return the panels of a curve for what its rows hold."""
    names = [name for name in row if name.startswith(("fd_", "sliced_")) and name.endswith("_ratio")]
    panels = [_Panel(in_words(name), {"": partial(_ratio, name=name)}, relative=True) for name in names]
    panels.append(_Panel("fraction of copies", {"": lambda row: tuple(row["copies"].values())}))
    lines = {label: partial(_loss, name=name) for name, label in LOSSES.items() if name in row.get("losses", {})}
    return panels + ([_Panel("squared error of eps per dimension", lines)] if lines else [])


def _ratio(row: dict[str, Any], name: str) -> tuple[float, float]:
    """Return a ratio, and its standard deviation over sets of samples, or 0 if there is one set."""
    features = name.removesuffix("ratio")
    std = row.get(f"{features}{row['num_samples']}", {}).get("std")
    return row[name], std / row[f"{features}test_train"] if std else 0.0


def _loss(row: dict[str, Any], name: str) -> tuple[float, float]:
    return row["losses"][name]["mean"], row["losses"][name]["standard_error"]


def _emas(rows: list[dict[str, Any]]) -> list[dict[str, float]]:
    return list({_ema_name(row["average"]): row["average"] for row in rows}.values())


def _ema_name(ema: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in ema.items())
