"""The samplers of k-diffusion and the schedulers of diffusers on an exact mixture, in float64."""

import functools
import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import torch

MEANS = np.array([[-0.8, -0.5], [0.7, -0.2], [0.1, 0.9]])
STDS = np.array([0.1, 0.2, 0.3])
WEIGHTS = np.array([0.5, 0.3, 0.2])


def x0(x: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
    """E[x0 | x_t = x] of the mixture of tests/mixtures.py, written out once more."""
    means, stds, weights = (torch.tensor(a, dtype=torch.float64) for a in (MEANS, STDS, WEIGHTS))
    variance = (alpha * stds) ** 2 + sigma**2
    offset = x[:, None] - alpha * means
    share = torch.softmax(torch.log(weights / variance) - 0.5 * (offset**2).sum(-1) / variance, dim=1)
    each = means + (alpha * stds**2 / variance)[:, None] * offset
    return (share[..., None] * each).sum(1)


@functools.cache
def k_diffusion_sampling():
    """k_diffusion.sampling without the packages that the rest of k-diffusion imports and it doesn't use."""
    folder = Path(importlib.util.find_spec("k_diffusion").origin).parent
    package = types.ModuleType("k_diffusion")
    package.__path__ = [str(folder)]
    utils = types.ModuleType("k_diffusion.utils")
    utils.append_dims = lambda x, ndim: x[(...,) + (None,) * (ndim - x.ndim)]
    sys.modules |= {"k_diffusion": package, "k_diffusion.utils": utils}
    return importlib.import_module("k_diffusion.sampling")


def given_noise(noise: np.ndarray):
    """Noise for k-diffusion's noise_sampler and for torch.randn_like: the next array at every call."""
    left = iter(torch.tensor(np.asarray(noise)))
    return lambda *args, **kwargs: next(left)
