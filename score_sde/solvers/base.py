"""The `Solver` interface, and `solve`, which scans a solver over a time grid."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from score_sde.conditioned import count_evaluations
from score_sde.errors import UserError
from score_sde.flow_map import jump
from score_sde.parameterization import Denoiser, Prediction
from score_sde.randomness import fold_each, sample_keys
from score_sde.sde import NO_SIGNAL, SDE, log_snr

# Values of `Solution.nonfinite_at`.
MAX_STEPS_EXCEEDED = -1.0
CONSTRAINT_NOT_MET = -2.0


class Solver(NamedTuple):
    """A reverse-time method as pure functions; a step depends on its two times, not on the grid."""

    init: Callable[[jax.Array], Any]  # x -> state; a state is a pytree with an attribute x
    # step(sde, denoiser, state, t, t_next, rng) -> state at t_next; rng: see `randomness.noise`
    step: Callable[..., Any]
    nfe_per_step: int  # evaluations of the denoiser per step
    stochastic: bool = False  # whether a step draws noise
    requires_nonzero_alpha: bool = False  # whether a step divides by alpha or evaluates drift and diffusion
    jumps: bool = False  # whether the denoiser is a flow map, called at (x, t, t_next)
    reverse_sde: bool = True  # whether a stochastic step follows the reverse SDE, as the weights of particles require


class Solution(NamedTuple):
    """Result of `solve`."""

    x: jax.Array  # (batch, *event), at the last time
    nfe: int | jax.Array | None  # network evaluations per sample; (batch,) for adaptive solvers
    trajectory: jax.Array | None  # (num_steps + 1, batch, *event) from the first time to the last, if requested
    # (): time of the first step with NaN or infinity; NaN if there is none; or a value above
    nonfinite_at: jax.Array | None = None
    log_weights: jax.Array | None = None  # (batch,), of weighted particles (`particles`), as are the next ones
    log_normalizer: jax.Array | None = None  # (populations,), estimate of the log of the target's integral
    effective_sample_size: jax.Array | None = None  # (num_steps, populations), before resampling


class OneStepState(NamedTuple):
    """State of a one-step method, which has no history."""

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
    """Run a solver from x at times[0] down to times[-1] as one `lax.scan`.

    If the grid ends at sigma = 0, the last step of every solver is x = E[x0 | x], 1 NFE, because there x is x0 (Karras
    et al. 2022, Algorithm 1, and DDIM's last step). A flow map jumps to t_min instead, where its samples are those of
    a grid that ends at t_min: X of a chord is the sample only at r = 0, and X of the chord to t_min is too narrow.

    Args:
      solver: Solver, see `SOLVERS`.
      sde: Forward process.
      denoiser: Denoiser (x, t) -> Prediction.
      x: Points at times[0], (batch, *event).
      times: Strictly descending times within [0, sde.t_max], (num_steps + 1,). If they are traced, `to_data` is
        required, and times that do not descend give NaN.
      key: PRNG key, folded with the sample's position in the batch, or one key per sample, (batch,). Step n of a sample
        uses its key folded with n, so that a sample never depends on its batch. None for deterministic solvers.
      trajectory: Whether to return x at every time.
      denoise: Whether to replace the last x by E[x0 | x] (Tweedie's formula), 1 NFE. For a flow map it is X at r = t.
        It has no effect if the grid ends at sigma = 0.
      noise: Standard normal noise to use instead of a key, (num_steps, batch, *event), for example to refine a Brownian
        path. It requires a solver that draws noise once per step.
      to_data: Whether the grid ends at sigma = 0. None infers it from the times, which must not be traced.

    Returns:
      Solution at times[-1].

    Raises:
      UserError: if times are not descending or out of the SDE's range, `to_data` is missing or contradicts them, a
        stochastic solver has no key, or x became NaN or infinite. Under `jax.jit` the latter is reported only by
        `check_finite`.
    """
    check_times(times, sde, solver.requires_nonzero_alpha)
    to_data = ends_at_data(times, sde, to_data)
    nfe = _count_evaluations(solver, sde, denoiser, times, to_data, denoise)
    if isinstance(times, jax.core.Tracer):  # `check_times` can't check traced times
        x = jnp.where(jnp.all(jnp.diff(times) < 0), x, jnp.nan)
    times = jnp.asarray(times, x.dtype)
    if solver.stochastic and key is None and noise is None:
        raise UserError("solve: this solver is stochastic: solve(...) needs key, a PRNG key or one per sample", "key")
    if noise is not None and noise.shape != (len(times) - 1, *x.shape):
        raise UserError(f"noise: expected (num_steps, *x.shape) = {(len(times) - 1, *x.shape)}, got {noise.shape}")
    if solver.jumps:
        _check_flow_map(denoiser, x, times[:1])
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
    last, flow_map = state.x, cast(Any, denoiser)
    if to_data and solver.jumps:
        last = jump(flow_map, sde, state.x, last_t, jnp.minimum(last_t, sde.t_min))
    elif to_data or denoise:
        last = denoiser(state.x, last_t, *[last_t] * solver.jumps).x0
    nonfinite_at = jnp.where(jnp.isnan(nonfinite_at) & ~jnp.all(jnp.isfinite(last)), last_t, nonfinite_at)
    if trajectory:
        path = jnp.concatenate([x[None], path if to_data else path[:-1], last[None]])
    solution = Solution(last, nfe, path if trajectory else None, nonfinite_at)
    if not isinstance(nonfinite_at, jax.core.Tracer):
        check_finite(solution)
    return solution


def _check_flow_map(denoiser: Callable, x: jax.Array, t: jax.Array) -> None:
    """Raise UserError if a denoiser of one time is given to a solver that jumps."""
    t = jnp.broadcast_to(t, x.shape[:1])
    try:
        jax.eval_shape(denoiser, x, t, t)
    except TypeError:
        raise UserError(
            "solve: this solver jumps with a flow map (x, t, r), and got a denoiser (x, t)",
            "solver",
        ) from None


def check_one_step(solver: Solver, name: str, argument: str = "solver") -> None:
    """Raise UserError if the solver is a multistep method, for methods that change x between steps.

    Args:
      solver: Solver to check.
      name: Name of the method that changes x, for the message.
      argument: Argument that holds the solver, for the message.

    Raises:
      UserError: if the solver's state is not a `OneStepState`.
    """
    if jax.eval_shape(solver.init, jnp.zeros((1, 1))).__class__ is not OneStepState:
        raise UserError(
            f"{name} changes x between steps, but a multistep method recomputes x from its history, which undoes the "
            "change; choose a one-step method, or multistep=False",
            argument,
        )


def check_finite(solution: Solution) -> None:
    """Raise UserError if a solution has NaN or infinity, with the time at which it first appeared."""
    nonfinite_at = float(np.nanmax(np.asarray(solution.nonfinite_at), initial=-np.inf))  # the first of several devices
    if nonfinite_at == MAX_STEPS_EXCEEDED:
        raise UserError(
            "solve: some examples exceeded max_steps, or the denoiser gave NaN or infinity; allow more steps, larger "
            "tolerances or another method",
            "max_steps",
            "rtol",
            "atol",
            "method",
        )
    if nonfinite_at == CONSTRAINT_NOT_MET:
        raise UserError(
            "particles: expected a particle that meets the constraint in every population, got none in some, where all "
            "log potentials are -inf.",
            "particles",
        )
    if nonfinite_at >= 0:
        raise UserError(
            f"solve: the denoiser gave NaN or infinity: x was last finite at t = {nonfinite_at:.6g}; training may have "
            "diverged, or guidance or step size may be too large there",
            "threshold=clip",
            "solver",
            "num_steps",
        )


def ends_at_data(times, sde: SDE, to_data: bool | None = None) -> bool:
    """Return whether a grid ends at sigma = 0.

    Raises:
      UserError: if the times are traced and to_data is None, or to_data contradicts known times.
    """
    if isinstance(times, jax.core.Tracer):
        if to_data is None:
            raise UserError(
                "solve: expected times that are known while tracing, got an argument of a compiled function, so that "
                "it is unknown whether they end at sigma = 0 (close over a NumPy array, or give to_data=True or False)",
                "to_data",
            )
        return to_data
    with jax.ensure_compile_time_eval():
        ends = float(sde.sigma(jnp.asarray(np.asarray(times)[-1]))) == 0.0
    if to_data not in (None, ends):
        raise UserError(f"solve: expected to_data={ends} for times that end at {np.asarray(times)[-1]}, got {to_data}")
    return ends


def most_evaluations(denoiser: Denoiser, t0: float, t1: float) -> int:
    """Return the network evaluations per call at the most expensive time in [t0, t1]."""
    return int(np.max(count_evaluations(denoiser, np.linspace(t0, t1, 1025))))


def _count_evaluations(solver: Solver, sde: SDE, denoiser: Denoiser, times, to_data: bool, denoise: bool) -> int:
    """Return the network evaluations per sample of `solve`, with the cost of each call at its time."""
    calls = (len(times) - 1 - to_data) * solver.nfe_per_step + int(to_data or denoise)
    costs = count_evaluations(denoiser, np.linspace(sde.t_min, sde.t_max, 1025))
    if isinstance(times, jax.core.Tracer) or np.ptp(costs) == 0:
        return calls * int(costs.max())
    called = evaluation_times(solver, sde, np.asarray(times))
    if denoise and not to_data:
        called = np.append(called, times[-1])
    # Calls that are not at these times, for example of a gradient, count with the largest cost.
    return int(count_evaluations(denoiser, called).sum()) + (calls - len(called)) * int(costs.max())


def check_times(times: jax.Array | np.ndarray, sde: SDE, requires_nonzero_alpha: bool) -> None:
    """Raise UserError unless a solver can step through the times.

    Args:
      times: Times, (num_steps + 1,). The values of traced times are not checked.
      sde: Forward process.
      requires_nonzero_alpha: Whether alpha must be positive at the first time.

    Raises:
      UserError: if times are not descending or out of the SDE's range, or if alpha is 0 at the first time.
    """
    if jnp.ndim(times) != 1 or len(times) < 2:
        raise UserError(f"times: expected shape (num_steps + 1,) with at least one step, got {jnp.shape(times)}")
    if isinstance(times, jax.core.Tracer):
        return  # values are unknown while tracing
    values = np.asarray(times)
    if not np.all(np.diff(values) < 0):
        raise UserError(f"times: expected strictly descending times, got {values[:3]} ... {values[-1]}")
    slack = 1e-6 * sde.t_max  # the ends of a float32 grid are rounded
    if values[0] > sde.t_max + slack or values[-1] < 0:
        raise UserError(f"times: expected times within [0, {sde.t_max}], got {values[0]} down to {values[-1]}")
    if not requires_nonzero_alpha:
        return
    with jax.ensure_compile_time_eval():
        first = jnp.float32(values[0])
        diffusion, signal = float(sde.diffusion(first)), float(log_snr(sde, first))
    if not (np.isfinite(diffusion) and signal > NO_SIGNAL):
        raise UserError(
            f"this solver evaluates the SDE's drift and diffusion or divides by alpha, but g({values[0]:g}) = "
            f"{diffusion:.3g} and log-SNR {signal:.3g}: alpha reaches 0 there; the solvers ddim (with eta=1 if it "
            "should draw noise), dpm_solver_pp and unipc work",
            "solver=ddim",
            "sde",
        )


def evaluation_times(solver: Solver, sde: SDE, times: np.ndarray) -> np.ndarray:
    """Return the times, (evaluations,), at which a solver evaluates its denoiser, recorded from a run on zeros."""

    def advance(state, interval):
        recorded = []

        def denoiser(x, t, *later):
            recorded.append(jnp.asarray(t, x.dtype))
            return Prediction(jnp.zeros_like(x), jnp.zeros_like(x))

        state = solver.step(sde, denoiser, state, *interval, sample_keys(jax.random.key(0), 1))
        return state, jnp.stack(recorded)

    stepped = np.asarray(times[:-1] if ends_at_data(times, sde) else times, np.float32)
    last = stepped[-1:][: len(times) - len(stepped)]  # empty unless the grid ends at sigma = 0
    if len(stepped) == 1:
        return last
    with jax.ensure_compile_time_eval():
        recorded = jax.lax.scan(advance, solver.init(jnp.zeros((1, 1))), (stepped[:-1], stepped[1:]))[1]
    return np.concatenate([np.asarray(recorded).ravel(), last])
