"""EDM's stochastic sampler: Heun's method with noise added before each step."""

import math

import jax.numpy as jnp

from score_sde.errors import UserError
from score_sde.randomness import noise
from score_sde.sde import t_from_log_snr
from score_sde.solvers.base import OneStepState, Solver
from score_sde.solvers.exponential import half_log_snr
from score_sde.solvers.runge_kutta import heun_step
from score_sde.solvers.time_grids import max_noise_level

RHO = 7.0  # exponent of EDM's grid, on which every step adds the same amount of noise


def edm_stochastic(s_churn: float = 0.0, s_min: float = 0.0, s_max: float = math.inf, s_noise: float = 1.0) -> Solver:
    """Return EDM's stochastic sampler for any SDE (Karras et al. 2022, Algorithm 2); 2 NFE per step.

    With the paper's noise level s = sigma / alpha each step is

        gamma = min(S_churn / N, sqrt(2) - 1) if S_min <= s <= S_max, otherwise 0
        s_hat = s + gamma s
        x_hat = x + sqrt(s_hat^2 - s^2) S_noise z        (here in x_t = alpha x)
        Heun's step from x_hat at s_hat

    With S_churn = 0 it is `heun`. There are three differences. First, s_hat is at most the level of t_max, beyond which
    no network is trained. Second, a step does not know N, so 1 / N is the fraction of EDM's grid (uniform in s^(1/7),
    from t_max to t_min) that the step covers. On EDM's grid of N steps the two are equal. Third, the paper counts its
    last step to 0 among the N and may add noise before it: on a grid of N steps with `end="zero"` its gamma is
    (N - 1) / N of this one. That last step, Euler to 0, is part of `solve`.

    Args:
      s_churn: S_churn, the total amount of added noise, non-negative.
      s_min: S_min, the smallest level s at which noise is added.
      s_max: S_max, the largest level s at which noise is added.
      s_noise: S_noise, the standard deviation of the added noise, non-negative; 1 or slightly larger.

    Raises:
      UserError: if s_churn or s_noise is negative.
    """
    if s_churn < 0 or s_noise < 0:
        raise UserError(f"edm_stochastic: expected s_churn >= 0 and s_noise >= 0, got {s_churn} and {s_noise}")

    def level(sde, t):  # s = sigma / alpha
        return jnp.exp(-half_log_snr(sde, t))

    def grid_position(sde, t):  # EDM's grid is uniform in it
        return jnp.minimum(level(sde, jnp.asarray(t)), max_noise_level(sde)) ** (1 / RHO)

    def step(sde, denoiser, state, t, t_next, rng):
        if s_churn == 0:
            return OneStepState(heun_step(sde, denoiser, state.x, t, t_next))
        grid_length = grid_position(sde, sde.t_max) - grid_position(sde, sde.t_min)
        one_over_n = (grid_position(sde, t) - grid_position(sde, t_next)) / grid_length
        s, alpha = level(sde, t), sde.alpha(t)
        # At alpha = 0 x_t is pure noise, and t_max has the largest noise level.
        inside = (s >= s_min) & (s <= s_max) & (alpha > 0) & (t < sde.t_max)
        gamma = jnp.where(inside, jnp.minimum(s_churn * one_over_n, math.sqrt(2) - 1), 0.0)
        s_hat = s * (1 + gamma)
        t_hat = jnp.where(gamma > 0, jnp.minimum(t_from_log_snr(sde, -2 * jnp.log(s_hat)), sde.t_max), t)
        s_hat = jnp.where(gamma > 0, level(sde, t_hat), s)  # clipped to the level of t_max
        scale = jnp.where(gamma > 0, sde.alpha(t_hat) / alpha, 1.0)
        std = s_noise * jnp.where(gamma > 0, sde.alpha(t_hat) * jnp.sqrt(jnp.maximum(s_hat**2 - s**2, 0.0)), 0.0)
        x_hat = scale * state.x + std * noise(rng, state.x)
        return OneStepState(heun_step(sde, denoiser, x_hat, t_hat, t_next))

    followed = s_noise == 1
    return Solver(init=OneStepState, step=step, nfe_per_step=2, stochastic=s_churn > 0, reverse_sde=followed)
