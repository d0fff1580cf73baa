"""DEIS: an exponential integrator in the noise prediction."""

import jax.numpy as jnp
import numpy as np

from score_sde.errors import lookup
from score_sde.sde import time_derivative
from score_sde.solvers.base import Solver
from score_sde.solvers.exponential import (
    DEFAULT_REACH,
    check_method,
    combine,
    half_log_snr,
    init_history,
    past_nodes,
    push_history,
)

ROOTS, WEIGHTS = np.polynomial.legendre.leggauss(16)  # exact for polynomials of degree 31


def deis(
    order: int = 3, corrected_start: bool = True, variable: str = "log_snr", reach: float = DEFAULT_REACH
) -> Solver:
    """DEIS of order 1 (which is DDIM), 2 or 3; 1 NFE a step (Zhang and Chen 2023, eq. 14 and 15).

    With rho = sigma / alpha the flow is d(x / alpha) = eps d rho, so x' / alpha' = x / alpha + sum_k w_k eps_k with the
    weights of the polynomial through the latest predictions, integrated over rho by Gauss's rule. (The paper counts the
    polynomial's degree: its AB2 is order 3.) Order 3 starts as `dpm_solver_pp` does.

    Args:
      order: 1, 2 or 3.
      corrected_start: False starts order 3 with plain steps of order 1 and 2.
      variable: what the polynomial is in: "t" (the paper's tAB-DEIS) or "log_snr" (as in diffusers).
      reach: as of `dpm_solver_pp`.

    Raises:
      UserError: another order or variable, or reach below 1.
    """
    check_method("deis", order, (1, 2, 3), reach)
    in_t = lookup("variable", {"t": True, "log_snr": False}, variable, "variable")

    def rho(sde, t):
        return sde.sigma(t) / sde.alpha(t)

    def noise_step(sde, x, t, t_next, integral):
        return sde.alpha(t_next) / sde.alpha(t) * x + sde.alpha(t_next) * integral

    def coord(sde, t):
        return t if in_t else half_log_snr(sde, t)

    def weights_of(sde, t, t_next, past, steps):
        u = jnp.asarray(0.5 * (1 + ROOTS), t.dtype)
        first, width = coord(sde, t), coord(sde, t_next) - coord(sde, t)
        change = time_derivative(lambda t: rho(sde, t), first + u * width) if in_t else -jnp.exp(-(first + u * width))
        density = jnp.asarray(0.5 * WEIGHTS, t.dtype) * change * width
        whole = rho(sde, t_next) - rho(sde, t)

        def polynomial(nodes):
            """The weights of predictions at u = 0 and at the nodes before."""
            weights = []
            for node in nodes:
                others = [jnp.zeros_like(node), *(other for other in nodes if other is not node)]
                values = jnp.ones_like(u)
                for other in others:
                    values = values * (u - other) / (node - other)
                weights.append(jnp.sum(density * values))
            return [whole - sum(weights), *weights, *[jnp.zeros_like(whole)] * (order - 1 - len(nodes))]

        weights = polynomial([])
        for count in range(1, order):
            more = polynomial(past[:count])
            near = sum(jnp.abs(weight) for weight in more) <= reach * jnp.abs(whole)
            weights = [jnp.where((steps >= count) & near, b, a) for a, b in zip(weights, more, strict=True)]
        return weights

    def step(sde, denoiser, state, t, t_next, rng):
        epsilon, x = denoiser(state.x, t).epsilon, state.x
        if order == 3 and corrected_start:
            middle = 0.5 * (rho(sde, t) - rho(sde, state.t_before)) * (state.values[0] + epsilon)
            again = noise_step(sde, state.x_before, state.t_before, t, middle)
            x = jnp.where((state.steps == 1) | (state.steps == 2), again, x)
        weights = weights_of(
            sde, t, t_next, past_nodes(state, coord(sde, t), coord(sde, t_next) - coord(sde, t)), state.steps
        )
        x_next = noise_step(sde, x, t, t_next, combine(weights, (epsilon, *state.values)))
        return push_history(state, x_next, x, epsilon, coord(sde, t), t)

    return Solver(init=init_history(order - 1), step=step, nfe_per_step=1, requires_nonzero_alpha=True)
