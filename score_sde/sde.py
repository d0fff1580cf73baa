"""Forward SDEs and their reverse-time forms.

Every process is linear-Gaussian (Song et al. 2021, "Score-Based Generative Modeling through Stochastic Differential
Equations", Appendix B): the SDE

    dx = f(x, t) dt + g(t) dw

has the marginal x_t = alpha(t) x0 + sigma(t) eps with eps ~ N(0, I). An SDE is therefore six things: alpha, sigma, the
drift f, the diffusion g, and the two ends of time. t = 0 is data. A new SDE is one function and one entry of `SDES`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from score_sde.errors import UserError


class SDE(NamedTuple):
    """A linear-Gaussian forward process, as pure functions of time; build it once a run and close over it."""

    alpha: Callable[[jax.Array], jax.Array]  # t -> signal scale, shape of t
    sigma: Callable[[jax.Array], jax.Array]  # t -> noise standard deviation, shape of t
    drift: Callable[[jax.Array, jax.Array], jax.Array]  # (x, t) -> f(x, t), shape of x
    diffusion: Callable[[jax.Array], jax.Array]  # t -> g(t), shape of t
    t_min: float  # where reverse-time integration stops
    t_max: float  # where it starts, from the prior


def lift(coefficient: jax.Array, x: jax.Array) -> jax.Array:
    """Appends axes of length one to a coefficient of shape () or (batch,), so that it multiplies x: (batch, *event)."""
    coefficient = jnp.asarray(coefficient)
    if coefficient.ndim == 0:
        return coefficient
    return coefficient.reshape(coefficient.shape + (1,) * (x.ndim - coefficient.ndim))


def vp(beta_min: float = 0.1, beta_max: float = 20.0) -> SDE:
    """The variance-preserving SDE, dx = -beta(t)/2 x dt + sqrt(beta(t)) dw (Song et al. 2021, eq. 11 and Appendix C).

    beta(t) = beta_min + t (beta_max - beta_min) and B(t) is its integral from 0, so that alpha = exp(-B/2) and
    sigma = sqrt(1 - exp(-B)), written with expm1: in float32 1 - exp(-B) has lost every digit at t = 1e-7.

    Args:
      beta_min: beta at t = 0; positive.
      beta_max: beta at t = 1; larger than beta_min.

    Returns:
      An SDE on [0, 1]. Reverse-time integration stops at 1e-3 (Song et al. 2021, Appendix C).

    Raises:
      UserError: unless 0 < beta_min < beta_max.
    """
    if not 0 < beta_min < beta_max:
        raise UserError(
            f"vp: need 0 < beta_min < beta_max, got beta_min={beta_min}, beta_max={beta_max} (set --config.sde.kwargs)"
        )

    def beta(t):
        return beta_min + t * (beta_max - beta_min)

    def integral(t):
        return t * (beta_min + 0.5 * t * (beta_max - beta_min))

    return SDE(
        alpha=lambda t: jnp.exp(-0.5 * integral(t)),
        sigma=lambda t: jnp.sqrt(-jnp.expm1(-integral(t))),
        drift=lambda x, t: -0.5 * lift(beta(t), x) * x,
        diffusion=lambda t: jnp.sqrt(beta(t)),
        t_min=1e-3,
        t_max=1.0,
    )


SDES = {"vp": vp}


def perturb(sde: SDE, key: jax.Array, x0: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Draws x_t given x0 from the forward process' marginal, x_t = alpha(t) x0 + sigma(t) epsilon.

    Args:
      sde: the forward process.
      key: one typed key.
      x0: (batch, *event) data.
      t: () or (batch,) times.

    Returns:
      (x_t, epsilon), each of the shape of x0.
    """
    epsilon = jax.random.normal(key, x0.shape, x0.dtype)
    return marginal(sde, x0, epsilon, t), epsilon


def marginal(sde: SDE, x0: jax.Array, epsilon: jax.Array, t: jax.Array) -> jax.Array:
    """The point alpha(t) x0 + sigma(t) epsilon; x0 and epsilon are (batch, *event), t is () or (batch,)."""
    return lift(sde.alpha(t), x0) * x0 + lift(sde.sigma(t), x0) * epsilon


def prior_sample(sde: SDE, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draws from the prior N(0, sigma(t_max)^2 I), in the shape given."""
    return sde.sigma(sde.t_max) * jax.random.normal(key, shape)


def prior_log_prob(sde: SDE, x: jax.Array) -> jax.Array:
    """log N(x; 0, sigma(t_max)^2 I) in nats: x is (batch, *event), the result (batch,)."""
    axes = tuple(range(1, x.ndim))
    scale = sde.sigma(sde.t_max)
    return jnp.sum(-0.5 * (x / scale) ** 2 - jnp.log(scale) - 0.5 * jnp.log(2 * jnp.pi), axis=axes)


def log_snr(sde: SDE, t: jax.Array) -> jax.Array:
    """log(alpha^2 / sigma^2), of the shape of t."""
    return 2 * (jnp.log(sde.alpha(t)) - jnp.log(sde.sigma(t)))


def reverse_sde_epsilon(sde: SDE, epsilon_fn: Callable) -> tuple[Callable, Callable]:
    """The reverse SDE dx = [f(x, t) + g(t)^2 / sigma(t) epsilon(x, t)] dt + g(t) dw̄ (Song et al. 2021, eq. 6).

    The score of eq. 6 is -epsilon / sigma.

    Args:
      sde: the forward process.
      epsilon_fn: (x, t) -> E[epsilon | x_t = x], of the shape of x.

    Returns:
      (drift(x, t), diffusion(t)); time runs from t_max down, so dt is negative.
    """

    def drift(x, t):
        return sde.drift(x, t) + lift(sde.diffusion(t) ** 2 / sde.sigma(t), x) * epsilon_fn(x, t)

    return drift, sde.diffusion


def probability_flow_epsilon(sde: SDE, epsilon_fn: Callable) -> Callable:
    """The probability flow ODE dx = [f(x, t) + g(t)^2 / (2 sigma(t)) epsilon(x, t)] dt (Song et al. 2021, eq. 13)."""

    def drift(x, t):
        return sde.drift(x, t) + lift(sde.diffusion(t) ** 2 / (2 * sde.sigma(t)), x) * epsilon_fn(x, t)

    return drift


def reverse_sde(sde: SDE, score_fn: Callable) -> tuple[Callable, Callable]:
    """`reverse_sde_epsilon` from score_fn: (x, t) -> grad log p_t(x); (drift(x, t), diffusion(t))."""
    return reverse_sde_epsilon(sde, lambda x, t: -lift(sde.sigma(t), x) * score_fn(x, t))


def probability_flow(sde: SDE, score_fn: Callable) -> Callable:
    """`probability_flow_epsilon` from score_fn: (x, t) -> grad log p_t(x); drift(x, t)."""
    return probability_flow_epsilon(sde, lambda x, t: -lift(sde.sigma(t), x) * score_fn(x, t))
