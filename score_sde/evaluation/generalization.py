"""Generalization: the losses of a network on both splits, the least possible one, and the copies among its samples.

The least loss on a training set is that of the set's own denoiser, which memorizes: it only draws training examples. A
network that does not memorize stays above it, and has about the same loss on both splits.
"""

import json
from collections.abc import Callable
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from score_sde.data import Dataset
from score_sde.evaluation.options import EvaluationOptions
from score_sde.evaluation.plots import save_losses
from score_sde.evaluation.results import mean_of
from score_sde.evaluation.score_diagnostics import (
    diagnostic_sets,
    epsilon_error,
    fits_whole,
    log_snr_levels,
    padded_batches,
    per_dimension,
)
from score_sde.model import DiffusionModel, NoisyClassifier
from score_sde.randomness import fold_each, noise
from score_sde.runtime.disk import write_atomically
from score_sde.sde import add_noise, t_from_log_snr
from score_sde.training.metrics import read_log

COPY_RATIO = 1 / 3  # Yoon et al. 2023, "Diffusion Probabilistic Models Generalize when They Fail to Memorize"
ROWS = 256  # samples, and training examples, at a time


def copies(samples: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Return which samples are copies: the nearest training example is at less than a third of the second's distance.

    Equal training examples count once.

    Args:
      samples: (n, *event) samples.
      train: (m, *event) training examples, m > 1; pixels must be integers, whose squared distances are then exact.

    Returns:
      (n,) booleans.
    """
    distinct = list({blake2b(example.tobytes()).digest(): n for n, example in enumerate(train)}.values())
    found = []
    for start in range(0, len(samples), ROWS):
        rows = _flat(samples[start : start + ROWS])
        least = np.full((len(rows), 2), np.inf)  # squared distances
        for first in range(0, len(distinct), ROWS):
            examples = _flat(train[distinct[first : first + ROWS]])
            squared = _norms(rows)[:, None] - 2 * rows @ examples.T + _norms(examples)
            least = np.partition(np.concatenate([least, np.maximum(squared, 0.0)], axis=1), 1, axis=1)[:, :2]
        found.append(least[:, 0] < COPY_RATIO**2 * least[:, 1])
    return np.concatenate(found)


def _flat(x: np.ndarray) -> np.ndarray:
    return np.asarray(x, np.float64).reshape(len(x), -1)


def _norms(rows: np.ndarray) -> np.ndarray:
    return np.einsum("ij,ij->i", rows, rows)


def make_count_copies(train: np.ndarray, test: np.ndarray, mirrored: bool = False) -> Callable[[np.ndarray], dict]:
    """Return the function from samples to the fraction of copies among them.

    Args:
      train: (m, *event) training examples, m > 1.
      test: (n, *event) test examples.
      mirrored: Whether training also takes the images flipped horizontally, whose copies then count.

    Returns:
      samples -> {"copies": mean and standard error, "copies_test_train": the fraction among test examples}.
    """
    pool = np.concatenate([train, train[:, :, ::-1]]) if mirrored else train
    reference = float(np.mean(copies(test, pool)))
    return lambda samples: {"copies": mean_of(copies(samples, pool)), "copies_test_train": reference}


def has_losses(model: DiffusionModel | NoisyClassifier) -> bool:
    """Return whether a model has the losses of `make_losses`: a network of continuous time."""
    return isinstance(model, DiffusionModel) and model.timesteps is None


def loss_names(
    model: DiffusionModel | NoisyClassifier, train: Dataset, options: EvaluationOptions, dequantize_pixels: bool
) -> tuple[str, ...]:
    """Return the keys of what `make_losses` computes; () for a model without losses."""
    if not has_losses(model):
        return ()
    least = not dequantize_pixels and fits_whole(len(train.examples), model.event_shape, options)
    return ("train", "test", *(["least_train"] if least else []))


def make_losses(
    model: DiffusionModel,
    load: Callable[[str], Dataset],
    options: EvaluationOptions,
    seed: int,
    dequantize_pixels: bool,
    mirrored: bool = False,
) -> Callable[[Any], dict[str, Any]]:
    """Return the function from parameters to the losses of a model.

    A loss is |eps_hat - eps|^2 / d, averaged over `diagnostics_levels` evenly spaced log-SNRs, with the same noise for
    all parameters.

    Args:
      model: Diffusion model.
      load: Function from a split to its data.
      options: Options of evaluation.
      seed: Seed of the noise.
      dequantize_pixels: Whether the network was trained on dequantized pixels.
      mirrored: Whether the network was also trained on horizontally flipped images.

    Returns:
      params -> {"train", "test", "least_train"}, each with a mean and a standard error over examples. least_train is
      the loss of the training set's denoiser (`diagnostic_sets`), if there is one, on the examples of "train".
    """
    sde, conditional = model.sde, model.num_classes > 0
    sets, keys, empirical = diagnostic_sets(model, load, options, seed, dequantize_pixels, mirrored)
    times = jax.vmap(partial(t_from_log_snr, sde))(jnp.asarray(log_snr_levels(sde, options.diagnostics_levels)))

    @jax.jit
    def noised(x0, t):
        epsilon = noise(fold_each(keys, 0), x0)
        return add_noise(sde, x0, epsilon, t)

    @jax.jit
    def batch_losses(params, x0, labels, keys):
        denoiser = model.denoiser(params, labels=labels if conditional else None)
        epsilon = noise(fold_each(keys, 0), x0)

        def error(t):
            return per_dimension((denoiser(add_noise(sde, x0, epsilon, t), t).epsilon - epsilon) ** 2)

        return jnp.mean(jax.lax.map(error, times), axis=0)

    def losses(params, x0, labels):
        parts = [batch_losses(params, x0[rows], labels[rows], keys[rows]) for rows in padded_batches(len(x0))]
        return np.concatenate(parts)[: len(x0)]

    def least_loss(x0, labels):
        errors = []
        for t in times:
            errors.append(epsilon_error(sde, t, x0, empirical(np.asarray(noised(x0, t)), t, labels)))
        return mean_of(np.mean(errors, axis=0))

    least = {} if empirical is None else {"least_train": least_loss(*sets["train"])}
    return lambda params: {name: mean_of(losses(params, *rows)) for name, rows in sets.items()} | least


def record_losses(workdir: Path, step: int, losses: dict[str, Any]) -> None:
    """Add the losses of a training step to DIR/losses.jsonl, in place of those of later steps; plot DIR/losses.png."""
    path = workdir / "losses.jsonl"
    earlier = [row for row in read_log(path)[0] if row["step"] < step]
    rows = [*earlier, {"step": step, **losses}]
    write_atomically(path, "".join(f"{json.dumps(row)}\n" for row in rows))
    save_losses(path.with_suffix(".png"), rows)
