"""UniPC: a multistep predictor, and a corrector that costs no evaluation of its own."""

import jax.numpy as jnp

from score_sde.errors import lookup
from score_sde.solvers.base import Solver
from score_sde.solvers.dpm_solver import multistep_weights
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
)

VARIANTS = {"bh1": lambda h: h, "bh2": lambda h: -jnp.expm1(-h)}


def unipc(order: int = 3, variant: str = "bh2", reach: float = DEFAULT_REACH) -> Solver:
    """UniPC of order 1, 2 or 3 in the data prediction; 1 NFE a step (Zhao et al. 2023).

    Each step first corrects where the one before arrived (UniC, Section 3.1), with the prediction made there, which the
    next prediction (UniP) needs anyway. Of a polynomial through as many predictions as the order both have the exact
    integral; with one earlier prediction UniP takes the middle of the line, as UniC does with none (their rho = 1/2).
    With zero terminal SNR order 3 takes the coordinate of `dpm_solver_pp`.

    Args:
      order: 1, 2 or 3.
      variant: B(h), which decides the steps with rho = 1/2: "bh1", h, or "bh2", e^h - 1 (here 1 - e^-h, of x0).
      reach: as of `dpm_solver_pp`, for the predictor.

    Raises:
      UserError: another order or variant, or reach below 1.
    """
    check_method("unipc", order, (1, 2, 3), reach)
    half = lookup("variant", VARIANTS, variant, "variant")

    def step(sde, denoiser, state, t, t_next, rng):
        c = offset(sde, order)
        coord = coordinate(sde, t, c)
        h = coordinate(sde, t_next, c) - coord
        x0 = denoiser(state.x, t).x0
        x = correct(sde, state, x0, t, coord, c)
        weights = multistep_weights(order, h, past_nodes(state, coord, h), state.steps, reach, half(h))
        values = (x0, *state.values[: order - 1])
        x_next = data_step(sde, x, t, t_next, combine(weights, values), c)
        return push_history(state, x_next, x, x0, coord, t)

    def correct(sde, state, x0, t, coord, c):
        """UniC: the step that led to t once more, with the prediction at its end."""
        before, *older = state.coordinates
        h = jnp.where(state.steps >= 1, coord - before, 1.0)
        nodes = [jnp.zeros_like(h), jnp.ones_like(h)]  # the step's two ends
        psi = moments(h, order + 1)
        weights = [psi[0] - 0.5 * half(h), 0.5 * half(h)]
        for k, earlier in enumerate(older):
            steps_needed = k + 2
            nodes = [*nodes, jnp.where(state.steps >= steps_needed, (earlier - before) / h, -1.0 - k)]
            exact = lagrange_weights(nodes, psi[: len(nodes)])
            weights = [*weights, jnp.zeros_like(h)]
            weights = [jnp.where(state.steps >= steps_needed, b, a) for a, b in zip(weights, exact, strict=True)]
        now_second = (state.values[0], x0, *state.values[1:])
        corrected = data_step(sde, state.x_before, state.t_before, t, combine(weights, now_second), c)
        return jnp.where(state.steps >= 1, corrected, state.x)

    return Solver(init=init_history(order), step=step, nfe_per_step=1)
