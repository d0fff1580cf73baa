"""DEIS: exponential integrators in the noise prediction."""

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
    """Return DEIS of order 1 (DDIM), 2 or 3; 1 NFE per step (Zhang and Chen 2023, "Fast Sampling ...", eq. 14 and 15).

    With rho = sigma / alpha the flow is d(x / alpha) = eps d rho. With a polynomial in u, which is t or log-SNR,
    through the latest predictions eps_j at u_j, a step is

        x' = (alpha' / alpha) x + alpha' sum_j C_ij eps_j
        C_ij = integral of prod_{k != j} (u - u_k) / (u_j - u_k) d rho over the step

    The integral is computed by Gauss-Legendre quadrature. The order is the paper's polynomial degree plus 1: its AB2 is
    order 3. Order 3 starts like `dpm_solver_pp`.

    Args:
      order: Order 1, 2 or 3.
      corrected_start: Whether order 3 corrects its first two steps, see `dpm_solver_pp`.
      variable: Coordinate u of the polynomial: "t" (tAB-DEIS of the paper) or "log_snr" (as in diffusers).
      reach: Limit of extrapolation, see `dpm_solver_pp`.

    Raises:
      UserError: if order is another number, the variable is unknown, or reach is below 1.
    """
    check_method("deis", order, (1, 2, 3), reach)
    in_t = lookup("variable", {"t": True, "log_snr": False}, variable, "variable")

    def rho(sde, t):
        return sde.sigma(t) / sde.alpha(t)

    def noise_step(sde, x, t, t_next, integral):
        return sde.alpha(t_next) / sde.alpha(t) * x + sde.alpha(t_next) * integral

    def coord(sde, t):
        return t if in_t else half_log_snr(sde, t)

    def step_coefficients(sde, t, t_next, past, steps):
        """Return C_ij for j = 0 .. order - 1; `past` are the earlier nodes u_j with the step mapped to [0, 1]."""
        u = jnp.asarray(0.5 * (1 + ROOTS), t.dtype)
        first, width = coord(sde, t), coord(sde, t_next) - coord(sde, t)
        derivative = (
            time_derivative(lambda t: rho(sde, t), first + u * width) if in_t else -jnp.exp(-(first + u * width))
        )
        d_rho = jnp.asarray(0.5 * WEIGHTS, t.dtype) * derivative * width
        rho_change = rho(sde, t_next) - rho(sde, t)

        def coefficients(nodes):
            """Return C_ij of the polynomial through the predictions at u = 0 and at earlier nodes."""
            c = []
            for node in nodes:
                others = [jnp.zeros_like(node), *(other for other in nodes if other is not node)]
                product = jnp.ones_like(u)
                for other in others:
                    product = product * (u - other) / (node - other)
                c.append(jnp.sum(d_rho * product))
            # The coefficients of a polynomial sum to the integral of d rho, which gives the one of the latest node.
            return [rho_change - sum(c), *c, *[jnp.zeros_like(rho_change)] * (order - 1 - len(nodes))]

        chosen = coefficients([])
        for count in range(1, order):
            candidate = coefficients(past[:count])
            within_reach = sum(jnp.abs(c) for c in candidate) <= reach * jnp.abs(rho_change)
            chosen = [jnp.where((steps >= count) & within_reach, b, a) for a, b in zip(chosen, candidate, strict=True)]
        return chosen

    def step(sde, denoiser, state, t, t_next, rng):
        epsilon, x = denoiser(state.x, t).epsilon, state.x
        if order == 3 and corrected_start:
            trapezoid = 0.5 * (rho(sde, t) - rho(sde, state.t_before)) * (state.values[0] + epsilon)
            corrected = noise_step(sde, state.x_before, state.t_before, t, trapezoid)
            x = jnp.where((state.steps == 1) | (state.steps == 2), corrected, x)
        past = past_nodes(state, coord(sde, t), coord(sde, t_next) - coord(sde, t))
        c = step_coefficients(sde, t, t_next, past, state.steps)
        x_next = noise_step(sde, x, t, t_next, combine(c, (epsilon, *state.values)))
        return push_history(state, x_next, x, epsilon, coord(sde, t), t)

    return Solver(init=init_history(order - 1), step=step, nfe_per_step=1, requires_nonzero_alpha=True)
