"""Weightings of a loss, as functions of the log-SNR.

All errors of a denoiser are multiples of one: with e = |eps_hat - eps|^2 the score error is e / sigma^2, the x0 error
is e / snr, and the integrand of the variational bound is half of (g^2 / sigma^2) e, where g^2 / sigma^2 = -d log snr /
dt (Kingma et al. 2021, "Variational Diffusion Models"; Kingma and Gao 2023, "Understanding Diffusion Objectives"). A
weighting says which of them, or what mixture, is minimised. It is told what each is in units of the error at hand,
`Units`, so that one line serves the eps error, which is finite near the data, and the x0 error, which is finite near
the prior.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from score_sde.errors import UserError, lookup
from score_sde.sde import SDE, log_snr, slope


class Units(NamedTuple):
    """Factors that turn the error at hand into another; each of the shape of t."""

    epsilon: jax.Array  # into the eps error
    x0: jax.Array  # into the x0 error
    bound: jax.Array  # into twice the integrand of the variational bound, which is g^2 times the score error
    log_snr: jax.Array


Weighting = Callable[[Units], jax.Array]  # units -> the factor of the error at hand


def simple() -> Weighting:
    """The eps error: sigma^2 times the score error (Ho et al. 2020, eq. 14)."""
    return lambda units: units.epsilon


def likelihood() -> Weighting:
    """g^2 times the score error, half the integral of which bounds -log p (Song, Durkan et al. 2021).

    On the eps error it grows without bound towards sigma = 0, as 1/t for vp: hence loss.t_min.
    """
    return lambda units: units.bound


def edm(sigma_data: float = 0.5) -> Weighting:
    """(sigma^2 + s^2) / (sigma s)^2 times the x0 error, with s = sigma_data (Karras et al. 2022, Table 1).

    Their sigma is sigma / alpha.
    """
    if sigma_data <= 0:
        raise UserError(f"edm: need sigma_data > 0, got {sigma_data}", "sigma_data")
    return lambda units: units.epsilon + units.x0 / sigma_data**2


def snr() -> Weighting:
    """snr times the x0 error: the eps error, by another name (Salimans and Ho 2022)."""
    return lambda units: jnp.exp(units.log_snr) * units.x0


def flow() -> Weighting:
    """The error of eps - x0, the velocity of the straight path: flow matching's own loss (Lipman et al. 2023, eq. 23).

    The errors of eps and of x0 point in opposite directions, so their lengths add.
    """
    return lambda units: (jnp.sqrt(units.epsilon) + jnp.sqrt(units.x0)) ** 2


def min_snr(gamma: float = 5.0) -> Weighting:
    """min(snr, gamma) times the x0 error (Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting")."""
    if gamma <= 0:
        raise UserError(f"min_snr: need gamma > 0, got {gamma}", "gamma")
    return lambda units: jnp.minimum(units.epsilon, gamma * units.x0)


def sigmoid(bias: float = 2.0) -> Weighting:
    """sigmoid(bias - log snr) times twice the variational bound's integrand, whatever the schedule.

    Kingma and Gao 2023; Hoogeboom et al. 2024, "Simpler Diffusion (SiD2)": less weight to noise too small to see.
    """
    return lambda units: jax.nn.sigmoid(bias - units.log_snr) * units.bound


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
    """A weighting of `WEIGHTINGS` with its defaults, by name; one that is built already, as it is."""
    if callable(weighting):
        return weighting
    return lookup("weighting", WEIGHTINGS, weighting, "weighting")()


def epsilon_units(sde: SDE, t: jax.Array, level: jax.Array) -> Units:
    """The units of the eps error; level is the log-SNR at t."""
    return Units(jnp.ones_like(level), jnp.exp(-level), (sde.diffusion(t) / sde.sigma(t)) ** 2, level)


def x0_units(sde: SDE, t: jax.Array, level: jax.Array) -> Units:
    """The units of the x0 error; `bound` is -d snr / dt (Kingma et al. 2021, eq. 13), finite where alpha is 0."""
    falling = -slope(lambda t: (sde.alpha(t) / sde.sigma(t)) ** 2, t)
    return Units(jnp.exp(level), jnp.ones_like(level), falling, level)


def score_units(sde: SDE, t: jax.Array) -> Units:
    """The units of the score error, finite wherever alpha is not 0."""
    level, variance = log_snr(sde, t), sde.sigma(t) ** 2
    return Units(variance, variance * jnp.exp(-level), sde.diffusion(t) ** 2, level)
