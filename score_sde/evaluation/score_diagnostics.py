"""What an exact score fulfils at every noise level, measured of any denoiser: a number an example, 0 where it holds.

All are made dimensionless, so that levels, processes and data sets can be laid side by side: errors of eps, whose every
component has the variance 1, per dimension.
"""

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
from score_sde.likelihood import centered_range, dequantize
from score_sde.model import DiffusionModel, check_continuous_time
from score_sde.parameterization import Denoiser, score_fn
from score_sde.randomness import fold_each, noise, rademacher
from score_sde.runtime import distributed
from score_sde.runtime.disk import replacing
from score_sde.sde import SDE, add_noise, log_snr, t_from_log_snr, time_derivative
from score_sde.training.metrics import progress_bar

EXACT = 16  # dimensions up to which a divergence is taken along every axis
PROBES = 2  # above them, directions of an estimate
BATCH = 32  # examples of which third derivatives are taken at a time
SPAN = (-9.0, 14.0)  # log-SNRs: below and above, float32 and the data say nothing
PANELS = {
    "loss": "error of eps",
    "stein": "Stein's identity",
    "curl": "curl",
    "fokker_planck": "Fokker-Planck residual",
    "memorization": "distance to the training set's own denoiser",
}


def per_dimension(x: jax.Array) -> jax.Array:
    """The mean over an example's numbers: (batch, *event) -> (batch,)."""
    return jnp.mean(x.reshape(len(x), -1), axis=1)


def stein(sde: SDE, denoiser: Denoiser, x: jax.Array, t: jax.Array) -> jax.Array:
    """1 + <score, x - mean> / d, whose mean over x ~ p_t is 0: E[<score, f>] = -E[div f], f being x less a constant.

    Stein's identity, by integration by parts. The batch is the sample: the mean is its own, corrected by n / (n - 1).

    Args:
      sde: the forward process.
      denoiser: of its score.
      x: (batch, *event) from p_t, batch > 1.
      t: () time.

    Returns:
      (batch,).
    """
    centred = (x - jnp.mean(x, axis=0, keepdims=True)) * (len(x) / (len(x) - 1))
    return 1 + per_dimension(score_fn(denoiser, sde)(x, t) * centred)


def curl(sde: SDE, denoiser: Denoiser, x: jax.Array, t: jax.Array, keys: jax.Array) -> jax.Array:
    """|sigma (J - J^T) / 2|^2 / d of the Jacobian J of eps: a score is a gradient, and its Jacobian symmetric.

    sigma J of an exact denoiser has eigenvalues of at most 1, so this is a share. The squared Frobenius norm is taken
    along a random direction of signs for each example, without bias.

    Args:
      sde: the forward process.
      denoiser: of eps.
      x: (batch, *event).
      t: () time.
      keys: (batch,).

    Returns:
      (batch,).
    """

    def epsilon(x):
        return denoiser(x, t).epsilon

    direction = rademacher(keys, x)
    _, forward = jax.jvp(epsilon, (x,), (direction,))
    _, pull = jax.vjp(epsilon, x)
    (backward,) = pull(direction)
    return per_dimension((sde.sigma(t) * (forward - backward) / 2) ** 2)


def fokker_planck(sde: SDE, denoiser: Denoiser, x: jax.Array, t: jax.Array, keys: jax.Array) -> jax.Array:
    """The squared residual of the score's Fokker-Planck equation, in eps per unit of log-SNR, per dimension.

    d score / dt = grad (g^2 (div score + |score|^2) / 2 - <f, score>) (Lai et al. 2023, eq. 6). Where the divergence is
    estimated, two independent estimates are multiplied, so that their noise adds nothing on average.

    Args:
      sde: the forward process.
      denoiser: of eps, differentiable three times.
      x: (batch, *event).
      t: () time with alpha(t) > 0.
      keys: (batch,).

    Returns:
      (batch,), negative too where the divergence is estimated.
    """
    score = score_fn(denoiser, sde)
    half = sde.diffusion(t) ** 2 / 2

    def potential(x, directions):  # summed over examples, of which each bears on its own gradient alone
        divergence: Any = sum(jnp.sum(v * jax.jvp(lambda x: score(x, t), (x,), (v,))[1]) for v in directions)
        if x[0].size > EXACT:
            divergence /= len(directions)
        here = score(x, t)
        return half * (divergence + jnp.sum(here**2)) - jnp.sum(sde.drift(x, t) * here)

    _, moved = jax.jvp(lambda t: score(x, t), (t,), (jnp.ones_like(t),))
    scale = sde.sigma(t) / time_derivative(lambda t: log_snr(sde, t), t)
    residuals = [scale * (moved - jax.grad(potential)(x, directions)) for directions in _two_sets(keys, x)]
    return per_dimension(residuals[0] * residuals[1])


