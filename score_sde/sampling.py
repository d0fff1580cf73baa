"""Drawing samples on all devices; sample i is a function of (seed, i) alone."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from score_sde.parameterization import Denoiser
from score_sde.sde import SDE, prior_sample
from score_sde.solvers import Solver, solve

Sampler = Callable[[Any, int], Iterator[np.ndarray]]


def make_sampler(
    sde: SDE,
    make_denoiser: Callable[[Any], Denoiser],
    solver: Solver,
    times: np.ndarray,
    event_shape: tuple[int, ...],
    seed_key: jax.Array,
    batch_size: int,
    denoise: bool,
    devices: Sequence[jax.Device],
) -> Sampler:
    """Makes a sampler, compiled once for all devices.

    Args:
      sde: the forward process.
      make_denoiser: params -> denoiser.
      solver: what `SOLVERS` makes.
      times: (num_steps + 1,) descending.
      event_shape: the shape of one sample.
      seed_key: sample i draws its prior and its noise with fold_in(seed_key, i).
      batch_size: how many are drawn at a time on all devices together, at least; rounded up to a multiple of their
        number.
      denoise: replace the last x by its denoised.
      devices: the devices to run on.

    Returns:
      (params, num_samples) -> an iterator over float32 (n, *event_shape) arrays, num_samples rows in all, in order.
    """

    batch_size = math.ceil(batch_size / len(devices)) * len(devices)

    def draw(params, indices):
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(seed_key, indices)
        prior_keys, solver_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        x = jax.vmap(lambda key: prior_sample(sde, key, event_shape))(prior_keys)
        return solve(solver, sde, make_denoiser(params), x, times, solver_keys, denoise=denoise).x

    compiled = jax.pmap(draw, in_axes=(None, 0), devices=devices)

    def sample(params, num_samples):
        for first in range(0, num_samples, batch_size):
            # The last batch is drawn whole and cut, so that nothing is compiled for its size.
            indices = jnp.arange(first, first + batch_size).reshape(len(devices), -1)
            batch = np.asarray(compiled(params, indices)).reshape(batch_size, *event_shape)
            yield batch[: num_samples - first]

    return sample
