"""How well a noise-conditional classifier tells noisy images apart, by noise level."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from score_sde.data import images_of, to_unit_range
from score_sde.errors import not_none
from score_sde.experiment import Experiment
from score_sde.randomness import noise
from score_sde.runtime import distributed
from score_sde.runtime.disk import replacing
from score_sde.sde import log_snr, marginal

NUM_LEVELS = 11


def accuracy(experiment: Experiment, params: Any) -> list[dict[str, float]]:
    """Accuracy and cross-entropy on the test split, at times spread evenly over the process.

    Returns:
      One {"t", "log_snr", "accuracy", "cross_entropy" in nats, "num_images"} for each time; example i draws its noise
      with fold_in(seed, i), the same at every time. Guessing has an accuracy of 1 over the number of classes.
    """
    sde, source = experiment.sde, experiment.source("test")
    pixels, labels = images_of(source, experiment.evaluation["num_real"])
    images, count = to_unit_range(pixels, source.levels), len(pixels)
    batch = min(experiment.batch_size, count)
    key = jax.random.key(experiment.config["seed"])

    logits_of = not_none(experiment.logits)

    @jax.jit
    def measure(params, x0, labels, indices, t):
        keys = jax.vmap(partial(jax.random.fold_in, key))(indices)
        logits = logits_of(params, marginal(sde, x0, noise(keys, x0), t), t)
        own = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)[:, 0]
        return jnp.argmax(logits, axis=1) == labels, -own

    rows = []
    for t in np.linspace(sde.t_min, sde.t_max, NUM_LEVELS, dtype=np.float32):
        right: list[np.ndarray] = []
        entropy: list[np.ndarray] = []
        for first in range(0, count, batch):
            indices = np.minimum(np.arange(first, first + batch), count - 1)  # the last batch is filled up
            found = measure(params, images[indices], labels[indices], indices, t)
            for kept, part in zip((right, entropy), found, strict=True):
                kept.append(np.asarray(part)[: count - first])
        rows.append(
            {
                "t": float(t),
                "log_snr": float(log_snr(sde, t)),
                "accuracy": float(np.concatenate(right).mean()),
                "cross_entropy": float(np.concatenate(entropy).mean()),
                "num_images": count,
            }
        )
    return rows


def draw_accuracy(experiment: Experiment, params: Any, path: Path) -> None:
    """Writes a PNG of accuracy against time, with log-SNRs at its points."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no display, no global state
    from matplotlib.figure import Figure

    rows = accuracy(experiment, params)
    if not distributed.is_main_process():
        return
    figure = Figure(figsize=(6, 4), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    times = [row["t"] for row in rows]
    panel.plot(times, [row["accuracy"] for row in rows], marker="o", color="black")
    panel.axhline(1 / experiment.num_classes, color="gray", linestyle=":")
    for row in rows:
        shown = f"{row['log_snr']:.1f}" if math.isfinite(row["log_snr"]) else "none"
        panel.annotate(shown, (row["t"], row["accuracy"]), textcoords="offset points", xytext=(4, 4), fontsize=7)
    panel.set_xlabel("t (at the points: log-SNR)")
    panel.set_ylabel(f"accuracy on {rows[0]['num_images']} test images (dotted: guessing)")
    panel.set_ylim(0, 1.05)
    with replacing(path) as partial:
        figure.savefig(partial, format="png")
