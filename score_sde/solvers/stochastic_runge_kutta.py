"""A Runge-Kutta method of weak order 2 on the reverse SDE."""

import jax.numpy as jnp

from score_sde.randomness import noise
from score_sde.sde import reverse_sde_epsilon
from score_sde.solvers.base import OneStepState, Solver


def stochastic_runge_kutta() -> Solver:
    """Heun's method with additive noise, weak order 2; 2 NFE a step (Kloeden and Platen 1992, eq. 15.1.3).

    With the noise G z, G^2 = |dt| (g(t)^2 + g(t')^2) / 2, drawn once for both stages:

        x~ = x + b(x, t) dt + G z,    x' = x + (b(x, t) + b(x~, t')) dt / 2 + G z

    Because g depends on time alone this matches the Ito-Taylor expansion's moments to dt^3: the cross term of drift and
    noise (b_x g^2 dt^2 / 2) and b_xx g^2 dt^2 / 4 come out of b(x~), the change of g^2 out of the trapezoid.
    """

    def step(sde, denoiser, state, t, t_next, rng):
        drift, diffusion = reverse_sde_epsilon(sde, lambda x, t: denoiser(x, t).epsilon)
        x, dt = state.x, t_next - t
        drawn = jnp.sqrt(-0.5 * dt * (diffusion(t) ** 2 + diffusion(t_next) ** 2)) * noise(rng, x)
        first = drift(x, t)
        second = drift(x + dt * first + drawn, t_next)
        return OneStepState(x + 0.5 * dt * (first + second) + drawn)

    return Solver(init=OneStepState, step=step, nfe_per_step=2, stochastic=True, requires_nonzero_alpha=True)
