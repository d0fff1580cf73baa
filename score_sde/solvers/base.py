"""What a solver is, and `solve`, which scans one over a grid of times."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from score_sde.conditioned import count_evaluations
from score_sde.errors import UserError
from score_sde.parameterization import Denoiser, Prediction
from score_sde.randomness import fold_each, sample_keys
from score_sde.sde import SDE, log_snr

NO_SIGNAL = -30.0  # a log-SNR below which nothing of the data is left: 1 / alpha is no longer a number to work with
MAX_STEPS_EXCEEDED = -1.0  # in place of a time, see `Solution`


class Solver(NamedTuple):
    """A reverse-time method, as pure functions; it sees two neighbouring times and never their number."""

    init: Callable[[jax.Array], Any]  # x -> state; a state is a pytree with an attribute x
    step: Callable[..., Any]  # step(sde, denoiser, state, t, t_next, rng) -> state at t_next; rng: see `noise`
    nfe_per_step: int  # evaluations of the denoiser in a step
    stochastic: bool = False  # whether a step draws noise, and so needs keys
    requires_nonzero_alpha: bool = (
        False  # whether a step divides by alpha, or follows drift and diffusion, infinite at alpha = 0
    )


class Solution(NamedTuple):
    """What `solve` returns."""

    x: jax.Array  # (batch, *event), at the last time
    nfe: int | jax.Array | None  # network evaluations per sample, a guided step of two counted as two; (batch,) of
    # an adaptive solver
    trajectory: jax.Array | None  # (num_steps + 1, batch, *event) from the first time to the last, if it was asked for
    nonfinite_at: jax.Array | None = None  # () the time of the first step that gave NaN or infinity; NaN: none
    # did; -1: some examples of an adaptive solver didn't arrive


class OneStepState(NamedTuple):
    """The state of a solver that remembers nothing but where it is."""

    x: jax.Array


def solve(
    solver: Solver,
    sde: SDE,
    denoiser: Denoiser,
    x: jax.Array,
    times: jax.Array | np.ndarray,
    key: jax.Array | None = None,
    trajectory: bool = False,
    denoise: bool = False,
    noise: jax.Array | None = None,
    to_data: bool | None = None,
) -> Solution:
    """Runs a solver from x at times[0] down to times[-1], as one `lax.scan`.

    Where the grid ends at sigma = 0 the last step is x = E[x0 | x], 1 NFE, whatever the solver: there x is x0 (Karras
    et al. 2022, Algorithm 1, and DDIM's last step).

    Args:
      solver: what `SOLVERS` makes.
      sde: the forward process.
      denoiser: (x, t) -> Prediction.
      x: (batch, *event) at times[0].
      times: (num_steps + 1,) strictly descending, within [0, sde.t_max]. If they are traced, as an argument of a
        `jax.jit`ted function, `to_data` must be given, and times that do not descend give NaN.
      key: one typed key, folded by the sample's position in the batch, or (batch,) keys, one a sample. Step n of a
        sample draws with its key folded by n, so that a sample never depends on its batch. None for a deterministic
        solver.
      trajectory: also return x at every time.
      denoise: replace the last x by its denoised E[x0 | x] (Tweedie's formula), one more evaluation; of a grid that
        ends at sigma = 0 the last step is that already.
      noise: (num_steps, batch, *event) standard normal noise to use in place of a key's, as for refining one Brownian
        path; for solvers that draw once a step.
      to_data: whether the grid ends at sigma = 0; None: read from the times, which must then be known while tracing.

    Returns:
      A Solution.

    Raises:
      UserError: if times are not descending or out of the SDE's range, `to_data` is missing or contradicts them, a
        stochastic solver has no key, or the denoiser gave NaN. Under `jax.jit` the last can't be known: `check_finite`
        looks at what comes out.
    """
    check_times(times, sde, solver.requires_nonzero_alpha)
    to_data = _ends_at_data(times, sde, to_data)
    nfe = _count_evaluations(solver, sde, denoiser, times, to_data, denoise)
    if isinstance(times, jax.core.Tracer):  # `check_times` could not look at them
        x = jnp.where(jnp.all(jnp.diff(times) < 0), x, jnp.nan)
    times = jnp.asarray(times, x.dtype)
    if solver.stochastic and key is None and noise is None:
        raise UserError("this solver is stochastic: solve(...) needs key, a jax.random.key or one a sample")
    if noise is not None and noise.shape != (len(times) - 1, *x.shape):
        raise UserError(f"noise must be (num_steps, *x.shape) = {(len(times) - 1, *x.shape)}, got {noise.shape}")
    keys = None if key is None else sample_keys(key, x.shape[0])
    stepped = times[:-1] if to_data else times

    def advance(carry, interval):
        state, nonfinite_at = carry
        n, t, t_next = interval
        rng = noise[n] if noise is not None else None if keys is None else fold_each(keys, n)
        state = solver.step(sde, denoiser, state, t, t_next, rng)
        first = jnp.isnan(nonfinite_at) & ~jnp.all(jnp.isfinite(state.x))
        return (state, jnp.where(first, t, nonfinite_at)), state.x if trajectory else None

    intervals = jnp.arange(len(stepped) - 1), stepped[:-1], stepped[1:]
    carry = solver.init(x), jnp.full((), jnp.nan, x.dtype)
    path = x[None][:0]
    if len(stepped) > 1:
        carry, path = jax.lax.scan(advance, carry, intervals)
    (state, nonfinite_at), last_t = carry, stepped[-1]
    last = denoiser(state.x, last_t).x0 if to_data or denoise else state.x
    nonfinite_at = jnp.where(jnp.isnan(nonfinite_at) & ~jnp.all(jnp.isfinite(last)), last_t, nonfinite_at)
    if trajectory:
        path = jnp.concatenate([x[None], path if to_data else path[:-1], last[None]])
    solution = Solution(last, nfe, path if trajectory else None, nonfinite_at)
    if not isinstance(nonfinite_at, jax.core.Tracer):
        check_finite(solution)
    return solution


def check_one_step(solver: Solver, name: str, argument: str = "solver") -> None:
    """Refuses a multistep solver where x is changed between its steps.

    Raises:
      UserError: with what changes x.
    """
    if jax.eval_shape(solver.init, jnp.zeros((1, 1))).__class__ is not OneStepState:
        raise UserError(
            f"{name} changes x between steps, and a multistep method computes x anew from what it remembers, which "
            "undoes that; choose another, or its multistep=False",
            argument,
        )


def check_finite(solution: Solution) -> None:
    """Refuses a solution with NaN or infinity.

    Raises:
      UserError: with the time of the step at which it first appeared.
    """
    nonfinite_at = float(np.nanmax(np.asarray(solution.nonfinite_at), initial=-np.inf))  # of several devices the first
    if nonfinite_at == MAX_STEPS_EXCEEDED:
        raise UserError(
            "some examples didn't arrive within max_steps, or the denoiser gave NaN or infinity on the way (set "
            "--config.sampling.kwargs.max_steps, larger tolerances, or another method)"
        )
    if nonfinite_at >= 0:
        raise UserError(
            f"the denoiser gave NaN or infinity: x was last finite at t = {nonfinite_at:.6g} (a training that diverged, "
            "or a guidance or step too large there; --config.sampling.threshold=clip, another solver or more "
            "num_steps may help)"
        )


def _ends_at_data(times, sde: SDE, to_data: bool | None = None) -> bool:
    """Returns whether a grid ends where sigma = 0.

    Raises:
      UserError: if the times are traced and to_data is None, or to_data contradicts known times.
    """
    if isinstance(times, jax.core.Tracer):
        if to_data is None:
            raise UserError(
                "solve: expected times that are known while tracing, got an argument of a compiled function, so that "
                "it is unknown whether they end at sigma = 0 (close over a NumPy array, or give to_data=True or False)"
            )
        return to_data
    with jax.ensure_compile_time_eval():
        ends = float(sde.sigma(jnp.asarray(np.asarray(times)[-1]))) == 0.0
    if to_data not in (None, ends):
        raise UserError(f"solve: expected to_data={ends} for times that end at {np.asarray(times)[-1]}, got {to_data}")
    return ends


def most_evaluations(denoiser: Denoiser, t0: float, t1: float) -> int:
    """Returns the network evaluations of a call at the most expensive time in [t0, t1]."""
    return int(np.max(count_evaluations(denoiser, np.linspace(t0, t1, 1025))))


def _count_evaluations(solver: Solver, sde: SDE, denoiser: Denoiser, times, to_data: bool, denoise: bool) -> int:
    """Returns the network evaluations per sample of `solve`: the solver's calls, each at its time's cost."""
    calls = (len(times) - 1 - to_data) * solver.nfe_per_step + int(to_data or denoise)
    costs = count_evaluations(denoiser, np.linspace(sde.t_min, sde.t_max, 1025))
    if isinstance(times, jax.core.Tracer) or np.ptp(costs) == 0:
        return calls * int(costs.max())
    called = evaluation_times(solver, sde, np.asarray(times))
    if denoise and not to_data:
        called = np.append(called, times[-1])
    # Solvers that evaluate their own denoiser, as for a gradient, are charged the most for these calls.
    return int(count_evaluations(denoiser, called).sum()) + (calls - len(called)) * int(costs.max())


def check_times(times: jax.Array | np.ndarray, sde: SDE, requires_nonzero_alpha: bool) -> None:
    """Refuses times that a solver can't step through.

    Raises:
      UserError: times are not descending or out of the SDE's range, or the solver needs signal and starts where there
        is none.
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
    if not requires_nonzero_alpha:
        return
    with jax.ensure_compile_time_eval():
        first = jnp.float32(values[0])
        diffusion, signal = float(sde.diffusion(first)), float(log_snr(sde, first))
    if not (np.isfinite(diffusion) and signal > NO_SIGNAL):
        raise UserError(
            f"this solver steps along the SDE's drift and diffusion or divides by alpha, but g({values[0]:g}) = "
            f"{diffusion:.3g} and log-SNR {signal:.3g}: alpha reaches 0 there (set --config.sampling.solver=ddim, with "
            "--config.sampling.kwargs.eta=1 to draw noise, or dpm_solver_pp or unipc, or another --config.sde.name)"
        )


def evaluation_times(solver: Solver, sde: SDE, times: np.ndarray) -> np.ndarray:
    """The times (evaluations,) at which a solver asks its denoiser, found by running it on zeros."""

    def advance(state, interval):
        asked = []

        def denoiser(x, t):
            asked.append(jnp.asarray(t, x.dtype))
            return Prediction(jnp.zeros_like(x), jnp.zeros_like(x))

        state = solver.step(sde, denoiser, state, *interval, sample_keys(jax.random.key(0), 1))
        return state, jnp.stack(asked)

    stepped = np.asarray(times[:-1] if _ends_at_data(times, sde) else times, np.float32)
    last = stepped[-1:][: len(times) - len(stepped)]  # of a grid that ends at sigma = 0
    if len(stepped) == 1:
        return last
    with jax.ensure_compile_time_eval():
        asked = jax.lax.scan(advance, solver.init(jnp.zeros((1, 1))), (stepped[:-1], stepped[1:]))[1]
    return np.concatenate([np.asarray(asked).ravel(), last])
