"""Weightings of the denoising loss, as functions of the log-SNR.

All errors of a denoiser are multiples of each other. With e = |eps_hat - eps|^2 the score error is e / sigma^2, the x0
error is e / snr, and the integrand of the variational bound is half of (g^2 / sigma^2) e, where g^2 / sigma^2 =
-d log snr / dt (Kingma et al. 2021, "Variational Diffusion Models"; Kingma and Gao 2023, "Understanding Diffusion
Objectives").

A weighting returns the factor of one of them, the computed error. The computed error is that of eps near the data and
that of x0 near the prior, where each of the two is finite. `ErrorScales` converts the computed error to the others.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from score_sde.errors import UserError, lookup
from score_sde.sde import SDE, log_snr, time_derivative


class ErrorScales(NamedTuple):
    """Factors that convert the computed error to other errors; each of the shape of t."""

    epsilon: jax.Array  # to |eps_hat - eps|^2
    x0: jax.Array  # to |x0_hat - x0|^2
    bound: jax.Array  # to g^2 |s - grad log p|^2, twice the integrand of the variational bound
    log_snr: jax.Array  # log-SNR at t, not a factor


Weighting = Callable[[ErrorScales], jax.Array]  # scales -> factor of the computed error


def simple() -> Weighting:
    """Return the weighting |eps_hat - eps|^2, sigma^2 times the score error (Ho et al. 2020, eq. 14)."""
    return lambda scales: scales.epsilon


def likelihood() -> Weighting:
    """Return the weighting g^2 |s - grad log p|^2, whose half integral bounds -log p (Song, Durkan et al. 2021).

    As a factor of the eps error it is unbounded towards sigma = 0, like 1/t for vp. Hence the loss starts at t_min > 0.
    """
    return lambda scales: scales.bound


def edm(sigma_data: float = 0.5) -> Weighting:
    """Return the weighting lambda(s) |x0_hat - x0|^2, lambda = (s^2 + sigma_data^2) / (s sigma_data)^2.

    Karras et al. 2022, Table 1, whose sigma is s = sigma / alpha.

    Args:
      sigma_data: Standard deviation of the data, positive.

    Raises:
      UserError: if sigma_data is not positive.
    """
    if sigma_data <= 0:
        raise UserError(f"edm: expected sigma_data > 0, got {sigma_data}", "sigma_data")
    # lambda = 1 / sigma_data^2 + 1 / s^2, and |x0_hat - x0|^2 / s^2 = |eps_hat - eps|^2.
    return lambda scales: scales.epsilon + scales.x0 / sigma_data**2


def snr() -> Weighting:
    """Return the weighting snr |x0_hat - x0|^2, which equals `simple` (Salimans and Ho 2022)."""
    return lambda scales: jnp.exp(scales.log_snr) * scales.x0


def flow(floor: float = 0.0) -> Weighting:
    """Return the weighting |v_hat - (eps - x0)|^2 of flow matching's velocity (Lipman et al. 2023, eq. 23).

    The errors of eps and of x0 have opposite directions, so the norm of their difference is the sum of their norms. For
    the process `flow` it is |x0_hat - x0|^2 / t^2, and with a floor |x0_hat - x0|^2 / max(t, floor)^2.

    Args:
      floor: Least time to divide by; 0.05 in Li and He 2025 (JiT), for the prediction x0.

    Raises:
      UserError: if the floor is negative.
    """
    if floor < 0:
        raise UserError(f"flow: expected floor >= 0, got {floor}", "floor")

    def weighting(scales):
        velocity = (jnp.sqrt(scales.epsilon) + jnp.sqrt(scales.x0)) ** 2
        return jnp.minimum(velocity, scales.x0 / floor**2) if floor else velocity

    return weighting


def min_snr(gamma: float = 5.0) -> Weighting:
    """Return the weighting min(snr, gamma) |x0_hat - x0|^2.

    Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy".

    Args:
      gamma: Largest weight of the x0 error, positive.

    Raises:
      UserError: if gamma is not positive.
    """
    if gamma <= 0:
        raise UserError(f"min_snr: need gamma > 0, got {gamma}", "gamma")

    def weighting(scales):
        # min(snr, gamma) x0 = min(snr x0, gamma x0); snr x0 is the eps error, which is also finite at snr = 0.
        snr_x0, gamma_x0 = scales.epsilon, gamma * scales.x0
        return jnp.minimum(snr_x0, gamma_x0)

    return weighting


def sigmoid(bias: float = 2.0) -> Weighting:
    """Return the sigmoid weighting of the variational bound, for any schedule.

    It is sigmoid(bias - log snr) times twice the bound's integrand, which reduces the weight of invisible noise (Kingma
    and Gao 2023; Hoogeboom et al. 2024, "Simpler Diffusion (SiD2)").

    Args:
      bias: log-SNR at which the weight of the bound is 1/2.
    """
    return lambda scales: jax.nn.sigmoid(bias - scales.log_snr) * scales.bound


WEIGHTINGS: dict[str, Callable[..., Weighting]] = {
    "simple": simple,
    "likelihood": likelihood,
    "edm": edm,
    "snr": snr,
    "flow": flow,
    "min_snr": min_snr,
    "sigmoid": sigmoid,
}


def get_weighting(weighting: str | Weighting) -> Weighting:
    """Return a weighting of `WEIGHTINGS` with its default arguments, or a callable unchanged."""
    if callable(weighting):
        return weighting
    return lookup("weighting", WEIGHTINGS, weighting, "weighting")()


def epsilon_scales(sde: SDE, t: jax.Array, level: jax.Array) -> ErrorScales:
    """Return the scales of the eps error; level is the log-SNR at t."""
    return ErrorScales(jnp.ones_like(level), jnp.exp(-level), (sde.diffusion(t) / sde.sigma(t)) ** 2, level)


def x0_scales(sde: SDE, t: jax.Array, level: jax.Array) -> ErrorScales:
    """Return the scales of the x0 error; level is the log-SNR at t.

    `bound` is -d snr / dt (Kingma et al. 2021, eq. 13), which is finite at alpha = 0.
    """
    snr_decrease = -time_derivative(lambda t: (sde.alpha(t) / sde.sigma(t)) ** 2, t)
    return ErrorScales(jnp.exp(level), jnp.ones_like(level), snr_decrease, level)


def score_scales(sde: SDE, t: jax.Array) -> ErrorScales:
    """Return the scales of the score error, which are finite where alpha > 0."""
    level, variance = log_snr(sde, t), sde.sigma(t) ** 2
    return ErrorScales(variance, variance * jnp.exp(-level), sde.diffusion(t) ** 2, level)
