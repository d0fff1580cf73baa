"""What a solver is, and `solve`, which scans one over a grid of times."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from score_sde.errors import UserError
from score_sde.parameterization import Denoiser, Prediction
from score_sde.randomness import fold_each, sample_keys
from score_sde.sde import SDE


class Solver(NamedTuple):
    """A reverse-time method, as pure functions; it sees two neighbouring times and never their number."""

    init: Callable[[jax.Array], Any]  # x -> state; a state is a pytree with an attribute x
    step: Callable[..., Any]  # step(sde, denoiser, state, t, t_next, keys) -> state at t_next; keys: one a sample
    nfe_per_step: int  # evaluations of the denoiser in a step
    stochastic: bool = False  # whether a step draws noise, and so needs keys
    follows_sde: bool = False  # whether a step follows the SDE's drift and diffusion, which must be finite then


class Solution(NamedTuple):
    """What `solve` returns."""

    x: jax.Array  # (batch, *event), at the last time
    nfe: int  # evaluations of the denoiser for each sample
    trajectory: jax.Array | None  # (num_steps + 1, batch, *event) from the first time to the last, if it was asked for


class Memoryless(NamedTuple):
    """The state of a solver that remembers nothing but where it is."""

    x: jax.Array


def solve(
    solver: Solver,
    sde: SDE,
    denoiser: Denoiser,
    x: jax.Array,
    times: jax.Array,
    key: jax.Array | None = None,
    trajectory: bool = False,
    denoise: bool = False,
) -> Solution:
    """Runs a solver from x at times[0] down to times[-1], as one `lax.scan`.

    Args:
      solver: what `SOLVERS` makes.
      sde: the forward process.
      denoiser: (x, t) -> Prediction.
      x: (batch, *event) at times[0].
      times: (num_steps + 1,) strictly descending, within [0, sde.t_max].
      key: one typed key, folded by the sample's position in the batch, or (batch,) keys, one a sample. Step n of a
        sample draws with its key folded by n, so that a sample never depends on its batch. None for a deterministic
        solver.
      trajectory: also return x at every time.
      denoise: replace the last x by its denoised E[x0 | x], one more evaluation.

    Returns:
      A Solution.

    Raises:
      UserError: times are not descending or out of the SDE's range, or a stochastic solver has no key.
    """
    check_times(times, sde, solver)
    times = jnp.asarray(times, x.dtype)
    num_steps = times.shape[0] - 1
    if solver.stochastic and key is None:
        raise UserError("this solver is stochastic: solve(...) needs key, a jax.random.key or one a sample")
    keys = None if key is None else sample_keys(key, x.shape[0])

    def advance(state, interval):
        n, t, t_next = interval
        step_keys = None if keys is None else fold_each(keys, n)
        state = solver.step(sde, denoiser, state, t, t_next, step_keys)
        return state, state.x if trajectory else None

    state, path = jax.lax.scan(advance, solver.init(x), (jnp.arange(num_steps), times[:-1], times[1:]))
    last = denoiser(state.x, times[-1]).x0 if denoise else state.x
    if trajectory:
        path = jnp.concatenate([x[None], path[:-1], last[None]])
    return Solution(last, num_steps * solver.nfe_per_step + int(denoise), path)


def check_times(times, sde: SDE, solver: Solver) -> None:
    """Refuses times that a solver can't step through.

    Raises:
      UserError: times are not descending or out of the SDE's range, or the solver follows drift and diffusion and
        starts where they are infinite.
    """
    if jnp.ndim(times) != 1 or len(times) < 2:
        raise UserError(f"times must be (num_steps + 1,) with at least one step, got the shape {jnp.shape(times)}")
    if isinstance(times, jax.core.Tracer):
        return  # their values are not known while tracing
    values = np.asarray(times)
    if not np.all(np.diff(values) < 0):
        raise UserError(f"times must descend strictly from the prior to the data, got {values[:3]} ... {values[-1]}")
    slack = 1e-6 * sde.t_max  # the ends of a float32 grid are rounded
    if values[0] > sde.t_max + slack or values[-1] < 0:
        raise UserError(f"times must lie within [0, {sde.t_max}], got {values[0]} down to {values[-1]}")
    with jax.ensure_compile_time_eval():
        diffusion = float(sde.diffusion(jnp.float32(values[0])))
    if solver.follows_sde and not diffusion < 1e3:
        raise UserError(
            f"this solver steps along the SDE's drift and diffusion, but g({values[0]:g}) = {diffusion:.3g}: alpha "
            "reaches 0 there (set --config.sampling.solver=ddim, with --config.sampling.kwargs.eta=1 to draw noise, "
            "or another --config.sde.name)"
        )


def evaluation_times(solver: Solver, sde: SDE, times: np.ndarray) -> np.ndarray:
    """(num_steps, nfe_per_step), the times at which a solver asks its denoiser, found by running it on zeros."""

    def advance(state, interval):
        asked = []

        def denoiser(x, t):
            asked.append(jnp.asarray(t, x.dtype))
            return Prediction(jnp.zeros_like(x), jnp.zeros_like(x))

        state = solver.step(sde, denoiser, state, *interval, sample_keys(jax.random.key(0), 1))
        return state, jnp.stack(asked)

    times = jnp.asarray(times, jnp.float32)
    return np.asarray(jax.lax.scan(advance, solver.init(jnp.zeros((1, 1))), (times[:-1], times[1:]))[1])
