"""Discrete-time diffusion (Ho et al. 2020, "Denoising Diffusion Probabilistic Models").

This module has the noise schedules, the posterior, the losses and the variational bound. Timesteps n = 0 .. T-1 index
the schedule's arrays, so n is the paper's t - 1: x_n = sqrt(abar_n) x0 + sqrt(1 - abar_n) eps. `to_sde` returns the
SDE that interpolates a schedule.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr

from score_sde.errors import UserError
from score_sde.parameterization import reverse_log_variance
from score_sde.randomness import fold_each, noise, sample_keys
from score_sde.sde import SDE, from_schedule, lift, sum_event

# (x_n (batch, *event), n (batch,)) -> eps, or (eps, v) if the variance is learned.
EpsilonFn = Callable[[jax.Array, jax.Array], jax.Array]


class Schedule(NamedTuple):
    """Noise schedule of q(x_n | x_{n-1}) = N(sqrt(1 - beta_n) x_{n-1}, beta_n I) (Ho et al. 2020, eq. 2)."""

    betas: jax.Array  # (T,)
    alphas_cumprod: jax.Array  # (T,), abar_n = product of 1 - beta_i for i <= n


def make_schedule(betas: np.ndarray) -> Schedule:
    """Return the schedule of betas (T,), computed in float64 and stored in JAX's default precision.

    Raises:
      UserError: unless there are at least two betas and all are in (0, 1).
    """
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or not len(betas) >= 2 or not ((betas > 0) & (betas < 1)).all():
        raise UserError(f"schedule: expected at least 2 betas in (0, 1), got {betas}")
    return Schedule(jnp.asarray(betas), jnp.asarray(np.exp(np.cumsum(np.log1p(-betas)))))


def linear_schedule(num_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
    """Return the schedule with linearly spaced betas (Ho et al. 2020, Section 4)."""
    return make_schedule(np.linspace(beta_start, beta_end, num_steps))


def cosine_schedule(num_steps: int = 1000, s: float = 0.008) -> Schedule:
    """Return the schedule abar_n = f(n + 1) / f(0), f(i) = cos^2((i/T + s)/(1 + s) pi/2), with betas at most 0.999.

    Nichol and Dhariwal 2021, "Improved Denoising Diffusion Probabilistic Models", eq. 17.
    """
    steps = np.arange(num_steps + 1)
    f = np.cos((steps / num_steps + s) / (1 + s) * np.pi / 2) ** 2
    return make_schedule(np.minimum(1 - f[1:] / f[:-1], 0.999))


SCHEDULES = {"ddpm_linear": linear_schedule, "ddpm_cosine": cosine_schedule}  # by the name of the SDE of `to_sde`


def to_sde(schedule: Schedule) -> SDE:
    """Return the variance-preserving SDE that interpolates a schedule: alpha(t)^2 = abar_n at t = n / (T - 1).

    Between timesteps beta(t) is constant, so that B = -log alpha^2 is linear in t. A network that was trained on 1,000
    timesteps gets 999 t = n as its noise level (preconditioning "none"), and works with every solver. As with `ve`, the
    data at t = 0 already has noise, of variance beta_0.
    """
    integral = -np.cumsum(np.log1p(-np.asarray(schedule.betas, np.float64)))
    times = np.linspace(0.0, 1.0, len(integral))

    def interpolate(t):
        t = jnp.asarray(t, jnp.result_type(t, float))
        return jnp.interp(t, jnp.asarray(times, t.dtype), jnp.asarray(integral, t.dtype))

    def inverse(log_snr):
        b = jax.nn.softplus(-log_snr)
        return jnp.interp(b, jnp.asarray(integral, b.dtype), jnp.asarray(times, b.dtype))

    sde = from_schedule(
        alpha=lambda t: jnp.exp(-0.5 * interpolate(t)),
        sigma=lambda t: jnp.sqrt(-jnp.expm1(-interpolate(t))),
        t_min=0.0,
        t_max=1.0,
    )
    return sde._replace(t_from_log_snr=inverse)


def timestep_to_time(schedule: Schedule, n: jax.Array) -> jax.Array:
    """Return the time of timestep n in `to_sde`, n / (T - 1)."""
    return n / (len(schedule.betas) - 1)


def time_to_timestep(schedule: Schedule, t: jax.Array) -> jax.Array:
    """Return the timestep floor(t T) of a time in [0, 1] as int32; uniform times give uniform timesteps."""
    num_steps = len(schedule.betas)
    return jnp.clip(jnp.floor(t * num_steps), 0, num_steps - 1).astype(jnp.int32)


class Coefficients(NamedTuple):
    """Coefficients of a schedule's marginals and posterior (Ho et al. 2020, eq. 4 and 7), each (T,)."""

    signal: jax.Array  # sqrt(abar_n)
    noise: jax.Array  # sqrt(1 - abar_n)
    posterior_x0: jax.Array  # factor of x0 in the posterior mean, sqrt(abar_{n-1}) beta_n / (1 - abar_n)
    posterior_x: jax.Array  # factor of x_n, sqrt(1 - beta_n) (1 - abar_{n-1}) / (1 - abar_n)
    posterior_variance: jax.Array  # beta~_n = (1 - abar_{n-1}) / (1 - abar_n) beta_n; 0 at n = 0
    clipped_log_variance: jax.Array  # log beta~_n, with the value of n = 1 at n = 0, because log 0 is infinite


