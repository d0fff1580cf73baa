"""Drawing samples on all devices; sample i is a function of (seed, i) alone."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from score_sde.errors import UserError
from score_sde.parameterization import Denoiser, Prediction
from score_sde.randomness import sample_keys
from score_sde.runtime import distributed
from score_sde.sde import SDE, prior_sample
from score_sde.solvers import Solution, Solver, check_finite, most_evaluations, solve

# (params, beside, indices (n,), x (n, *event) from the prior, keys (n,)) -> Solution
Run = Callable[[Any, Any, jax.Array, jax.Array, jax.Array], Solution]


class Drawn(NamedTuple):
    """A batch of samples."""

    x: np.ndarray  # (n, *event_shape) float32
    nfe: np.ndarray | None  # (n,) network evaluations, guidance included; None where they can't be known


class Sampler(NamedTuple):
    """Draws samples of given parameters; each function is compiled once, when it is first called."""

    draw: Callable[..., Iterator[Drawn]]  # (params, num_samples, skip=0) -> batches of samples skip .. num_samples - 1
    trajectory: Callable[[Any, int], np.ndarray] | None  # (params, n) -> (num_steps + 1, n, *event_shape)
    beside: Callable[[], Any] = tuple  # what samples are drawn with beside the parameters


def draw_whole(
    sampler: Sampler, params: Any, num_samples: int, interrupted: Callable[[], Any] = lambda: None
) -> np.ndarray | None:
    """(num_samples, *event_shape); None where interrupted between batches, by one process alone: several draw on."""
    drawn = []
    for batch in sampler.draw(params, num_samples):
        drawn.append(batch.x)
        if interrupted() and jax.process_count() == 1:
            return None
    return np.concatenate(drawn)


def run_on_grid(
    solver: Solver, sde: SDE, times, denoiser, x, keys, denoise: bool, trajectory: bool = False
) -> Solution:
    """A solver on a grid; arguments as for `solve`."""
    return solve(solver, sde, denoiser, x, times, keys, trajectory=trajectory, denoise=denoise)


def run_adaptive(adaptive: Callable[..., Solution], sde: SDE, denoiser, x, keys, denoise: bool) -> Solution:
    """Runs an `ADAPTIVE` solver; with denoise the last x is replaced by E[x0 | x], one more evaluation."""
    solution = adaptive(sde, denoiser, x, keys)
    if not denoise:
        return solution
    nfe = None if solution.nfe is None else solution.nfe + most_evaluations(denoiser, sde.t_min, sde.t_min)
    return solution._replace(x=denoiser(solution.x, sde.t_min).x0, nfe=nfe)


def check_run(run: Callable[[Denoiser, jax.Array, jax.Array], Solution], event_shape: tuple[int, ...]) -> None:
    """Refuses what a solver can't do with its process, by tracing it with a denoiser of no network."""
    x = jax.ShapeDtypeStruct((1, *event_shape), jnp.float32)
    jax.eval_shape(lambda x: run(lambda x, t: Prediction(x, x), x, sample_keys(jax.random.key(0), 1)), x)


def make_label_of(num_classes: int, label: int, in_turn: bool = True) -> Callable[[jax.Array], jax.Array | None]:
    """indices of samples -> their classes, None for a network without: all `label`, or for -1 each class in turn.

    Not in turn, -1 is the null label: no class.

    Raises:
      UserError: there is no such class.
    """
    if label != -1 and not 0 <= label < num_classes:
        raise UserError(
            f"label {label}: the network knows "
            + (
                f"the classes 0 to {num_classes - 1} (-1: each in turn, of a task none)"
                if num_classes
                else "no classes"
            )
            + " (set --config.sampling.label)"
        )
    if not num_classes:
        return lambda indices: None
    if label < 0 and in_turn:
        return lambda indices: indices % num_classes
    return lambda indices: jnp.full_like(indices, label)


def make_sampler(
    sde: SDE,
    run: Run,
    event_shape: tuple[int, ...],
    seed_key: jax.Array,
    batch_size: int,
    devices: Sequence[jax.Device],
    run_trajectory: Run | None = None,
    beside: Callable[[], Any] = tuple,
) -> Sampler:
    """Makes a sampler, compiled once for all devices.

    Args:
      sde: the forward process.
      run: (params, beside, indices, x, keys) -> Solution, from the prior to data.
      event_shape: the shape of one sample.
      seed_key: sample i draws its prior and its noise with fold_in(seed_key, i).
      batch_size: how many are drawn at a time on all devices together, at least; rounded up to a multiple of their
        number.
      devices: this process's; of several processes each draws its part, and all get the whole.
      run_trajectory: `run` with the trajectory in its solution, if it can give one.
      beside: () -> arrays that samples are drawn with, as a guide's parameters; asked for once, at the first draw.

    Returns:
      A Sampler. What it draws raises UserError where the network gave NaN or a solver didn't arrive.
    """
    everywhere = len(devices) * jax.process_count()
    batch_size = math.ceil(batch_size / everywhere) * everywhere

    def start(indices):
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(seed_key, indices)
        prior_keys, solver_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        return jax.vmap(lambda key: prior_sample(sde, key, event_shape))(prior_keys), solver_keys

    def draw_on_one(params, beside, indices):
        solution = run(params, beside, indices, *start(indices))
        nfe = None if solution.nfe is None else jnp.broadcast_to(solution.nfe, indices.shape)
        return solution._replace(nfe=nfe)

    beside = functools.cache(beside)
    beside_on_devices = functools.cache(lambda: distributed.replicate(beside(), devices))
    compiled = jax.pmap(draw_on_one, devices=devices)

    def draw(params, num_samples, skip=0):
        params = distributed.replicate(params, devices)
        for first in range(skip, num_samples, batch_size):
            # The last batch is drawn whole and cut, so that nothing is compiled for its size.
            indices = np.arange(first, first + batch_size)[distributed.local_slice(batch_size)].reshape(
                len(devices), -1
            )
            solution = compiled(params, beside_on_devices(), indices)
            mine = {"x": solution.x} | ({} if solution.nfe is None else {"nfe": solution.nfe})
            mine = {name: np.asarray(part).reshape(-1, *part.shape[2:]) for name, part in mine.items()}
            mine["broken_at"] = np.asarray(solution.broken_at).reshape(-1)
            drawn = {name: part[: num_samples - first] for name, part in distributed.all_gather(mine).items()}
            check_finite(solution._replace(broken_at=drawn["broken_at"]))  # on all hosts alike
            yield Drawn(drawn["x"], drawn.get("nfe"))

    if run_trajectory is None:
        return Sampler(draw, None, beside)

    @jax.jit
    def path(params, beside, indices):
        return run_trajectory(params, beside, indices, *start(indices)).trajectory

    return Sampler(draw, lambda params, n: np.asarray(path(params, beside(), jnp.arange(n))), beside)
