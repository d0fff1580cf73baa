"""Euler-Maruyama on the reverse SDE."""

import jax.numpy as jnp

from score_sde.randomness import noise
from score_sde.sde import lift, reverse_sde_epsilon
from score_sde.solvers.base import Memoryless, Solver


def euler_maruyama() -> Solver:
    """x + drift dt + g sqrt(-dt) z on the reverse SDE; 1 NFE a step (Song et al. 2021, Section 4.1).

    Weak order 1: the law of the result is wrong by O(dt), so it is not for few steps.
    """

    def step(sde, denoiser, state, t, t_next, source):
        x = state.x
        drift, diffusion = reverse_sde_epsilon(sde, lambda x, t: denoiser(x, t).epsilon)
        dt = t_next - t
        brownian = jnp.sqrt(-dt) * noise(source, x)
        return Memoryless(x + drift(x, t) * dt + lift(diffusion(t), x) * brownian)

    return Solver(init=Memoryless, step=step, nfe_per_step=1, stochastic=True, needs_signal=True)