def coefficients(schedule: Schedule) -> Coefficients:
    """Return the `Coefficients` of a schedule; expm1 avoids the cancellation of 1 - abar_n at small n."""
    betas = schedule.betas
    log_abar = jnp.cumsum(jnp.log1p(-betas))
    variance = -jnp.expm1(log_abar)  # 1 - abar_n
    log_abar_before, variance_before = (
        jnp.concatenate([jnp.zeros(1, betas.dtype), v[:-1]]) for v in (log_abar, variance)
    )
    posterior_variance = betas * variance_before / variance
    return Coefficients(
        signal=jnp.exp(0.5 * log_abar),
        noise=jnp.sqrt(variance),
        posterior_x0=jnp.exp(0.5 * log_abar_before) * betas / variance,
        posterior_x=jnp.sqrt(1 - betas) * variance_before / variance,
        posterior_variance=posterior_variance,
        clipped_log_variance=jnp.log(posterior_variance.at[0].set(posterior_variance[1])),
    )


def q_sample(schedule: Schedule, x0: jax.Array, n: jax.Array, epsilon: jax.Array) -> jax.Array:
    """Return x_n = sqrt(abar_n) x0 + sqrt(1 - abar_n) eps (Ho et al. 2020, eq. 4)."""
    c = coefficients(schedule)
    return lift(c.signal[n], x0) * x0 + lift(c.noise[n], x0) * epsilon


