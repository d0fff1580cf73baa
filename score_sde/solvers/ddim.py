"""DDIM: the exact transition between two times, were the denoiser's prediction constant along the way."""

import jax.numpy as jnp

from score_sde.errors import UserError
from score_sde.randomness import noise
from score_sde.sde import log_snr
from score_sde.solvers.base import OneStepState, Solver


def ddim(eta: float = 0.0) -> Solver:
    """DDIM between any two times of any SDE; 1 NFE a step (Song et al. 2020, "Denoising Diffusion Implicit Models").

    Eq. 12: x_s = alpha_s x0 + sqrt(sigma_s^2 - eta^2 v) eps + eta sqrt(v) z, where v = sigma_s^2 (1 - snr_t / snr_s) is
    the variance of the posterior q(x_s | x_t, x0) (eq. 16, for any alpha and sigma).

    Args:
      eta: 0 is deterministic, of order 1 on the probability flow; 1 is ancestral sampling. At most 1.

    Raises:
      UserError: eta is outside [0, 1].
    """
    if not 0.0 <= eta <= 1.0:
        raise UserError(f"ddim: need 0 <= eta <= 1, got {eta}", "eta")

    def step(sde, denoiser, state, t, t_next, rng):
        pair = denoiser(state.x, t)
        alpha, sigma = sde.alpha(t_next), sde.sigma(t_next)
        if eta == 0.0:
            return OneStepState(alpha * pair.x0 + sigma * pair.epsilon)
        variance = -jnp.expm1(log_snr(sde, t) - log_snr(sde, t_next)) * sigma**2
        kept = jnp.sqrt(jnp.maximum(sigma**2 - eta**2 * variance, 0.0))
        return OneStepState(alpha * pair.x0 + kept * pair.epsilon + eta * jnp.sqrt(variance) * noise(rng, state.x))

    return Solver(init=OneStepState, step=step, nfe_per_step=1, stochastic=eta > 0.0)
