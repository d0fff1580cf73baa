"""The reverse SDE with adaptive step sizes per example."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from score_sde.errors import UserError
from score_sde.parameterization import Denoiser
from score_sde.randomness import sample_keys
from score_sde.sde import SDE, lift, reverse_sde_epsilon
from score_sde.solvers.adaptive import FIRST_STEP, check_converged, nonfinite_time
from score_sde.solvers.base import Solution, check_times, most_evaluations

THETA, R = 0.9, 0.9  # safety factor and exponent
FACTORS = (0.1, 5.0)  # range of the ratio of two consecutive step sizes


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
    """Integrate the reverse SDE by an embedded Euler pair (Jolicoeur-Martineau et al. 2021, Algorithm 1).

    The pair is Euler-Maruyama x' and improved Euler x''. Step sizes are chosen per example:

        delta = max(atol, rtol max(|x'|, |x'_prev|))
        E = |(x' - x'') / delta| / sqrt(d)
        accept x'' if E <= 1,    h <- theta h E^-r,    theta = r = 0.9, with theta E^-r clipped to `FACTORS`

    Unlike in the paper, a rejected step is repeated on the same Brownian path (Diffrax's virtual tree). New noise would
    preferentially discard large increments.

    Args:
      sde: Forward process.
      denoiser: Denoiser (x, t) -> Prediction with t: (batch,).
      x: Points at t0, (batch, *event).
      key: PRNG key, folded with the sample's position in the batch, or one key per sample, (batch,).
      rtol: Relative tolerance.
      atol: Absolute tolerance; the default, from the paper, is one level of 8 bits in [-1, 1].
      t0: Start time; None is sde.t_max.
      t1: End time; None is sde.t_min.
      max_steps: Maximum number of accepted and rejected steps per example.

    Returns:
      Solution with nfe per example, (batch,): two evaluations of the denoiser per step, accepted or rejected.

    Raises:
      UserError: if the SDE's drift and diffusion are infinite at t0, a number is out of range, or an example exceeded
        max_steps. Under `jax.jit` such an example is NaN.
    """
    t0, t1 = (end if given is None else given for given, end in ((t0, sde.t_max), (t1, sde.t_min)))
    _check_numbers(rtol, atol, max_steps)
    check_times(np.array([t0, t1]), sde, requires_nonzero_alpha=True)
    drift, diffusion = reverse_sde_epsilon(sde, lambda x, t: denoiser(x, t).epsilon)
    keys = sample_keys(key, x.shape[0])
    increments = jax.vmap(_brownian(t0, t1, x), in_axes=(0, 0, 0))

    def attempt(carry):
        x, euler_prev, t, h, steps = carry
        active = t > t1
        t_next = jnp.maximum(t - h, t1)
        dt = lift(t_next - t, x)
        dw = increments(keys, t_next, t)
        first = drift(x, t)
        euler = x + first * dt + lift(diffusion(t), x) * dw
        second = x + drift(euler, t_next) * dt + lift(diffusion(t_next), x) * dw
        improved = 0.5 * (euler + second)
        delta = jnp.maximum(atol, rtol * jnp.maximum(jnp.abs(euler), jnp.abs(euler_prev)))
        error = jnp.sqrt(jnp.mean(((euler - improved) / delta) ** 2, axis=tuple(range(1, x.ndim))))
        accepted = active & (error <= 1.0)
        factor = THETA * jnp.maximum(error, 1e-6) ** -R
        h_next = _rounded((t - t_next) * jnp.clip(jnp.nan_to_num(factor), *FACTORS))
        is_accepted = lift(accepted, x)
        return (
            jnp.where(is_accepted, improved, x),
            jnp.where(is_accepted, euler, euler_prev),
            jnp.where(accepted, t_next, t),
            jnp.where(active, h_next, h),
            jnp.where(jnp.isfinite(error), steps + active, max_steps),  # repeating the step would give NaN again
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
    """Round step sizes to four bits, so that times do not depend on rounding errors, which depend on the batch."""
    mantissa, exponent = jnp.frexp(h)
    return jnp.ldexp(jnp.round(16 * mantissa) / 16, exponent)


def _brownian(t0: float, t1: float, x: jax.Array):
    """Return (key, low, high) -> increment of one sample's Brownian path, resolved to t1 / 16."""
    import diffrax  # imported here, because the import takes half a second

    shape = jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
    tolerance = max(t1 / 16, 2e-7 * t0)  # not below float32's resolution

    def increment(key, low, high):
        tree = diffrax.VirtualBrownianTree(t1, t0, tol=tolerance, shape=shape, key=key)
        return tree.evaluate(low, high)

    return increment


def _check_numbers(rtol: float, atol: float, max_steps: int) -> None:
    if not (rtol >= 0 and atol > 0 and max_steps >= 1):
        raise UserError(
            f"adaptive_sde: expected rtol >= 0, atol > 0 and max_steps >= 1, got {rtol}, {atol} and {max_steps}"
        )


def adaptive_sde(rtol: float = 0.02, atol: float = 0.0078, max_steps: int = 4096) -> Callable[..., Solution]:
    """Return `solve_adaptive_sde` as a sampler (sde, denoiser, x, keys) -> Solution; see there."""
    _check_numbers(rtol, atol, max_steps)
    return lambda sde, denoiser, x, keys: solve_adaptive_sde(
        sde, denoiser, x, keys, rtol=rtol, atol=atol, max_steps=max_steps
    )