def q_posterior(schedule: Schedule, x0: jax.Array, x_n: jax.Array, n: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return mean and log-variance of q(x_{n-1} | x_n, x0) = N(mu~_n(x_n, x0), beta~_n I) (Ho et al. 2020, eq. 6, 7).

        mu~_n = sqrt(abar_{n-1}) beta_n / (1 - abar_n) x0 + sqrt(1 - beta_n) (1 - abar_{n-1}) / (1 - abar_n) x_n
        beta~_n = (1 - abar_{n-1}) / (1 - abar_n) beta_n

    Returns:
      Pair (mean (batch, *event), log_variance of the shape of n). At n = 0 the mean is x0 and the variance is 0; its
      logarithm is clipped to that of n = 1.
    """
    c = coefficients(schedule)
    return lift(c.posterior_x0[n], x0) * x0 + lift(c.posterior_x[n], x0) * x_n, c.clipped_log_variance[n]


def x0_from_epsilon_at(schedule: Schedule, x_n: jax.Array, n: jax.Array, epsilon: jax.Array) -> jax.Array:
    """Return x0 = (x_n - sqrt(1 - abar_n) eps) / sqrt(abar_n) (Ho et al. 2020, eq. 15)."""
    c = coefficients(schedule)
    return (x_n - lift(c.noise[n], x_n) * epsilon) / lift(c.signal[n], x_n)


def simple_loss(
    epsilon_fn: EpsilonFn, schedule: Schedule, x0: jax.Array, n: jax.Array, epsilon: jax.Array
) -> jax.Array:
    """Return L_simple = |eps - eps_theta(x_n, n)|^2 of each example, (batch,) (Ho et al. 2020, eq. 14)."""
    return sum_event((epsilon_fn(q_sample(schedule, x0, n, epsilon), n) - epsilon) ** 2)


def hybrid_loss(
    epsilon_fn: EpsilonFn,
    schedule: Schedule,
    x0: jax.Array,
    n: jax.Array,
    epsilon: jax.Array,
    vlb_weight: float = 1e-3,
    *,
    levels: int,
) -> jax.Array:
    """Return L_hybrid = L_simple + lambda L_vlb, which trains the variance, (batch,) (Nichol and Dhariwal, eq. 16).

    Args:
      epsilon_fn: Network (x_n, n) -> (eps, v) with v of the shape of eps; see `reverse_log_variance`.
      schedule: Noise schedule.
      x0: Data in [-1, 1], (batch, *event).
      n: Uniformly sampled timesteps, (batch,). T times the term of L_vlb at n is an unbiased estimate of L_vlb in nats.
      epsilon: Noise, of the shape of x0.
      vlb_weight: Weight lambda of L_vlb, whose gradient with respect to eps is stopped.
      levels: Number of pixel levels, for the decoder term L_0.
    """
    x_n = q_sample(schedule, x0, n, epsilon)
    predicted, v = epsilon_fn(x_n, n)
    term = vlb_term(schedule, x0, x_n, n, jax.lax.stop_gradient(predicted), v, levels)
    return sum_event((predicted - epsilon) ** 2) + vlb_weight * len(schedule.betas) * term


def vlb_term(
    schedule: Schedule,
    x0: jax.Array,
    x_n: jax.Array,
    n: jax.Array,
    epsilon: jax.Array,
    v: jax.Array | None = None,
    levels: int = 256,
) -> jax.Array:
    """Return the term of the bound at timestep n in nats, (batch,) (Ho et al. 2020, eq. 5).

        L_{t-1} = KL(q(x_{n-1} | x_n, x0) || p(x_{n-1} | x_n))    for n > 0
        L_0 = -log p(x0 | x_n)                                    for n = 0

    Args:
      schedule: Noise schedule.
      x0: Data in [-1, 1], (batch, *event).
      x_n: Noisy data at timestep n, of the shape of x0.
      n: Timesteps, (batch,).
      epsilon: Noise prediction at (x_n, n), of the shape of x0.
      v: Prediction of the log-variance between log beta~ (-1) and log beta (1) (Nichol and Dhariwal 2021, eq. 15).
        None fixes the variance to beta (Ho et al. 2020, Section 3.2).
      levels: Number of pixel levels.
    """
    x0_hat = x0_from_epsilon_at(schedule, x_n, n, epsilon)
    mean, log_beta_tilde = q_posterior(schedule, x0, x_n, n)
    mean_hat, _ = q_posterior(schedule, x0_hat, x_n, n)
    log_beta_tilde, log_beta = lift(log_beta_tilde, x0), lift(jnp.log(schedule.betas)[n], x0)
    log_variance = log_beta if v is None else reverse_log_variance(v, log_beta_tilde, log_beta)
    divergence = normal_kl(mean, log_beta_tilde, mean_hat, log_variance)
    decoder = -discretized_normal_log_prob(x0, mean_hat, 0.5 * log_variance, levels)
    return sum_event(jnp.where(lift(n, x0) > 0, divergence, decoder))


class VariationalBound(NamedTuple):
    """Terms of the variational bound on -log p(x0) per example (Ho et al. 2020, eq. 5)."""

    prior: jax.Array  # (batch,) L_T, KL(q(x_T | x0) || N(0, I))
    transitions: jax.Array  # (batch, T - 1) L_{t-1}, KL(q(x_{n-1} | x_n, x0) || p(x_{n-1} | x_n)) for n = 1 .. T-1
    decoder: jax.Array  # (batch,) L_0, -log p(x0 | x_{n=0})

    @property
    def total(self) -> jax.Array:
        """Return the bound, (batch,)."""
        return self.prior + jnp.sum(self.transitions, axis=1) + self.decoder


def variational_bound(
    epsilon_fn: EpsilonFn,
    schedule: Schedule,
    x0: jax.Array,
    key: jax.Array,
    bits_per_dim: bool = False,
    levels: int = 256,
) -> VariationalBound:
    """Return the terms of the variational bound on -log p(x0), each with one sample of x_n (Ho et al. 2020, eq. 5).

    Args:
      epsilon_fn: Network (x_n, n) -> eps, for a reverse variance of beta, or (eps, v) for the learned variance of
        `vlb_term`.
      schedule: Noise schedule.
      x0: Data, integers 0 .. levels - 1 mapped to [-1, 1], (batch, *event).
      key: PRNG key, or one key per example.
      bits_per_dim: Whether the terms are in bits per dimension instead of nats per example.
      levels: Number of pixel levels.
    """
    keys = sample_keys(key, x0.shape[0])

    def term(n):
        epsilon = noise(fold_each(keys, n), x0)
        steps = jnp.full(x0.shape[:1], n)
        x_n = q_sample(schedule, x0, steps, epsilon)
        output = epsilon_fn(x_n, steps)
        predicted, v = output if isinstance(output, tuple) else (output, None)
        return vlb_term(schedule, x0, x_n, steps, predicted, v, levels)

    terms = jax.lax.map(term, jnp.arange(len(schedule.betas)))
    c = coefficients(schedule)
    prior = sum_event(normal_kl(c.signal[-1] * x0, 2 * jnp.log(c.noise[-1]), 0.0, 0.0))
    unit = x0[0].size * math.log(2) if bits_per_dim else 1.0
    return VariationalBound(prior / unit, terms[1:].T / unit, terms[0] / unit)


def normal_kl(mean, log_variance, other_mean, other_log_variance):
    """Return KL(N(mean, exp(log_variance)) || N(other_mean, exp(other_log_variance))), elementwise, in nats."""
    difference = log_variance - other_log_variance
    return 0.5 * (jnp.expm1(difference) - difference + (mean - other_mean) ** 2 * jnp.exp(-other_log_variance))


def discretized_normal_log_prob(x: jax.Array, mean: jax.Array, log_std: jax.Array, levels: int = 256) -> jax.Array:
    """Return the log-probability of each discrete value of x in nats (Ho et al. 2020, eq. 13).

        P(x) = integral of N(u; mean, std^2) over u from delta_-(x) to delta_+(x)
        delta_+(x) = infinity if x = 1, otherwise x + 1/255
        delta_-(x) = -infinity if x = -1, otherwise x - 1/255

    The probabilities of all levels sum to 1. For other numbers of levels 1/255 is 1 / (levels - 1).

    Args:
      x: Values on `levels` levels in [-1, 1].
      mean: Mean, broadcastable to x.
      log_std: Log standard deviation, broadcastable to x.
      levels: Number of levels.
    """
    half = 1 / (levels - 1)  # half the distance of two levels
    scale = jnp.exp(-log_std)
    infinity = 1e6  # finite, because log Phi has no derivative at infinity
    low = jnp.where(x < -1 + half, -infinity, (x - half - mean) * scale)  # (delta_- - mean) / std
    high = jnp.where(x > 1 - half, infinity, (x + half - mean) * scale)  # (delta_+ - mean) / std
    # By symmetry Phi(high) - Phi(low) is evaluated in the left tail, where log Phi is accurate.
    right = x >= mean
    low, high = jnp.where(right, -high, low), jnp.where(right, -low, high)
    log_high, log_low = log_ndtr(high), log_ndtr(low)
    return log_high + jnp.log1p(-jnp.exp(log_low - log_high))
