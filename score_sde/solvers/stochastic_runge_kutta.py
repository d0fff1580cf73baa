"""A Runge-Kutta method of weak order 2 on the reverse SDE."""

import jax.numpy as jnp

from score_sde.randomness import noise
from score_sde.sde import reverse_sde_epsilon
from score_sde.solvers.base import OneStepState, Solver


def stochastic_runge_kutta() -> Solver:
    """Return Heun's method with additive noise, weak order 2; 2 NFE per step (Kloeden and Platen 1992, eq. 15.1.3).

    Both stages use the same noise G z with G^2 = |dt| (g(t)^2 + g(t')^2) / 2:

        x~ = x + b(x, t) dt + G z,    x' = x + (b(x, t) + b(x~, t')) dt / 2 + G z

    Because g depends only on time, the moments match the Ito-Taylor expansion up to dt^3. b(x~) gives the cross term of
    drift and noise, b_x g^2 dt^2 / 2, and b_xx g^2 dt^2 / 4. The trapezoidal rule gives the change of g^2.
    """

    def step(sde, denoiser, state, t, t_next, rng):
        drift, diffusion = reverse_sde_epsilon(sde, lambda x, t: denoiser(x, t).epsilon)
        x, dt = state.x, t_next - t
        g_z = jnp.sqrt(-0.5 * dt * (diffusion(t) ** 2 + diffusion(t_next) ** 2)) * noise(rng, x)
        first = drift(x, t)
        second = drift(x + dt * first + g_z, t_next)
        return OneStepState(x + 0.5 * dt * (first + second) + g_z)

    return Solver(init=OneStepState, step=step, nfe_per_step=2, stochastic=True, requires_nonzero_alpha=True)
