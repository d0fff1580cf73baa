"""The discrete chain of Ho et al. 2020 ("Denoising Diffusion Probabilistic Models"): betas, posterior, losses, bound.

Steps are indices n = 0 .. T-1 into the schedule's arrays: x_n = sqrt(abar_n) x0 + sqrt(1 - abar_n) eps, where n is the
paper's t - 1. The continuous process through the chain is `to_sde`.
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

EpsilonFn = Callable[
    [jax.Array, jax.Array], jax.Array
]  # (x_n (batch, *event), n (batch,)) -> eps, or (eps, v) of learned


class Schedule(NamedTuple):
    """The chain's noise: x_n = sqrt(1 - beta_n) x_{n-1} + sqrt(beta_n) z."""

    betas: jax.Array  # (T,)
    alphas_cumprod: jax.Array  # (T,), abar_n: the product of 1 - beta up to and with n


def make_schedule(betas: np.ndarray) -> Schedule:
    """The schedule of any betas (T,); computed in float64, kept in JAX's default precision.

    Raises:
      UserError: a beta is outside (0, 1).
    """
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or not len(betas) >= 2 or not ((betas > 0) & (betas < 1)).all():
        raise UserError(f"a chain needs at least 2 betas in (0, 1), got {betas}")
    return Schedule(jnp.asarray(betas), jnp.asarray(np.exp(np.cumsum(np.log1p(-betas)))))


