"""Consistency checks that an exact score satisfies at every noise level, as per-example residuals of a denoiser.

All residuals are dimensionless, so that noise levels, processes and data sets can be compared. They are errors of eps,
whose components have variance 1, per dimension.
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import softmax

from score_sde.data import Dataset, load_examples, to_unit_range
from score_sde.errors import UserError
from score_sde.evaluation.options import EvaluationOptions
from score_sde.evaluation.results import mean_of
from score_sde.evaluation.style import new_figure, place_legend, save_figure, series
from score_sde.likelihood import centered_range, dequantize
from score_sde.model import DiffusionModel, check_continuous_time
from score_sde.parameterization import Denoiser, score_fn
from score_sde.randomness import fold_each, noise, rademacher
from score_sde.runtime import distributed
from score_sde.sde import SDE, add_noise, log_snr, t_from_log_snr, time_derivative
from score_sde.training.metrics import progress_bar

MAX_EXACT_DIMENSION = 16  # maximum dimension for an exact divergence, along every axis
NUM_PROBES = 2  # directions per estimate of a divergence in higher dimensions
MAX_TRAINING_SET = 4 * 2**30  # bytes in float64, for its denoiser
BATCH = 32  # examples per batch of third derivatives
LOG_SNR_RANGE = (-9.0, 14.0)  # outside of it float32 and the data are uninformative
PANELS = {
    "loss": "squared error of eps",
    "stein": "residual of Stein's identity",
    "curl": "squared curl",
    "fokker_planck": "squared Fokker-Planck residual",
    "memorization": "squared distance to the empirical denoiser",
}


def per_dimension(x: jax.Array) -> jax.Array:
    """Return the mean over the dimensions of each example: (batch, *event) -> (batch,)."""
    return jnp.mean(x.reshape(len(x), -1), axis=1)


def stein(sde: SDE, denoiser: Denoiser, x: jax.Array, t: jax.Array) -> jax.Array:
    """Return 1 + <score, x - mean> / d, whose mean over x ~ p_t is 0 for an exact score.

    This is Stein's identity, E[<score, f>] = -E[div f], for f = x minus a constant. The constant is the mean of the
    batch, with a correction by n / (n - 1).

    Args:
      sde: Forward process.
      denoiser: Denoiser.
      x: (batch, *event) samples of p_t, with batch > 1.
      t: () time.

    Returns:
      (batch,) residuals.
    """
    centered = (x - jnp.mean(x, axis=0, keepdims=True)) * (len(x) / (len(x) - 1))
    return 1 + per_dimension(score_fn(denoiser, sde)(x, t) * centered)


def curl(sde: SDE, denoiser: Denoiser, x: jax.Array, t: jax.Array, keys: jax.Array) -> jax.Array:
    """Return |sigma (J - J^T) / 2|^2 / d for the Jacobian J of eps, which is symmetric since a score is a gradient.

    For an exact denoiser the eigenvalues of sigma J are at most 1, but they have no lower bound: halfway between two
    points one of them is 1 - (distance / 2 sigma)^2, with alpha = 1. So this isn't a fraction. The squared Frobenius
    norm is estimated without bias, along one Rademacher direction per example.

    Args:
      sde: Forward process.
      denoiser: Denoiser.
      x: (batch, *event) noisy examples.
      t: () time.
      keys: (batch,) keys of the directions.

    Returns:
      (batch,) residuals.
    """

    def epsilon(x):
        return denoiser(x, t).epsilon

    direction = rademacher(keys, x)
    _, forward = jax.jvp(epsilon, (x,), (direction,))
    _, vjp = jax.vjp(epsilon, x)
    (backward,) = vjp(direction)
    return per_dimension((sde.sigma(t) * (forward - backward) / 2) ** 2)


def fokker_planck(sde: SDE, denoiser: Denoiser, x: jax.Array, t: jax.Array, keys: jax.Array) -> jax.Array:
    """Return the squared residual of the score's Fokker-Planck equation, in eps per unit of log-SNR, per dimension.

    The equation is d score / dt = grad (g^2 (div score + |score|^2) / 2 - <f, score>) (Lai et al. 2023, eq. 6). An
    estimated divergence enters by the product of two independent estimates, so that its noise has mean 0.

    Args:
      sde: Forward process.
      denoiser: Denoiser, differentiable three times.
      x: (batch, *event) noisy examples.
      t: () time with alpha(t) > 0.
      keys: (batch,) keys of the estimates.

    Returns:
      (batch,) squared residuals, which may be negative if the divergence is estimated.
    """
    score = score_fn(denoiser, sde)
    half = sde.diffusion(t) ** 2 / 2

    def potential(x, directions):  # summed over examples, whose gradients are independent
        divergence: Any = sum(jnp.sum(v * jax.jvp(lambda x: score(x, t), (x,), (v,))[1]) for v in directions)
        if x[0].size > MAX_EXACT_DIMENSION:
            divergence /= len(directions)
        s = score(x, t)
        return half * (divergence + jnp.sum(s**2)) - jnp.sum(sde.drift(x, t) * s)

    _, dscore_dt = jax.jvp(lambda t: score(x, t), (t,), (jnp.ones_like(t),))
    scale = sde.sigma(t) / time_derivative(lambda t: log_snr(sde, t), t)
    residuals = [scale * (dscore_dt - jax.grad(potential)(x, directions)) for directions in _probe_pairs(keys, x)]
    return per_dimension(residuals[0] * residuals[1])


def empirical_denoiser(
    sde: SDE, images: np.ndarray, labels: np.ndarray | None = None
) -> Callable[[np.ndarray, float, np.ndarray | None], np.ndarray]:
    """Return the exact E[x0 | x] for the empirical distribution of a training set, the output of a memorizing network.

    Args:
      sde: Forward process.
      images: (n, *event) images of the whole training set.
      labels: (n,) classes, for a class-conditional network; otherwise None.

    Returns:
      (x (batch, *event), t, labels (batch,) or None) -> x0 (batch, *event). It computes in float64, because at low
      noise the weights depend on differences below the resolution of float32.
    """
    flat = np.asarray(images, np.float64).reshape(len(images), -1)
    norms = np.sum(flat**2, axis=1)

    def x0(x, t, x_labels=None):
        alpha, sigma = (float(function(jnp.float32(t))) for function in (sde.alpha, sde.sigma))
        logits = (2 * np.asarray(x, np.float64).reshape(len(x), -1) @ flat.T / alpha - norms) * (alpha / sigma) ** 2 / 2
        if labels is not None:
            logits = np.where(labels[None] == x_labels[:, None], logits, -np.inf)
        return (softmax(logits, axis=1) @ flat).reshape(x.shape)

    return x0


def _probe_pairs(keys: jax.Array, x: jax.Array) -> list[list[jax.Array]]:
    """Return the directions of two independent estimates of a divergence; in low dimension both have every axis."""
    size = x[0].size
    if size <= MAX_EXACT_DIMENSION:
        axes = [jnp.broadcast_to(axis.reshape(x.shape[1:]), x.shape) for axis in jnp.eye(size, dtype=x.dtype)]
        return [axes, axes]
    return [[rademacher(fold_each(keys, NUM_PROBES * n + i), x) for i in range(NUM_PROBES)] for n in (0, 1)]


def score_diagnostics(
    model: DiffusionModel,
    params: Any,
    load: Callable[[str], Dataset],
    options: EvaluationOptions,
    seed: int,
    dequantize_pixels: bool,
    mirrored: bool,
    workdir: Path,
    truth: Denoiser | None = None,
) -> dict[str, Any]:
    """Measure a network on the test split, and its losses on both splits, by log-SNR; plot them in DIR/health.png.

    Args:
      model: Diffusion model.
      params: Parameters of the model.
      load: Function from a split to its data.
      options: Options of evaluation.
      seed: Seed of noise and probes.
      dequantize_pixels: Whether the network was trained on dequantized pixels.
      mirrored: Whether the network was also trained on horizontally flipped images.
      workdir: Folder of the run.
      truth: Exact denoiser of the data; None if it is unknown.

    Returns:
      {"num_images", "levels"}, with one dictionary per level, as `measure` returns them.

    Raises:
      UserError: if the network was trained at discrete timesteps only.
    """
    check_continuous_time(model, "health")
    sets, keys, empirical = diagnostic_sets(model, load, options, seed, dequantize_pixels, mirrored)

    def denoiser(labels):
        return model.denoiser(params, labels=labels if model.num_classes > 0 else None)

    rows = measure(model.sde, denoiser, sets, keys, options.diagnostics_levels, truth, empirical)
    if distributed.is_main_process():
        workdir.mkdir(parents=True, exist_ok=True)
        save_health(workdir / "health.png", rows)
    return {"num_images": len(keys), "levels": rows}


def fits_whole(number: int, event_shape: tuple[int, ...], options: EvaluationOptions) -> bool:
    """Return whether a whole training set is used: at most `num_real` examples, and at most 4 GiB in float64.

    Flipped images double its memory.
    """
    return number <= options.num_real and 8 * number * math.prod(event_shape) <= MAX_TRAINING_SET


def diagnostic_sets(
    model: DiffusionModel,
    load: Callable[[str], Dataset],
    options: EvaluationOptions,
    seed: int,
    dequantize_pixels: bool,
    mirrored: bool,
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], jax.Array, Any]:
    """Return the first examples of both splits with their labels, a key for each, and the training set's denoiser.

    The denoiser includes flipped images if `mirrored`. It is None if the training set is too large (`fits_whole`), and
    for dequantized pixels, which training resamples at each step.

    Raises:
      UserError: if there are fewer than two examples.
    """
    key = jax.random.key(seed)
    splits = {name: load(name) for name in ("train", "test")}
    whole = fits_whole(len(splits["train"].examples), model.event_shape, options)
    limit = options.num_real if whole else options.diagnostics_images
    sets = {name: _examples(source, limit, dequantize_pixels, key) for name, source in splits.items()}
    num_images = min(options.diagnostics_images, *(len(x0) for x0, _ in sets.values()))
    if num_images < 2:
        raise UserError(f"evaluation: expected at least two images, got {num_images}", "diagnostics_images")
    train, classes = sets["train"]
    if mirrored:
        train, classes = np.concatenate([train, train[:, :, ::-1]]), np.concatenate([classes, classes])
    empirical = None
    if whole and not dequantize_pixels:
        empirical = empirical_denoiser(model.sde, train, classes if model.num_classes > 0 else None)
    keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(num_images))
    return {split: (x0[:num_images], labels[:num_images]) for split, (x0, labels) in sets.items()}, keys, empirical


def measure(
    sde: SDE,
    denoiser: Any,
    sets: dict[str, tuple[np.ndarray, np.ndarray]],
    keys: jax.Array,
    num_levels: int,
    truth: Denoiser | None = None,
    empirical: Any = None,
) -> list[dict[str, Any]]:
    """Measure the diagnostics of a denoiser by noise level, each as {"mean", "standard_error"} over examples.

    Args:
      sde: Forward process.
      denoiser: Function from labels (n,) to a denoiser.
      sets: Examples (n, *event) and their labels (n,), under "train" and "test".
      keys: (n,) keys of noise and probes, the same at every level.
      num_levels: Number of noise levels.
      truth: Exact denoiser of the data; None if it is unknown.
      empirical: Result of `empirical_denoiser`; None to omit memorization.

    Returns:
      One {"t", "log_snr", "loss", "loss_train", "stein", "curl", "fokker_planck", ...} per level. "loss" is |eps_hat -
      eps|^2 / d. With the truth, "irreducible" is |eps_exact - eps|^2 / d, and "excess" is |eps_hat - eps_exact|^2 / d,
      their difference on average. "least_train" is the loss of the empirical denoiser on noisy training examples, the
      least possible one on average over the training set. "memorization" is the squared difference of eps between the
      denoiser and the empirical denoiser on noisy training examples, per dimension. "memorization_test" is the same on
      test examples.
    """

    @jax.jit
    def differentiate(x, labels, t, keys):
        denoise = denoiser(labels)
        return curl(sde, denoise, x, t, fold_each(keys, 1)), fokker_planck(sde, denoise, x, t, fold_each(keys, 2))

    @jax.jit
    def residuals(x0, labels, t, keys):
        epsilon = noise(fold_each(keys, 0), x0)
        x = add_noise(sde, x0, epsilon, t)
        prediction = denoiser(labels)(x, t)
        values = {"loss": per_dimension((prediction.epsilon - epsilon) ** 2)}
        if truth is not None:
            exact = truth(x, t).epsilon
            values["irreducible"] = per_dimension((exact - epsilon) ** 2)
            values["excess"] = per_dimension((prediction.epsilon - exact) ** 2)
        return x, prediction.x0, values | {"stein": stein(sde, denoiser(labels), x, t)}

    rows = []
    levels = log_snr_levels(sde, num_levels)
    with progress_bar(len(levels), 0, "level", "health") as bar:
        for level in levels:
            t = t_from_log_snr(sde, jnp.float32(level))
            row: dict[str, Any] = {"t": float(t), "log_snr": float(level)}
            for split, (x0, labels) in sets.items():
                x, predicted_x0, values = residuals(x0, labels, t, keys)
                if split == "train":
                    row["loss_train"] = mean_of(values["loss"])
                else:
                    row |= {name: mean_of(value) for name, value in values.items()}
                    batches = [
                        differentiate(x[batch], labels[batch], t, keys[batch]) for batch in padded_batches(len(x))
                    ]
                    for name, parts in zip(("curl", "fokker_planck"), zip(*batches, strict=True), strict=True):
                        row[name] = mean_of(np.concatenate(parts)[: len(x)])
                if empirical is not None:
                    memorized = empirical(np.asarray(x), t, labels)
                    error = epsilon_error(sde, t, predicted_x0, memorized)
                    row["memorization" if split == "train" else "memorization_test"] = mean_of(error)
                    if split == "train":
                        row["least_train"] = mean_of(epsilon_error(sde, t, x0, memorized))
            rows.append(row)
            bar.update(1)
    return rows


def save_health(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write a PNG with a panel for each of `PANELS` against log-SNR, with error bars of two standard errors."""
    losses = {"loss": "test", "loss_train": "training", "least_train": "training, least possible"}
    lines = {
        "loss": losses | {"irreducible": "exact denoiser", "excess": "excess"},
        "memorization": {"memorization_test": "test", "memorization": "training"},
    }
    figure, panels = new_figure(len(PANELS))
    for panel, (name, title) in zip(panels, PANELS.items(), strict=True):
        for n, (line, label) in enumerate(lines.get(name, {name: ""}).items()):
            points = [
                (row["log_snr"], row[line]["mean"], 2 * row[line]["standard_error"]) for row in rows if line in row
            ]
            if points:
                level, mean, error = np.array(points).T
                panel.errorbar(level, mean, error, capsize=3, label=label, **series(n))
        panel.set(xlabel="log-SNR", ylabel=title)
        panel.axhline(0.0, color="gray", linewidth=0.5)
        if name in lines:
            place_legend(panel)
        if name != "loss":
            panel.set_yscale("symlog", linthresh=1e-4)
    save_figure(path, figure)


