"""The reverse SDE with steps chosen by the error."""

from collections.abc import Callable

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from score_sde.errors import UserError
from score_sde.parameterization import Denoiser
from score_sde.randomness import sample_keys
from score_sde.sde import SDE, lift, reverse_sde_epsilon
from score_sde.solvers.adaptive import FIRST_STEP, check_converged, nonfinite_time
from score_sde.solvers.base import Solution, check_times, most_evaluations

SAFETY, EXPONENT = 0.9, 0.9
FACTORS = (0.1, 5.0)  # by which a step may be shorter or longer than the one before


def solve_adaptive_sde(
    sde: SDE,
    denoiser: Denoiser,
    x: jax.Array,
    key: jax.Array,
    rtol: float = 0.02,
    atol: float = 0.0078,
    t0: float | None = None,
    t1: float | None = None,
    max_steps: int = 4096,
) -> Solution:
    """The reverse SDE by Euler-Maruyama and improved Euler as a pair (Jolicoeur-Martineau et al. 2021, Algorithm 1).

    Each example has its own steps: E = |x'' - x'| / sqrt(d), in units of max(atol, rtol max(|x'|, |x' before|)), is at
    most 1 where a step is accepted, and the next is 0.9 E^-0.9 times as long (the paper's r = theta = 0.9), within
    `FACTORS`.
    Unlike the paper's, a rejected step is tried again on the same Brownian path (Diffrax's virtual tree): with fresh
    noise it would be the large increments that are thrown away.

    Args:
      sde: the forward process.
      denoiser: (x, t) -> Prediction, with t: (batch,).
      x: (batch, *event) at t0.
      key: one typed key, folded by the sample's position in the batch, or (batch,) keys.
      rtol, atol: tolerances; the paper's atol is a level of 8 bits in [-1, 1].
      t0, t1: where it starts and ends; None: sde.t_max and sde.t_min.
      max_steps: steps an example may take, accepted and rejected.

    Returns:
      A Solution whose nfe is (batch,): two evaluations of the denoiser per step, accepted or rejected.

    Raises:
      UserError: the SDE's drift and diffusion are infinite at t0, a number is out of range, or an example took
        max_steps (under `jax.jit` it is NaN).
    """
    t0, t1 = (end if given is None else given for given, end in ((t0, sde.t_max), (t1, sde.t_min)))
    _check_numbers(rtol, atol, max_steps)
    check_times(np.array([t0, t1]), sde, requires_nonzero_alpha=True)
    drift, diffusion = reverse_sde_epsilon(sde, lambda x, t: denoiser(x, t).epsilon)
    keys = sample_keys(key, x.shape[0])
    increments = jax.vmap(_brownian(t0, t1, x), in_axes=(0, 0, 0))

    def attempt(carry):
        x, before, t, h, steps = carry
        active = t > t1
        t_next = jnp.maximum(t - h, t1)
        dt = lift(t_next - t, x)
        dw = increments(keys, t_next, t)
        first = drift(x, t)
        euler = x + first * dt + lift(diffusion(t), x) * dw
        second = x + drift(euler, t_next) * dt + lift(diffusion(t_next), x) * dw
        improved = 0.5 * (euler + second)
        scale = jnp.maximum(atol, rtol * jnp.maximum(jnp.abs(euler), jnp.abs(before)))
        error = jnp.sqrt(jnp.mean(((euler - improved) / scale) ** 2, axis=tuple(range(1, x.ndim))))
        accepted = active & (error <= 1.0)
        factor = SAFETY * jnp.maximum(error, 1e-6) ** -EXPONENT
        longer = _rounded((t - t_next) * jnp.clip(jnp.nan_to_num(factor), *FACTORS))
        kept = lift(accepted, x)
        return (
            jnp.where(kept, improved, x),
            jnp.where(kept, euler, before),
            jnp.where(accepted, t_next, t),
            jnp.where(active, longer, h),
            jnp.where(jnp.isfinite(error), steps + active, max_steps),  # NaN only comes again
        )

    def unfinished(carry):
        _, _, t, _, steps = carry
        return jnp.any((t > t1) & (steps < max_steps))

    batch = jnp.full(x.shape[:1], t0, x.dtype)
    state = x, x, batch, FIRST_STEP * (batch - t1), jnp.zeros(x.shape[:1], jnp.int32)
    result, _, t, _, steps = jax.lax.while_loop(unfinished, attempt, state)
    result = jnp.where(lift(t <= t1, x), result, jnp.nan)
    solution = Solution(result, 2 * steps * most_evaluations(denoiser, t1, t0), None, nonfinite_time(result))
    if not isinstance(result, jax.core.Tracer):
        check_converged(solution, max_steps)
    return solution


def _rounded(h: jax.Array) -> jax.Array:
    """Rounds steps to four bits: rounding errors, which depend on the batch, then don't move a rough path's times."""
    mantissa, exponent = jnp.frexp(h)
    return jnp.ldexp(jnp.round(16 * mantissa) / 16, exponent)


def _brownian(t0: float, t1: float, x: jax.Array):
    """(key, t, t_next) -> the increment of one sample's Brownian path, resolved to a sixteenth of t1."""
    shape = jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
    tolerance = max(t1 / 16, 2e-7 * t0)  # but for float32's rounding

    def increment(key, low, high):
        tree = diffrax.VirtualBrownianTree(t1, t0, tol=tolerance, shape=shape, key=key)
        return tree.evaluate(low, high)

    return increment


def _check_numbers(rtol: float, atol: float, max_steps: int) -> None:
    if not (rtol >= 0 and atol > 0 and max_steps >= 1):
        raise UserError(
            f"adaptive_sde: need rtol >= 0, atol > 0 and max_steps >= 1, got {rtol}, {atol} and {max_steps}"
        )


def adaptive_sde(rtol: float = 0.02, atol: float = 0.0078, max_steps: int = 4096) -> Callable[..., Solution]:
    """`solve_adaptive_sde` as a sampler: (sde, denoiser, x, keys) -> Solution; its arguments and errors."""
    _check_numbers(rtol, atol, max_steps)
    return lambda sde, denoiser, x, keys: solve_adaptive_sde(
        sde, denoiser, x, keys, rtol=rtol, atol=atol, max_steps=max_steps
    )