def linear_schedule(num_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
    """Betas in equal steps from beta_start to beta_end (Ho et al. 2020, Section 4)."""
    return make_schedule(np.linspace(beta_start, beta_end, num_steps))


def cosine_schedule(num_steps: int = 1000, s: float = 0.008) -> Schedule:
    """abar_n = f(n + 1) / f(0), f(i) = cos^2((i/T + s)/(1 + s) pi/2), betas at most 0.999.

    Nichol and Dhariwal 2021, "Improved Denoising Diffusion Probabilistic Models", eq. 17.
    """
    steps = np.arange(num_steps + 1)
    f = np.cos((steps / num_steps + s) / (1 + s) * np.pi / 2) ** 2
    return make_schedule(np.minimum(1 - f[1:] / f[:-1], 0.999))


SCHEDULES = {"ddpm_linear": linear_schedule, "ddpm_cosine": cosine_schedule}  # names of the SDEs that `to_sde` makes


def to_sde(schedule: Schedule) -> SDE:
    """The variance-preserving SDE that passes through the chain: t = n / (T - 1), alpha(t)^2 = abar_n at every n.

    Between two steps beta(t) is constant, so B = -log alpha^2 is linear in t. The network of a chain of 1,000 steps is
    shown 999 t = n, and so runs under every solver; at t = 0 the data already has the noise beta_0, as with `ve`.
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
    """The time of step n in `to_sde`: n / (T - 1)."""
    return n / (len(schedule.betas) - 1)


def time_to_timestep(schedule: Schedule, t: jax.Array) -> jax.Array:
    """The step whose time is nearest to t in [0, 1], as int32: T indices, equally likely if t is uniform."""
    num_steps = len(schedule.betas)
    return jnp.clip(jnp.floor(t * num_steps), 0, num_steps - 1).astype(jnp.int32)


class Coefficients(NamedTuple):
    """What the posterior and the losses take from a schedule, each (T,)."""

    signal: jax.Array  # sqrt(abar_n)
    noise: jax.Array  # sqrt(1 - abar_n)
    posterior_x0: jax.Array  # of the posterior's mean (Ho et al., eq. 7)
    posterior_x: jax.Array
    posterior_variance: jax.Array  # 0 at n = 0
    clipped_log_variance: jax.Array  # that of n = 1 at n = 0, since log 0 is not finite


def coefficients(schedule: Schedule) -> Coefficients:
    """The `Coefficients` of a schedule; 1 - abar through expm1, since abar_0 is 1 to four digits."""
    betas = schedule.betas
    log_abar = jnp.cumsum(jnp.log1p(-betas))
    variance = -jnp.expm1(log_abar)
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
    """x_n = sqrt(abar_n) x0 + sqrt(1 - abar_n) eps (Ho et al. 2020, eq. 4); x0 (batch, *event), n () or (batch,)."""
    c = coefficients(schedule)
    return lift(c.signal[n], x0) * x0 + lift(c.noise[n], x0) * epsilon


def q_posterior(schedule: Schedule, x0: jax.Array, x_n: jax.Array, n: jax.Array) -> tuple[jax.Array, jax.Array]:
    """q(x_{n-1} | x_n, x0) (Ho et al. 2020, eq. 6 and 7).

    Returns:
      (mean (batch, *event), log_variance of the shape of n). At n = 0 the mean is x0 and the variance 0, its logarithm
      clipped to that of n = 1.
    """
    c = coefficients(schedule)
    return lift(c.posterior_x0[n], x0) * x0 + lift(c.posterior_x[n], x0) * x_n, c.clipped_log_variance[n]


def x0_from_epsilon_at(schedule: Schedule, x_n: jax.Array, n: jax.Array, epsilon: jax.Array) -> jax.Array:
    """x0 = (x_n - sqrt(1 - abar_n) eps) / sqrt(abar_n) (Ho et al. 2020, eq. 15)."""
    c = coefficients(schedule)
    return (x_n - lift(c.noise[n], x_n) * epsilon) / lift(c.signal[n], x_n)


def simple_loss(
    epsilon_fn: EpsilonFn, schedule: Schedule, x0: jax.Array, n: jax.Array, epsilon: jax.Array
) -> jax.Array:
    """L_simple of each example, |eps - eps_theta(x_n, n)|^2, (batch,) (Ho et al. 2020, eq. 14)."""
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
    """L_simple + vlb_weight L_vlb, which trains the variance, (batch,) (Nichol and Dhariwal 2021, eq. 16).

    Args:
      epsilon_fn: (x_n, n) -> (eps, v), v of eps' shape: the variance's place between the posterior's (-1) and beta (1).
      schedule: the chain.
      x0: (batch, *event) in [-1, 1].
      n: (batch,) uniform indices; the term of L_vlb at n, times T, estimates their sum, in nats.
      epsilon: of the shape of x0.
      vlb_weight: of L_vlb, whose gradient in eps is stopped.
      levels: Number of levels of the data's pixels, for the decoder term L_0.
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
    """The bound's term of step n in nats, (batch,): L_{t-1} for n > 0, the decoder's L_0 for n = 0 (Ho et al., eq. 5).

    Args:
      schedule: the chain.
      x0: (batch, *event) in [-1, 1].
      x_n: the chain at n.
      n: (batch,).
      epsilon: the prediction at (x_n, n).
      v: the variance's place between log posterior variance (-1) and log beta (1) (Nichol and Dhariwal, eq. 15); None
        for beta, as in Ho et al., Section 3.2.
      levels: Number of levels of the data's pixels.
    """
    x0_hat = x0_from_epsilon_at(schedule, x_n, n, epsilon)
    mean, small = q_posterior(schedule, x0, x_n, n)
    mean_hat, _ = q_posterior(schedule, x0_hat, x_n, n)
    small, large = lift(small, x0), lift(jnp.log(schedule.betas)[n], x0)
    log_variance = large if v is None else reverse_log_variance(v, small, large)
    divergence = normal_kl(mean, small, mean_hat, log_variance)
    decoder = -discretized_normal_log_prob(x0, mean_hat, 0.5 * log_variance, levels)
    return sum_event(jnp.where(lift(n, x0) > 0, divergence, decoder))


class VariationalBound(NamedTuple):
    """The terms of Ho et al. 2020, eq. 5, of each example; their sum is at least -log p(x0)."""

    prior: jax.Array  # (batch,) L_T, KL(q(x_T | x0) || N(0, I))
    transitions: jax.Array  # (batch, T - 1) L_{t-1}, KL(q(x_{n-1} | x_n, x0) || p(x_{n-1} | x_n)) for n = 1 .. T-1
    decoder: jax.Array  # (batch,) L_0, -log p(x0 | x_{n=0})

    @property
    def total(self) -> jax.Array:
        """(batch,), the bound."""
        return self.prior + jnp.sum(self.transitions, axis=1) + self.decoder


def variational_bound(
    epsilon_fn: EpsilonFn,
    schedule: Schedule,
    x0: jax.Array,
    key: jax.Array,
    bits_per_dim: bool = False,
    levels: int = 256,
) -> VariationalBound:
    """The variational bound on -log p(x0), term by term, each with one draw of x_n (Ho et al. 2020, eq. 5).

    Args:
      epsilon_fn: (x_n, n) -> eps, with p's variance beta; or (eps, v), with the learned variance of `vlb_term`.
      schedule: the chain.
      x0: (batch, *event), integers 0 .. levels - 1 mapped to [-1, 1].
      key: one key, or one an example.
      bits_per_dim: terms in bits a dimension in place of nats an example.
      levels: Number of levels of the data's pixels.
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
    """KL(N(mean, exp(log_variance)) || N(other_mean, exp(other_log_variance))), elementwise, in nats."""
    difference = log_variance - other_log_variance
    return 0.5 * (jnp.expm1(difference) - difference + (mean - other_mean) ** 2 * jnp.exp(-other_log_variance))


def discretized_normal_log_prob(x: jax.Array, mean: jax.Array, log_std: jax.Array, levels: int = 256) -> jax.Array:
    """log P of each value of x under N(mean, std^2) rounded to `levels` values in [-1, 1], in nats (Ho et al., eq. 13).

    The first and the last value hold the tails, so that the levels' probabilities sum to 1. x, mean and log_std
    broadcast.
    """
    half = 1 / (levels - 1)
    scale = jnp.exp(-log_std)
    far = 1e6  # in place of infinity, where log Phi has no derivative
    low = jnp.where(x < -1 + half, -far, (x - half - mean) * scale)
    high = jnp.where(x > 1 - half, far, (x + half - mean) * scale)
    # Phi(high) - Phi(low) in the tail on the left, where its logarithm keeps its digits.
    right = x >= mean
    low, high = jnp.where(right, -high, low), jnp.where(right, -low, high)
    log_high, log_low = log_ndtr(high), log_ndtr(low)
    return log_high + jnp.log1p(-jnp.exp(log_low - log_high))
