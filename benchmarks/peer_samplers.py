"""The samplers of k-diffusion and the schedulers of diffusers, at any times, on an exact Gaussian mixture."""

import functools
import importlib.util
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch


class Mixture(NamedTuple):
    """Gaussian mixture sum_k weights_k N(means_k, stds_k^2 I)."""

    means: np.ndarray
    stds: np.ndarray
    weights: np.ndarray


# That of tests/mixtures.py.
PLANE = Mixture(np.array([[-0.8, -0.5], [0.7, -0.2], [0.1, 0.9]]), np.array([0.1, 0.2, 0.3]), np.array([0.5, 0.3, 0.2]))


def x0(x: torch.Tensor, alpha: float, sigma: float, mixture: Mixture = PLANE) -> torch.Tensor:
    """Return E[x0 | x_t = x], (batch, d) in float64."""
    means, stds, weights = (torch.tensor(a, dtype=torch.float64) for a in mixture)
    variance = (alpha * stds) ** 2 + sigma**2
    offset = x[:, None] - alpha * means
    log_share = torch.log(weights) - 0.5 * means.shape[1] * torch.log(variance)
    share = torch.softmax(log_share - 0.5 * (offset**2).sum(-1) / variance, dim=1)
    each = means + (alpha * stds**2 / variance)[:, None] * offset
    return (share[..., None] * each).sum(1)


@functools.cache
def k_diffusion_sampling():
    """Import k_diffusion.sampling without the packages that only the rest of k-diffusion uses."""
    folder = Path(importlib.util.find_spec("k_diffusion").origin).parent
    package = types.ModuleType("k_diffusion")
    package.__path__ = [str(folder)]
    utils = types.ModuleType("k_diffusion.utils")
    utils.append_dims = lambda x, ndim: x[(...,) + (None,) * (ndim - x.ndim)]
    sys.modules |= {"k_diffusion": package, "k_diffusion.utils": utils}
    return importlib.import_module("k_diffusion.sampling")


def given_noise(noise: np.ndarray) -> Callable:
    """Return a noise sampler for k-diffusion and torch.randn_like that yields the next array at every call."""
    left = iter(torch.tensor(np.asarray(noise)))
    return lambda *args, **kwargs: next(left)


def run_scheduler(
    scheduler,
    levels: Sequence[float],
    x: np.ndarray,
    mixture: Mixture = PLANE,
    scaled: bool = True,
    epsilon: bool = False,
    num_steps: int | None = None,
) -> np.ndarray:
    """Return x after each step of a scheduler of diffusers, at given levels.

    Args:
      scheduler: Scheduler with prediction_type "epsilon" if `epsilon`, otherwise "sample".
      levels: Descending sigma / alpha, one more than steps.
      x: Points at levels[0] of a variance-preserving process, (batch, d).
      mixture: Distribution of the data.
      scaled: Whether the scheduler steps x of a variance-preserving process, not x / alpha.
      epsilon: Whether the scheduler takes eps.
      num_steps: Argument of set_timesteps; None for the number of steps.
    """
    scheduler.set_timesteps(num_steps or len(levels) - 1)
    scheduler.sigmas = torch.tensor(np.asarray(levels, np.float64))
    scheduler.timesteps = torch.arange(len(levels) - 1, dtype=torch.float64)
    scheduler.set_begin_index(0)
    radius = np.sqrt(1 + np.asarray(levels, np.float64) ** 2)
    at, path = torch.tensor(x if scaled else x * radius[0]), [x]
    for n, t in enumerate(scheduler.timesteps):
        s = float(levels[n])
        alpha, sigma = (1 / radius[n], s / radius[n]) if scaled else (1.0, s)
        prediction = x0(at.double(), alpha, sigma, mixture)
        if epsilon:
            prediction = (at - alpha * prediction) / sigma
        at = scheduler.step(prediction, t, at).prev_sample.double()
        path.append(at.numpy() if scaled else at.numpy() / radius[n + 1])
    return np.stack(path)
