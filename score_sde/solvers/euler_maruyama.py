"""Euler-Maruyama on the reverse SDE."""

import jax.numpy as jnp

from score_sde.randomness import noise
from score_sde.sde import lift, reverse_sde_epsilon
from score_sde.solvers.base import OneStepState, Solver


def euler_maruyama() -> Solver:
    """Return Euler-Maruyama, x' = x + drift dt + g sqrt(-dt) z; 1 NFE per step (Song et al. 2021, Section 4.1).

    Weak order 1: the distribution of the samples has an error of O(dt), so it requires many steps.
    """

    def step(sde, denoiser, state, t, t_next, rng):
        x = state.x
        drift, diffusion = reverse_sde_epsilon(sde, lambda x, t: denoiser(x, t).epsilon)
        dt = t_next - t
        brownian = jnp.sqrt(-dt) * noise(rng, x)
        return OneStepState(x + drift(x, t) * dt + lift(diffusion(t), x) * brownian)

    return Solver(init=OneStepState, step=step, nfe_per_step=1, stochastic=True, requires_nonzero_alpha=True)
