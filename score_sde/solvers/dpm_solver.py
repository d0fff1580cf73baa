"""DPM-Solver++: exponential integrators of the probability flow and the reverse SDE in the data prediction.

Lu et al. 2022, "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models".
"""

import jax.numpy as jnp

from score_sde.errors import UserError
from score_sde.randomness import noise
from score_sde.solvers.base import OneStepState, Solver
from score_sde.solvers.exponential import (
    DEFAULT_REACH,
    check_method,
    combine,
    coordinate,
    data_step,
    init_history,
    lagrange_weights,
    moments,
    offset,
    past_nodes,
    push_history,
    time_at,
)


def dpm_solver_pp(
    order: int = 2, multistep: bool = True, corrected_start: bool = True, reach: float = DEFAULT_REACH
) -> Solver:
    """Return DPM-Solver++ of order 1 (DDIM), 2 or 3 on the probability flow.

    Multistep methods need 1 NFE per step: 2M is Algorithm 2, and 3M uses the exact integral of the parabola through
    three predictions. Singlestep methods need `order` NFE per step: 2S is Algorithm 1 with r = 1/2, and 3S has nodes at
    1/3 and 2/3 of the step in log-SNR. Algorithm 2, with r = h_before / h, is

        D = (1 + 1 / (2 r)) x0 - 1 / (2 r) x0_before
        x' = (sigma' / sigma) x - alpha' (e^-h - 1) D

    3M with a first step of order 1 has only order 2. Therefore the first two steps are corrected by the trapezoidal
    rule in alpha / sigma, once the next step has evaluated the network. This gives order 3 without extra evaluations.
    With zero terminal SNR order 3 uses the coordinate log(1 + alpha / sigma) instead of lambda (see `exponential`),
    because in lambda it would have order 2.

    Args:
      order: Order 1, 2 or 3.
      multistep: Whether to use predictions of previous steps instead of further evaluations within the step.
      corrected_start: Whether 3M corrects its first two steps; False is as in other libraries.
      reach: Limit of extrapolation for multistep methods. A step uses a lower order if the sum of its absolute weights
        would exceed `reach` times that of order 1, which happens for long steps and after short ones. Short uniform
        steps need 2 for order 2 and 3.67 for order 3. Infinity disables the limit.

    Raises:
      UserError: if order is another number, reach is below 1, or an argument has no effect.
    """
    check_method("dpm_solver_pp", order, (1, 2, 3), reach)
    if not multistep and (reach != DEFAULT_REACH or not corrected_start):
        raise UserError(
            "dpm_solver_pp: with multistep=False corrected_start and reach have no effect", "multistep=True"
        )
    if not multistep:
        return Solver(init=OneStepState, step=_singlestep(order), nfe_per_step=order)

    def step(sde, denoiser, state, t, t_next, rng):
        c = offset(sde, order)
        coord, h = _interval(sde, t, t_next, c)
        x0 = denoiser(state.x, t).x0
        x = trapezoid(sde, state, x0, t, c) if order == 3 and corrected_start else state.x
        weights = multistep_weights(order, h, past_nodes(state, coord, h), state.steps, reach)
        x_next = data_step(sde, x, t, t_next, combine(weights, (x0, *state.values)), c)
        return push_history(state, x_next, x, x0, coord, t)

    return Solver(init=init_history(order - 1), step=step, nfe_per_step=1)


def multistep_weights(order: int, h, past, steps, reach: float, b_of_h=None) -> list:
    """Return the weights of the latest predictions in the integral of `exponential`.

    The order is the highest for which there are enough previous steps and the weights are within `reach`. One
    prediction has the weight 1 - e^-h. Two have those of 2M, which evaluates the line through them at the middle of the
    step, D = x0 + (x0 - x0_before) / (2 r) with r = h_before / h. Three have those of the parabola's exact integral.

    Args:
      order: Largest order.
      h: Step size in the coordinate.
      past: Coordinates of the previous predictions in units of h, so that past[0] = -r.
      steps: Number of steps taken.
      reach: Limit of extrapolation, see `dpm_solver_pp`.
      b_of_h: UniPC's B(h) of the second-order correction; None is the 1 - e^-h of 2M.
    """
    psi = moments(h, 3)  # psi[0] = 1 - e^-h
    zero = jnp.zeros_like(h)
    correction = zero
    if order >= 2:
        r = -past[0]
        correction = 0.5 * (psi[0] if b_of_h is None else b_of_h) / r  # (1 - e^-h) / (2 r)
    weights = [psi[0], zero, zero]
    higher = [[psi[0] + correction, -correction, zero]]
    if order >= 3:
        higher.append(lagrange_weights([zero, past[0], past[1]], psi))
    for count, candidate in enumerate(higher[: order - 1], start=1):
        within_reach = sum(jnp.abs(weight) for weight in candidate) <= reach * psi[0]
        weights = [jnp.where((steps >= count) & within_reach, b, a) for a, b in zip(weights, candidate, strict=True)]
    return weights[:order]