def epsilon_error(sde: SDE, t: jax.Array, x0: Any, other: np.ndarray) -> jax.Array:
    """Return |eps - eps'|^2 / d of two values of x0 at one x, (alpha / sigma)^2 |x0 - x0'|^2 / d, (batch,)."""
    return per_dimension((float(sde.alpha(t) / sde.sigma(t)) * (np.asarray(x0) - other)) ** 2)


def log_snr_levels(sde: SDE, num_levels: int) -> np.ndarray:
    """Return evenly spaced log-SNRs of the process, within `LOG_SNR_RANGE`, from the lowest noise to the highest."""
    ends = [float(log_snr(sde, jnp.float32(t))) for t in (sde.t_min, sde.t_max)]
    return np.linspace(min(ends[0], LOG_SNR_RANGE[1]), max(ends[1], LOG_SNR_RANGE[0]), num_levels)


def _examples(source: Dataset, limit: int, dequantize_pixels: bool, key: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return a split's examples as the network was trained on them, and their labels."""
    images, labels = load_examples(source, limit)
    if source.levels is None:
        return images, labels
    if dequantize_pixels:
        return np.asarray(dequantize(key, images, source.levels, centered_range(source.levels))), labels
    return np.asarray(to_unit_range(images, source.levels)), labels


def padded_batches(num_examples: int) -> list[np.ndarray]:
    """Return the indices of examples in batches of size `BATCH`; the last example pads the last batch."""
    return [np.minimum(np.arange(first, first + BATCH), num_examples - 1) for first in range(0, num_examples, BATCH)]