def make_empirical(
    sde: SDE, images: np.ndarray, labels: np.ndarray | None = None
) -> Callable[[np.ndarray, float, np.ndarray | None], np.ndarray]:
    """The exact E[x0 | x] where the data are a training set and nothing else: what a network that memorizes gives.

    Args:
      sde: the forward process.
      images: (n, *event), all of them.
      labels: (n,), where the network is told classes.

    Returns:
      (x (batch, *event), t, labels (batch,) or None) -> x0 (batch, *event), in float64: with little noise the nearest
      image decides, by differences that float32 doesn't hold.
    """
    flat = np.asarray(images, np.float64).reshape(len(images), -1)
    norms = np.sum(flat**2, axis=1)

    def x0(x, t, told=None):
        alpha, sigma = (float(function(jnp.float32(t))) for function in (sde.alpha, sde.sigma))
        logits = (2 * np.asarray(x, np.float64).reshape(len(x), -1) @ flat.T / alpha - norms) * (alpha / sigma) ** 2 / 2
        if labels is not None:
            logits = np.where(labels[None] == told[:, None], logits, -np.inf)
        return (softmax(logits, axis=1) @ flat).reshape(x.shape)

    return x0


def _two_sets(keys: jax.Array, x: jax.Array) -> list[list[jax.Array]]:
    """Directions for two independent estimates of a divergence; every axis twice where there are few."""
    size = x[0].size
    if size <= EXACT:
        axes = [jnp.broadcast_to(axis.reshape(x.shape[1:]), x.shape) for axis in jnp.eye(size, dtype=x.dtype)]
        return [axes, axes]
    return [[rademacher(fold_each(keys, PROBES * n + i), x) for i in range(PROBES)] for n in (0, 1)]


def score_diagnostics(
    model: DiffusionModel,
    params: Any,
    load: Callable[[str], Dataset],
    options: EvaluationOptions,
    seed: int,
    dequantize_pixels: bool,
    workdir: Path,
    truth: Denoiser | None = None,
) -> dict[str, Any]:
    """Measure a network on the test split, and its losses on both splits, by log-SNR; plot them in DIR/health.png.

    Args:
      model: Diffusion model.
      params: Its parameters.
      load: Function from a split to its data.
      options: Options of evaluation.
      seed: Seed of noise and probes.
      dequantize_pixels: Whether the network was trained on dequantized pixels.
      workdir: Folder of the run.
      truth: Exact denoiser of the data, where it is known.

    Returns:
      {"num_images", "levels": one dictionary per level}, see `measure`.

    Raises:
      UserError: if the network was trained at discrete timesteps only.
    """
    check_continuous_time(model, "health")
    key = jax.random.key(seed)
    sets = {split: _examples(load(split), options.num_real, dequantize_pixels, key) for split in ("train", "test")}
    number = min(options.health_images, *(len(x0) for x0, _ in sets.values()))
    if number < 2:
        raise UserError(f"health takes two images at least, got {number}", "health_images")
    conditional = model.num_classes > 0
    empirical = make_empirical(model.sde, sets["train"][0], sets["train"][1] if conditional else None)
    keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(number))
    first = {split: (x0[:number], labels[:number]) for split, (x0, labels) in sets.items()}

    def denoiser(labels):
        return model.denoiser(params, labels=labels if conditional else None)

    rows = measure(model.sde, denoiser, first, keys, options.health_levels, truth, empirical)
    if distributed.is_main_process():
        workdir.mkdir(parents=True, exist_ok=True)
        save_health(workdir / "health.png", rows)
    return {"num_images": number, "levels": rows}