def trapezoid(sde, state, x0, t, c: float = 0.0):
    """Return x at t, after each of the first two steps corrected with the prediction x0 at t to local order 3."""
    _, h = _interval(sde, state.t_before, t, c)
    mean = 0.5 * (state.values[0] + x0)
    corrected = data_step(sde, state.x_before, state.t_before, t, -jnp.expm1(-h) * mean, c)
    return jnp.where((state.steps == 1) | (state.steps == 2), corrected, state.x)


def _singlestep(order: int):
    """Return the step of singlestep DPM-Solver++."""

    def step(sde, denoiser, state, t, t_next, rng):
        c = offset(sde, order)
        coord, h = _interval(sde, t, t_next, c)
        x, psi = state.x, moments(h, 2)
        first = denoiser(x, t).x0

        def advance(fraction, node=None, value=None):
            """Return (x, time) at a fraction of the step, with the line through `first` and the value at a node."""
            inner = time_at(sde, coord + fraction * h, c)
            correction = 0.0 if value is None else 0.5 * fraction / node * (value - first)
            return data_step(sde, x, t, inner, -jnp.expm1(-fraction * h) * (first + correction), c), inner

        if order == 1:
            return OneStepState(data_step(sde, x, t, t_next, psi[0] * first, c))
        if order == 2:
            second = denoiser(*advance(0.5)).x0  # Algorithm 1 with r = 1/2: D = first + (second - first) / (2 r)
            return OneStepState(data_step(sde, x, t, t_next, psi[0] * second, c))
        second = denoiser(*advance(1 / 3)).x0
        third = denoiser(*advance(2 / 3, 1 / 3, second)).x0
        return OneStepState(data_step(sde, x, t, t_next, psi[0] * first + psi[1] * 1.5 * (third - first), c))

    return step


def dpm_solver_pp_sde(order: int = 2) -> Solver:
    """Return SDE-DPM-Solver++ of order 1 or 2 (multistep) on the reverse SDE; 1 NFE per step (Lu et al. 2022, eq. 19).

    Order 1 is ancestral sampling. Order 2, with r = h_before / h, is

        x' = (sigma' / sigma) e^-h x + alpha' (1 - e^-2h) (x0 + (x0 - x0_before) / (2 r)) + sigma' sqrt(1 - e^-2h) z

    For Gaussian data the moments converge with order 2. `stochastic_runge_kutta` has weak order 2 for any data.

    Args:
      order: Order 1 or 2 of the drift.

    Raises:
      UserError: if order is another number.
    """
    check_method("dpm_solver_pp_sde", order, (1, 2))

    def step(sde, denoiser, state, t, t_next, rng):
        coord, h = _interval(sde, t, t_next)
        x0 = denoiser(state.x, t).x0
        d = x0
        if order == 2:
            r = -past_nodes(state, coord, h)[0]
            d = x0 + jnp.where(state.steps >= 1, 0.5 / r * (x0 - state.values[0]), 0.0)
        variance = -jnp.expm1(-2 * h)  # 1 - e^-2h
        scaled_noise = sde.sigma(t_next) * jnp.sqrt(variance) * noise(rng, state.x)
        x_next = data_step(sde, jnp.exp(-h) * state.x, t, t_next, variance * d) + scaled_noise
        return push_history(state, x_next, state.x, x0, coord, t)

    return Solver(init=init_history(order - 1), step=step, nfe_per_step=1, stochastic=True)


def _interval(sde, t, t_next, c: float = 0.0):
    """Return the coordinate at t and the step size h in it."""
    coord = coordinate(sde, t, c)
    return coord, coordinate(sde, t_next, c) - coord
