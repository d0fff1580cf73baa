"""What a network predicts, and how it becomes a denoiser.

What a network predicts is a linear combination of x0 and eps, and x_t = alpha x0 + sigma eps is another, so the
two together give the pair (x0, eps), which is all that solvers and losses consume.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from score_sde.errors import lookup
from score_sde.sde import SDE, lift


class Prediction(NamedTuple):
    """E[x0 | x_t] and E[eps | x_t], each of the shape of x_t."""

    x0: jax.Array
    epsilon: jax.Array


Denoiser = Callable[[jax.Array, jax.Array], Prediction]


def score_from_epsilon(epsilon, sigma):
    """score = -epsilon / sigma (Tweedie's formula); singular at sigma = 0."""
    return -epsilon / lift(sigma, epsilon)


def epsilon_from_score(score, sigma):
    """epsilon = -sigma score; never singular."""
    return -lift(sigma, score) * score


def x0_from_epsilon(x, epsilon, alpha, sigma):
    """x0 = (x - sigma epsilon) / alpha (Ho et al. 2020, eq. 15); singular at alpha = 0."""
    return (x - lift(sigma, x) * epsilon) / lift(alpha, x)


def epsilon_from_x0(x, x0, alpha, sigma):
    """epsilon = (x - alpha x0) / sigma; singular at sigma = 0."""
    return (x - lift(alpha, x) * x0) / lift(sigma, x)


def make_denoiser(network: Callable, sde: SDE, prediction: str = "epsilon", preconditioning: str = "none") -> Denoiser:
    """Makes a denoiser of a network: the only place where a network meets an SDE.

    Args:
      network: (x, noise_level) -> raw output of the shape of x; noise_level is (batch,).
      sde: the forward process that x_t comes from.
      prediction: what the raw output estimates, a key of `PREDICTIONS`.
      preconditioning: what the network is shown, a key of `PRECONDITIONINGS`.

    Returns:
      (x, t) -> Prediction, for x: (batch, *event) and t: () or (batch,).

    Raises:
      UserError: prediction or preconditioning is unknown; the message lists the known ones.
    """
    to_pair = lookup("prediction", PREDICTIONS, prediction, "--config.model.prediction")
    noise_level = lookup("preconditioning", PRECONDITIONINGS, preconditioning, "--config.model.preconditioning")

    def denoiser(x, t):
        t = jnp.asarray(t, x.dtype)
        levels = jnp.broadcast_to(noise_level(t), x.shape[:1])
        return to_pair(network(x, levels), x, sde.alpha(t), sde.sigma(t))

    return denoiser


def score_fn(denoiser: Denoiser, sde: SDE) -> Callable:
    """The score grad log p_t(x) = -epsilon(x, t) / sigma(t) of a denoiser: (x, t) -> score, of the shape of x."""
    return lambda x, t: score_from_epsilon(denoiser(x, t).epsilon, sde.sigma(t))


PREDICTIONS = {
    "epsilon": lambda p, x, alpha, sigma: Prediction(x0_from_epsilon(x, p, alpha, sigma), p),
    "x0": lambda p, x, alpha, sigma: Prediction(p, epsilon_from_x0(x, p, alpha, sigma)),
}

# "none": the input as it is, and 999 t, the index of a chain of 1,000 steps (Karras et al. 2022, Table 1, VP: c_noise).
PRECONDITIONINGS = {"none": lambda t: 999 * t}
