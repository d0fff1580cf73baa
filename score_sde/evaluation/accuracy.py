"""Accuracy of a noise-conditional classifier by noise level."""

import math
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from score_sde.data import Dataset, load_examples, to_unit_range
from score_sde.evaluation.style import new_figure, save_figure, series
from score_sde.model import NoisyClassifier
from score_sde.randomness import noise
from score_sde.sde import add_noise, log_snr

NUM_LEVELS = 11


def accuracy(
    classifier: NoisyClassifier, params, source: Dataset, seed: int, batch_size: int, num_images: int
) -> list[dict[str, float]]:
    """Measure accuracy and cross-entropy on a test split, at times spread evenly over the process.

    Args:
      classifier: Noise-conditional classifier.
      params: Parameters of the classifier.
      source: Test split.
      seed: Seed of the noise; example i has the same noise fold_in(seed, i) at every time.
      batch_size: Number of images per batch.
      num_images: Maximum number of images.

    Returns:
      One {"t", "log_snr", "accuracy", "cross_entropy" in nats, "num_images"} per time. The accuracy of
      guessing is 1 / num_classes.
    """
    sde = classifier.sde
    pixels, labels = load_examples(source, num_images)
    images, count = to_unit_range(pixels, source.levels), len(pixels)
    batch = min(batch_size, count)
    key = jax.random.key(seed)

    @jax.jit
    def measure(params, x0, labels, indices, t):
        keys = jax.vmap(partial(jax.random.fold_in, key))(indices)
        logits = classifier.logits(params)(add_noise(sde, x0, noise(keys, x0), t), t)
        log_prob = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)[:, 0]
        return jnp.argmax(logits, axis=1) == labels, -log_prob

    rows = []
    for t in np.linspace(sde.t_min, sde.t_max, NUM_LEVELS, dtype=np.float32):
        correct: list[np.ndarray] = []
        entropy: list[np.ndarray] = []
        for first in range(0, count, batch):
            indices = np.minimum(np.arange(first, first + batch), count - 1)  # pads the last batch
            measured = measure(params, images[indices], labels[indices], indices, t)
            for column, values in zip((correct, entropy), measured, strict=True):
                column.append(np.asarray(values)[: count - first])
        rows.append(
            {
                "t": float(t),
                "log_snr": float(log_snr(sde, t)),
                "accuracy": float(np.concatenate(correct).mean()),
                "cross_entropy": float(np.concatenate(entropy).mean()),
                "num_images": count,
            }
        )
    return rows


def plot_accuracy(path: Path, rows: list[dict[str, float]], num_classes: int) -> None:
    """Write a PNG of accuracy against time, with error bars of two standard errors and the log-SNR of each point."""
    figure, (panel,) = new_figure(width=6.0)
    values, count = np.array([row["accuracy"] for row in rows]), rows[0]["num_images"]
    errors = 2 * np.sqrt(values * (1 - values) / count)
    panel.errorbar([row["t"] for row in rows], values, errors, capsize=3, **series(0))
    panel.axhline(1 / num_classes, color="gray", linestyle=":")
    for row in rows:
        text = f"{row['log_snr']:.1f}" if math.isfinite(row["log_snr"]) else "none"
        panel.annotate(text, (row["t"], row["accuracy"]), textcoords="offset points", xytext=(5, 5), fontsize=7)
    panel.set_xlabel("time t (at the points: log-SNR)")
    panel.set_ylabel(f"accuracy on {count} test images (dotted: chance)")
    panel.set_ylim(0, 1.08)
    save_figure(path, figure)
