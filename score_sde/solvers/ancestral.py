"""Samplers that follow the forward process' own transitions q(x_t | x_s) = N(r x_s, v I), s < t, for any SDE.

r = alpha_t / alpha_s and v = sigma_t^2 - r^2 sigma_s^2 (Kingma et al. 2021, "Variational Diffusion Models", eq. 14).
"""

import jax.numpy as jnp

from score_sde.parameterization import VariancePrediction, reverse_log_variance
from score_sde.randomness import noise
from score_sde.sde import SDE, log_snr
from score_sde.solvers.base import OneStepState, Solver


def transition(sde: SDE, s, t):
    """(r, v / sigma_t^2) of q(x_t | x_s); v / sigma_t^2 = 1 - snr_t / snr_s."""
    return sde.alpha(t) / sde.alpha(s), -jnp.expm1(log_snr(sde, t) - log_snr(sde, s))


def ancestral() -> Solver:
    """Draws from the posterior q(x_s | x_t, x0) at the predicted x0; 1 NFE per step.

    N(r (sigma_s / sigma_t)^2 x_t + alpha_s (v / sigma_t^2) x0, (v / sigma_t^2) sigma_s^2): Ho et al. 2020, eq. 6 and 7,
    for any alpha and sigma (Kingma et al. 2021, eq. 25), so for vp the chain's sampler, for ve that of Song et al.
    2021, Appendix F, and for sub_vp, which had none, its own. If the network learned its variance, the step draws with
    it: between (v / sigma_t^2) sigma_s^2 and v on a logarithmic scale, of any grid (Nichol and Dhariwal 2021, eq. 15
    and Section 4).
    """

    def step(sde, denoiser, state, t, t_next, rng):
        r, renewed = transition(sde, t_next, t)
        sigma = sde.sigma(t_next)
        pair = denoiser(state.x, t)
        mean = r * (sigma / sde.sigma(t)) ** 2 * state.x + sde.alpha(t_next) * renewed * pair.x0
        std = jnp.sqrt(renewed) * sigma
        if isinstance(pair, VariancePrediction):
            ends = (jnp.log(renewed * level**2) for level in (sigma, sde.sigma(t)))
            std = jnp.exp(0.5 * reverse_log_variance(pair.v, *ends))
        return OneStepState(mean + std * noise(rng, state.x))

    return Solver(init=OneStepState, step=step, nfe_per_step=1, stochastic=True)


def reverse_diffusion() -> Solver:
    """The reverse SDE discretized as the forward process is; 1 NFE a step (Song et al. 2021, Appendix E, eq. 46).

    x_s = x_t - (r - 1) x_t + v score(x_t) + sqrt(v) z: the forward step's own change and noise, r and v exact for the
    interval. Weak order 1.
    """

    def step(sde, denoiser, state, t, t_next, rng):
        r, renewed = transition(sde, t_next, t)
        sigma, x = sde.sigma(t), state.x
        score_term = -renewed * sigma * denoiser(x, t).epsilon  # v score = -v / sigma eps
        return OneStepState((2 - r) * x + score_term + jnp.sqrt(renewed) * sigma * noise(rng, x))

    return Solver(init=OneStepState, step=step, nfe_per_step=1, stochastic=True, requires_nonzero_alpha=True)


def exponential_sde() -> Solver:
    """The reverse SDE with eps held over the step and all else integrated exactly; 1 NFE a step.

    x' = (alpha' / alpha) x - 2 sigma' (e^h - 1) eps + sigma' sqrt(e^2h - 1) z, h the step in log(alpha / sigma)
    (Gonzalez et al. 2023, "SEEDS", SEEDS-1; Lu et al. 2022, SDE-DPM-Solver-1). Weak order 1; `ancestral` is the same
    with x0 held.
    """

    def step(sde, denoiser, state, t, t_next, rng):
        h = 0.5 * (log_snr(sde, t_next) - log_snr(sde, t))
        sigma, x = sde.sigma(t_next), state.x
        drawn = jnp.sqrt(jnp.expm1(2 * h)) * noise(rng, x)
        kept = sde.alpha(t_next) / sde.alpha(t) * x
        return OneStepState(kept - sigma * (2 * jnp.expm1(h) * denoiser(x, t).epsilon - drawn))

    return Solver(init=OneStepState, step=step, nfe_per_step=1, stochastic=True, requires_nonzero_alpha=True)
