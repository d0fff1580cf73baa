"""Samplers from the transitions q(x_t | x_s) = N(r x_s, v I), s < t, of the forward process, for any SDE.

r = alpha_t / alpha_s and v = sigma_t^2 - r^2 sigma_s^2 (Kingma et al. 2021, "Variational Diffusion Models", eq. 14,
where they are called alpha_t|s and sigma_t|s^2).
"""

import jax.numpy as jnp

from score_sde.parameterization import VariancePrediction, reverse_log_variance
from score_sde.randomness import noise
from score_sde.sde import SDE, log_snr
from score_sde.solvers.base import OneStepState, Solver


def transition(sde: SDE, s, t):
    """Return r and v / sigma_t^2 = 1 - snr_t / snr_s of q(x_t | x_s)."""
    return sde.alpha(t) / sde.alpha(s), -jnp.expm1(log_snr(sde, t) - log_snr(sde, s))


def ancestral() -> Solver:
    """Return ancestral sampling, which samples the posterior q(x_s | x_t, x0) at the predicted x0; 1 NFE per step.

        q(x_s | x_t, x0) = N(mu, std^2 I)        (Ho et al. 2020, eq. 6 and 7; Kingma et al. 2021, eq. 25)
        mu = r (sigma_s / sigma_t)^2 x_t + alpha_s (v / sigma_t^2) x0
        std^2 = (v / sigma_t^2) sigma_s^2

    For vp this is DDPM's sampler, for ve that of Song et al. 2021, Appendix F. It is also defined for the other SDEs. A
    learned variance is interpolated between std^2 and v on a logarithmic scale, for any grid (Nichol and Dhariwal 2021,
    eq. 15 and Section 4).
    """

    def step(sde, denoiser, state, t, t_next, rng):
        r, v_ratio = transition(sde, t_next, t)  # v / sigma_t^2
        sigma_t, sigma_s, alpha_s = sde.sigma(t), sde.sigma(t_next), sde.alpha(t_next)
        pair = denoiser(state.x, t)
        mu = r * (sigma_s / sigma_t) ** 2 * state.x + alpha_s * v_ratio * pair.x0
        std = jnp.sqrt(v_ratio) * sigma_s
        if isinstance(pair, VariancePrediction):
            log_beta_tilde, log_beta = jnp.log(v_ratio * sigma_s**2), jnp.log(v_ratio * sigma_t**2)
            std = jnp.exp(0.5 * reverse_log_variance(pair.v, log_beta_tilde, log_beta))
        return OneStepState(mu + std * noise(rng, state.x))

    return Solver(init=OneStepState, step=step, nfe_per_step=1, stochastic=True)


def reverse_diffusion() -> Solver:
    """Return reverse diffusion sampling, weak order 1; 1 NFE per step (Song et al. 2021, Appendix E, eq. 46).

        x_s = x_t - (r - 1) x_t + v score(x_t) + sqrt(v) z

    It discretizes the reverse SDE like the forward one, with the exact r and v of the interval.
    """

    def step(sde, denoiser, state, t, t_next, rng):
        r, v_ratio = transition(sde, t_next, t)  # v / sigma_t^2
        sigma, x = sde.sigma(t), state.x
        v_score = -v_ratio * sigma * denoiser(x, t).epsilon  # score = -eps / sigma
        return OneStepState((2 - r) * x + v_score + jnp.sqrt(v_ratio) * sigma * noise(rng, x))

    return Solver(init=OneStepState, step=step, nfe_per_step=1, stochastic=True, requires_nonzero_alpha=True)


def exponential_sde() -> Solver:
    """Return the exponential integrator of the reverse SDE with constant eps, weak order 1; 1 NFE per step.

        x' = (alpha' / alpha) x - 2 sigma' (e^h - 1) eps + sigma' sqrt(e^2h - 1) z,    h = lambda' - lambda

    with lambda = log(alpha / sigma) (Gonzalez et al. 2023, "SEEDS", SEEDS-1; Lu et al. 2022, SDE-DPM-Solver-1).
    `ancestral` is the same integrator with constant x0.
    """

    def step(sde, denoiser, state, t, t_next, rng):
        h = 0.5 * (log_snr(sde, t_next) - log_snr(sde, t))
        sigma, x = sde.sigma(t_next), state.x
        scaled_noise = jnp.sqrt(jnp.expm1(2 * h)) * noise(rng, x)
        scaled_x = sde.alpha(t_next) / sde.alpha(t) * x
        return OneStepState(scaled_x - sigma * (2 * jnp.expm1(h) * denoiser(x, t).epsilon - scaled_noise))

    return Solver(init=OneStepState, step=step, nfe_per_step=1, stochastic=True, requires_nonzero_alpha=True)
