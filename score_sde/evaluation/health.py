"""`--mode=evaluate --config.evaluation.health=True`: how far a network is from a score, by noise level."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from score_sde.data import images_of, to_unit_range
from score_sde.errors import UserError, not_none
from score_sde.evaluation.diagnostics import curl, fokker_planck, make_empirical, per_dimension, stein
from score_sde.evaluation.results import mean_of
from score_sde.experiment import Experiment
from score_sde.likelihood import centred_range, dequantize
from score_sde.parameterization import Denoiser
from score_sde.randomness import fold_each, noise
from score_sde.runtime import distributed
from score_sde.runtime.disk import replacing
from score_sde.sde import SDE, log_snr, marginal, t_from_log_snr
from score_sde.training.metrics import progress_bar

BATCH = 32  # examples of which third derivatives are taken at a time
SPAN = (-9.0, 14.0)  # log-SNRs: below and above, float32 and the data say nothing
PANELS = {
    "loss": "error of eps",
    "stein": "Stein's identity",
    "curl": "curl",
    "fokker_planck": "Fokker-Planck residual",
    "memorization": "distance to the training set's own denoiser",
}


def health(experiment: Experiment, params: Any, workdir: Path) -> dict[str, Any]:
    """Measures `diagnostics` on the test split, and losses on both splits, by log-SNR; draws DIR/health.png.

    Returns:
      {"num_images", "levels": one dictionary a level}, see `measure`.

    Raises:
      UserError: the network knows a chain's steps alone.
    """
    if experiment.knows_the_chain_alone:
        raise UserError(
            "health asks the network at every noise level, and this one was trained at a chain's steps alone (set "
            "--config.sampling.off_grid=True if it may be asked between them)"
        )
    how = experiment.evaluation
    key = jax.random.key(experiment.config["seed"])
    sets = {split: _shown(experiment, split, key) for split in ("train", "test")}
    number = min(how["health_images"], *(len(x0) for x0, _ in sets.values()))
    if number < 2:
        raise UserError(f"health takes two images at least, got {number}", "health_images")
    told = experiment.num_classes > 0
    empirical = make_empirical(experiment.sde, sets["train"][0], sets["train"][1] if told else None)
    keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(number))
    first = {split: (x0[:number], labels[:number]) for split, (x0, labels) in sets.items()}

    denoiser_of = not_none(experiment.denoiser)

    def denoiser(labels):
        return denoiser_of(params, labels=labels if told else None)

    rows = measure(experiment.sde, denoiser, first, keys, how["health_levels"], experiment.truth, empirical)
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
        x = marginal(sde, x0, epsilon, t)
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


def _shown(experiment: Experiment, split: str, key: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """A split's examples as the network was trained on them, dequantized once if it was, and their labels."""
    source = experiment.source(split)
    images, labels = images_of(source, experiment.evaluation["num_real"])
    if source.levels is None:
        return images, labels
    if experiment.step_options["dequantized"]:
        return np.asarray(dequantize(key, images, source.levels, centred_range(source.levels))), labels
    return np.asarray(to_unit_range(images, source.levels)), labels


def _batches(number: int) -> list[np.ndarray]:
    """Places of examples, `BATCH` at a time; the last are filled up with the last example."""
    return [np.minimum(np.arange(first, first + BATCH), number - 1) for first in range(0, number, BATCH)]
