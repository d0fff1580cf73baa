"""DDIM: the exact step between two times for a constant prediction (x0, eps)."""

import jax.numpy as jnp

from score_sde.errors import UserError
from score_sde.randomness import noise
from score_sde.sde import log_snr
from score_sde.solvers.base import OneStepState, Solver


def ddim(eta: float = 0.0) -> Solver:
    """Return DDIM for any SDE; 1 NFE per step (Song et al. 2020, "Denoising Diffusion Implicit Models", eq. 12).

        x_s = alpha_s x0 + sqrt(sigma_s^2 - eta^2 v) eps + eta sqrt(v) z,    v = sigma_s^2 (1 - snr_t / snr_s)

    v is the variance of the posterior q(x_s | x_t, x0) (eq. 16, for any alpha and sigma).

    Args:
      eta: Amount of noise in [0, 1]: 0 is deterministic, of order 1 on the probability flow; 1 is ancestral sampling.

    Raises:
      UserError: if eta is outside [0, 1].
    """
    if not 0.0 <= eta <= 1.0:
        raise UserError(f"ddim: expected 0 <= eta <= 1, got {eta}", "eta")

    def step(sde, denoiser, state, t, t_next, rng):
        pair = denoiser(state.x, t)
        alpha_s, sigma_s = sde.alpha(t_next), sde.sigma(t_next)
        if eta == 0.0:
            return OneStepState(alpha_s * pair.x0 + sigma_s * pair.epsilon)
        v = -jnp.expm1(log_snr(sde, t) - log_snr(sde, t_next)) * sigma_s**2
        epsilon_scale = jnp.sqrt(jnp.maximum(sigma_s**2 - eta**2 * v, 0.0))
        return OneStepState(alpha_s * pair.x0 + epsilon_scale * pair.epsilon + eta * jnp.sqrt(v) * noise(rng, state.x))

    return Solver(init=OneStepState, step=step, nfe_per_step=1, stochastic=eta > 0.0)
