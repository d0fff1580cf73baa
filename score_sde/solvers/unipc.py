"""UniPC: a multistep predictor with a corrector that needs no extra evaluation."""

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
    """Return UniPC of order 1, 2 or 3 in the data prediction; 1 NFE per step (Zhao et al. 2023).

    With the data predictions m_0 at the start of the step, m_k at earlier times, r_k = (lambda_k - lambda_0) / h and
    D_k = m_k - m_0, the predictor UniP is (Section 3.2, for the data prediction)

        x' = (sigma' / sigma) x - alpha' (e^-h - 1) m_0 + alpha' B(h) sum_k (a_k / r_k) D_k

    The corrector UniC (Section 3.1) has one more term, D at r = 1, the end of the step. It uses the prediction there,
    which the next predictor step needs anyway. So each step first corrects the previous one. With one term, in
    UniP of order 2 and UniC of order 1, a = 1/2. With more terms the a_k make the step exact for polynomials, so they
    are computed as the weights of the exact integral, which does not depend on B(h).

    With zero terminal SNR order 3 uses the coordinate of `dpm_solver_pp`.

    Args:
      order: Order 1, 2 or 3.
      variant: B(h) of the steps with a = 1/2: "bh1" is h, "bh2" is 1 - e^-h (e^h - 1 of the noise prediction).
      reach: Limit of extrapolation of the predictor, see `dpm_solver_pp`.

    Raises:
      UserError: if order is another number, the variant is unknown, or reach is below 1.
    """
    check_method("unipc", order, (1, 2, 3), reach)
    b = lookup("variant", VARIANTS, variant, "variant")

    def step(sde, denoiser, state, t, t_next, rng):
        c = offset(sde, order)
        coord = coordinate(sde, t, c)
        h = coordinate(sde, t_next, c) - coord
        x0 = denoiser(state.x, t).x0
        x = correct(sde, state, x0, t, coord, c)
        weights = multistep_weights(order, h, past_nodes(state, coord, h), state.steps, reach, b(h))
        values = (x0, *state.values[: order - 1])
        x_next = data_step(sde, x, t, t_next, combine(weights, values), c)
        return push_history(state, x_next, x, x0, coord, t)

    def correct(sde, state, x0, t, coord, c):
        """Return x at t corrected by UniC: the previous step repeated with the prediction x0 at its end."""
        before, *older = state.coordinates
        h = jnp.where(state.steps >= 1, coord - before, 1.0)
        nodes = [jnp.zeros_like(h), jnp.ones_like(h)]  # r of m_0 and of x0: the two ends of the step
        psi = moments(h, order + 1)
        weights = [psi[0] - 0.5 * b(h), 0.5 * b(h)]  # a = 1/2, r = 1
        for k, earlier in enumerate(older):
            steps_needed = k + 2
            nodes = [*nodes, jnp.where(state.steps >= steps_needed, (earlier - before) / h, -1.0 - k)]
            exact = lagrange_weights(nodes, psi[: len(nodes)])
            weights = [*weights, jnp.zeros_like(h)]
            weights = [jnp.where(state.steps >= steps_needed, e, w) for w, e in zip(weights, exact, strict=True)]
        values = (state.values[0], x0, *state.values[1:])
        corrected = data_step(sde, state.x_before, state.t_before, t, combine(weights, values), c)
        return jnp.where(state.steps >= 1, corrected, state.x)

    return Solver(init=init_history(order), step=step, nfe_per_step=1)
