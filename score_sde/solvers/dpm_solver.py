"""DPM-Solver++: exponential integrators of the probability flow, and of the reverse SDE, in the data prediction.

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
    """DPM-Solver++ of order 1 (which is DDIM), 2 or 3 on the probability flow.

    Multistep (2M: Algorithm 2; 3M: with the exact integral of the parabola through three predictions): 1 NFE a step.
    Singlestep (2S: Algorithm 1 with r = 1/2; 3S: nodes at 1/3 and 2/3 of the step in log-SNR): `order` NFE a step.

    3M would be of order 2 if it started with a plain step of order 1. Here the first two steps are corrected by the
    trapezoidal rule in alpha / sigma as soon as the step after has made the prediction that this needs: order 3 at no
    evaluation more. With zero terminal SNR order 3 takes the coordinate log(1 + alpha / sigma) in coord of lambda (see
    `exponential`), in which it is of order 3 there too; in lambda it would be of order 2.

    Args:
      order: 1, 2 or 3.
      multistep: use the predictions of the steps before instead of further ones within the step.
      corrected_start: False starts 3M with plain steps of order 1 and 2, as other libraries do.
      reach: multistep steps take a lower order where the absolute weights of their predictions would add up to more
        than `reach` times those of order 1: where a step is so long, in itself or beside the one before, that they
        would extrapolate far. Short even steps need 2 for order 2 and 3.67 for order 3; infinity never lowers.

    Raises:
      UserError: another order, or reach below 1.
    """
    check_method("dpm_solver_pp", order, (1, 2, 3), reach)
    if not multistep and (reach != DEFAULT_REACH or not corrected_start):
        raise UserError("dpm_solver_pp: with multistep=False nothing reads corrected_start and reach")
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


def multistep_weights(order: int, h, past, steps, reach: float, half=None) -> list:
    """The weights of the latest predictions: of the parabola through three, of eq. 17 through two, or of one.

    Of the highest order that the steps taken allow and whose weights stay within `reach`; `half` is UniPC's B(h), in
    coord of the 1 - e^-h of eq. 17.

    Eq. 17 (2M) extrapolates to the middle of the step, x0 + (x0 - x0_before) / (2 r) with r = h_before / h, the
    integral's order being the same as that of the line's exact integral.
    """
    psi = moments(h, 3)
    zero = jnp.zeros_like(h)
    slope = -0.5 * (psi[0] if half is None else half) / past[0] if order >= 2 else zero
    weights = [psi[0], zero, zero]
    higher = [[psi[0] + slope, -slope, zero]]
    if order >= 3:
        higher.append(lagrange_weights([zero, past[0], past[1]], psi))
    for count, candidate in enumerate(higher[: order - 1], start=1):
        near = sum(jnp.abs(weight) for weight in candidate) <= reach * psi[0]
        weights = [jnp.where((steps >= count) & near, b, a) for a, b in zip(weights, candidate, strict=True)]
    return weights[:order]


def trapezoid(sde, state, x0, t, c: float = 0.0):
    """x at t, after the first and the second step corrected by the prediction x0 at it: local order 3."""
    _, h = _interval(sde, state.t_before, t, c)
    mean = 0.5 * (state.values[0] + x0)
    again = data_step(sde, state.x_before, state.t_before, t, -jnp.expm1(-h) * mean, c)
    return jnp.where((state.steps == 1) | (state.steps == 2), again, state.x)


def _singlestep(order: int):
    def step(sde, denoiser, state, t, t_next, rng):
        c = offset(sde, order)
        coord, h = _interval(sde, t, t_next, c)
        x, psi = state.x, moments(h, 2)
        first = denoiser(x, t).x0

        def advance(fraction, slope_node=None, value=None):
            """To a fraction of the step, through `first` and the middle of a line to the value at a node."""
            inner = time_at(sde, coord + fraction * h, c)
            slope = 0.0 if value is None else 0.5 * fraction / slope_node * (value - first)
            return data_step(sde, x, t, inner, -jnp.expm1(-fraction * h) * (first + slope), c), inner

        if order == 1:
            return OneStepState(data_step(sde, x, t, t_next, psi[0] * first, c))
        if order == 2:
            second = denoiser(*advance(0.5)).x0  # eq. 15 with r = 1/2: first + (second - first) / (2 r)
            return OneStepState(data_step(sde, x, t, t_next, psi[0] * second, c))
        second = denoiser(*advance(1 / 3)).x0
        third = denoiser(*advance(2 / 3, 1 / 3, second)).x0
        return OneStepState(data_step(sde, x, t, t_next, psi[0] * first + psi[1] * 1.5 * (third - first), c))

    return step


def dpm_solver_pp_sde(order: int = 2) -> Solver:
    """SDE-DPM-Solver++ of order 1 or 2 (multistep) on the reverse SDE; 1 NFE a step (Lu et al. 2022, eq. 19).

    Order 1 is ancestral sampling. Order 2 integrates the drift to second order, with r = h_before / h

        x' = (sigma' / sigma) e^-h x + alpha' (1 - e^-2h) (x0 + (x0 - x0_before) / (2 r)) + sigma' sqrt(1 - e^-2h) z

    Of Gaussian data the moments converge with order 2; `stochastic_runge_kutta` has weak order 2 for any.

    Raises:
      UserError: another order.
    """
    check_method("dpm_solver_pp_sde", order, (1, 2))

    def step(sde, denoiser, state, t, t_next, rng):
        coord, h = _interval(sde, t, t_next)
        x0 = denoiser(state.x, t).x0
        latest = x0
        if order == 2:
            change = -0.5 / past_nodes(state, coord, h)[0] * (x0 - state.values[0])
            latest = x0 + jnp.where(state.steps >= 1, change, 0.0)
        renewed = -jnp.expm1(-2 * h)
        drawn = sde.sigma(t_next) * jnp.sqrt(renewed) * noise(rng, state.x)
        x_next = data_step(sde, jnp.exp(-h) * state.x, t, t_next, renewed * latest) + drawn
        return push_history(state, x_next, state.x, x0, coord, t)

    return Solver(init=init_history(order - 1), step=step, nfe_per_step=1, stochastic=True)


def _interval(sde, t, t_next, c: float = 0.0):
    """The coordinate at t, and the step h in it."""
    coord = coordinate(sde, t, c)
    return coord, coordinate(sde, t_next, c) - coord