def measure(
    sde: SDE,
    denoiser: Any,
    sets: dict[str, tuple[np.ndarray, np.ndarray]],
    keys: jax.Array,
    num_levels: int,
    truth: Denoiser | None = None,
    empirical: Any = None,
) -> list[dict[str, Any]]:
    """The diagnostics of a denoiser by noise level, each as {"mean", "standard_error"} over examples.

    Args:
      sde: the forward process.
      denoiser: labels (n,) -> denoiser.
      sets: "train" and "test": n examples (n, *event) each, and their labels (n,).
      keys: (n,) of noise and probes, the same at every level.
      num_levels: how many.
      truth: the exact denoiser, where it is known.
      empirical: (x, t, labels) -> x0 of the training set's own exact denoiser; None: leave that out.

    Returns:
      One {"t", "log_snr", "loss", "loss_train", "stein", "curl", "fokker_planck", ...} a level: "loss" is |eps_hat -
      eps|^2 / d, with the truth known beside "irreducible" and "excess" |eps_hat - eps_exact|^2 / d, their difference
      on average. "memorization" is the squared error of eps_hat against the training set's own denoiser where that set
      was noised, "memorization_test" where the test set was, in eps per dimension.
    """

    @jax.jit
    def differentiate(x, labels, t, keys):
        ours = denoiser(labels)
        return curl(sde, ours, x, t, fold_each(keys, 1)), fokker_planck(sde, ours, x, t, fold_each(keys, 2))

    @jax.jit
    def look(x0, labels, t, keys):
        epsilon = noise(fold_each(keys, 0), x0)
        x = add_noise(sde, x0, epsilon, t)
        seen = denoiser(labels)(x, t)
        found = {"loss": per_dimension((seen.epsilon - epsilon) ** 2)}
        if truth is not None:
            exact = truth(x, t).epsilon
            found["irreducible"] = per_dimension((exact - epsilon) ** 2)
            found["excess"] = per_dimension((seen.epsilon - exact) ** 2)
        return x, seen.x0, found | {"stein": stein(sde, denoiser(labels), x, t)}

    rows = []
    levels = _levels(sde, num_levels)
    with progress_bar(len(levels), 0, "level", "health") as bar:
        for level in levels:
            t = t_from_log_snr(sde, jnp.float32(level))
            row: dict[str, Any] = {"t": float(t), "log_snr": float(level)}
            for split, (x0, labels) in sets.items():
                x, seen, found = look(x0, labels, t, keys)
                if split == "train":
                    row["loss_train"] = mean_of(found["loss"])
                else:
                    row |= {name: mean_of(values) for name, values in found.items()}
                    derived = [differentiate(x[some], labels[some], t, keys[some]) for some in _batches(len(x))]
                    for name, values in zip(("curl", "fokker_planck"), zip(*derived, strict=True), strict=True):
                        row[name] = mean_of(np.concatenate(values)[: len(x)])
                if empirical is not None:
                    apart = (np.asarray(seen) - empirical(np.asarray(x), t, labels)) * float(
                        sde.alpha(t) / sde.sigma(t)
                    )
                    row["memorization" if split == "train" else "memorization_test"] = mean_of(per_dimension(apart**2))
            rows.append(row)
            bar.update(1)
    return rows


def save_health(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes a PNG with a panel for each of `PANELS` against log-SNR, with two standard errors."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no display, no global state
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(PANELS), 4), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    lines = {
        "loss": ("loss", "loss_train", "irreducible", "excess"),
        "memorization": ("memorization", "memorization_test"),
    }
    for panel, (name, title) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        for line in lines.get(name, (name,)):
            shown = [
                (row["log_snr"], row[line]["mean"], 2 * row[line]["standard_error"]) for row in rows if line in row
            ]
            if shown:
                level, mean, error = np.array(shown).T
                panel.errorbar(level, mean, error, marker="o", markersize=3, label=line)
        panel.set_title(title)
        panel.set_xlabel("log-SNR")
        panel.axhline(0.0, color="gray", linewidth=0.5)
        if name in lines:
            panel.legend(fontsize=8)
        if name != "loss":
            panel.set_yscale("symlog", linthresh=1e-4)
    with replacing(path) as partial:
        figure.savefig(partial, format="png")


def _levels(sde: SDE, number: int) -> np.ndarray:
    """log-SNRs within the process, evenly spaced from the least noise to the most."""
    ends = [float(log_snr(sde, jnp.float32(t))) for t in (sde.t_min, sde.t_max)]
    return np.linspace(min(ends[0], SPAN[1]), max(ends[1], SPAN[0]), number)


def _examples(source: Dataset, limit: int, dequantize_pixels: bool, key: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return a split's examples as the network was trained on them, and their labels."""
    images, labels = load_examples(source, limit)
    if source.levels is None:
        return images, labels
    if dequantize_pixels:
        return np.asarray(dequantize(key, images, source.levels, centered_range(source.levels))), labels
    return np.asarray(to_unit_range(images, source.levels)), labels


def _batches(number: int) -> list[np.ndarray]:
    """Places of examples, `BATCH` at a time; the last are filled up with the last example."""
    return [np.minimum(np.arange(first, first + BATCH), number - 1) for first in range(0, number, BATCH)]
