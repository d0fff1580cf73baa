"""EDM's stochastic sampler: noise is added before each step of Heun's method."""

import math

import jax.numpy as jnp

from score_sde.errors import UserError
from score_sde.randomness import noise
from score_sde.sde import t_from_log_snr
from score_sde.solvers.base import OneStepState, Solver
from score_sde.solvers.exponential import half_log_snr
from score_sde.solvers.runge_kutta import heun_step
from score_sde.solvers.time_grids import max_noise_level

RHO = 7.0  # of the grid on which the churn is spread evenly


def edm_stochastic(s_churn: float = 0.0, s_min: float = 0.0, s_max: float = math.inf, s_noise: float = 1.0) -> Solver:
    """EDM's sampler (Karras et al. 2022, Algorithm 2) on any SDE, in its s = sigma / alpha; 2 NFE a step.

    Each step first raises the noise level from s to s_hat = s + gamma s, then takes Heun's step down from there. Here
    s_hat is at most the level of t_max, beyond which no network was trained. With s_churn = 0 it is `heun`.
    The paper's last step, Euler to 0, is that of every grid that ends at 0: `time_grid(..., end="zero")`.

    The paper's gamma is min(s_churn / N, sqrt(2) - 1). A step here doesn't know N: in its place stands the share of
    EDM's grid (uniform in s^(1/7), from t_max to t_min) that the step covers, which is 1 / N on that grid of N steps.
    The paper counts its last step to 0 among the N: on a grid of N steps that ends at 0 its gamma is (N - 1) / N of
    this one, and it may churn before that step, where here is none.

    Args:
      s_churn: how much noise is added over all steps; 0 or more.
      s_min, s_max: noise is added where s_min <= s <= s_max.
      s_noise: the standard deviation of the noise that is added, 1 or a little more.

    Raises:
      UserError: s_churn or s_noise is negative.
    """
    if s_churn < 0 or s_noise < 0:
        raise UserError(f"edm_stochastic: need s_churn >= 0 and s_noise >= 0, got {s_churn} and {s_noise}")

    def level(sde, t):  # sigma / alpha
        return jnp.exp(-half_log_snr(sde, t))

    def place(sde, t):  # on EDM's grid
        return jnp.minimum(level(sde, jnp.asarray(t)), max_noise_level(sde)) ** (1 / RHO)

    def step(sde, denoiser, state, t, t_next, rng):
        if s_churn == 0:
            return OneStepState(heun_step(sde, denoiser, state.x, t, t_next))
        share = (place(sde, t) - place(sde, t_next)) / (place(sde, sde.t_max) - place(sde, sde.t_min))
        s, alpha = level(sde, t), sde.alpha(t)
        # Where alpha = 0 there is nothing but noise already, and t_max is the noisiest time.
        inside = (s >= s_min) & (s <= s_max) & (alpha > 0) & (t < sde.t_max)
        gamma = jnp.where(inside, jnp.minimum(s_churn * share, math.sqrt(2) - 1), 0.0)
        s_hat = s * (1 + gamma)
        t_hat = jnp.where(gamma > 0, jnp.minimum(t_from_log_snr(sde, -2 * jnp.log(s_hat)), sde.t_max), t)
        s_hat = jnp.where(gamma > 0, level(sde, t_hat), s)  # what is left of it below t_max
        scale = jnp.where(gamma > 0, sde.alpha(t_hat) / alpha, 1.0)
        added = s_noise * jnp.where(gamma > 0, sde.alpha(t_hat) * jnp.sqrt(jnp.maximum(s_hat**2 - s**2, 0.0)), 0.0)
        x_hat = scale * state.x + added * noise(rng, state.x)
        return OneStepState(heun_step(sde, denoiser, x_hat, t_hat, t_next))

    return Solver(init=OneStepState, step=step, nfe_per_step=2, stochastic=s_churn > 0)
