"""Log-likelihood by the probability flow, bits per dimension, encoding, decoding and interpolation.

Along the flow d log p_t(x_t) / dt = -div v(x_t, t) (Song et al. 2021, Section 4.3 and eq. 39), so

    log p(x) = log p_T(z) + integral of div v over [t_min, t_max],    where x at t_min flows to z at t_max

log p is a log-density. For continuous data it may be positive, and bits/dim may be negative. For discrete data the
density of the dequantized data gives a bound on the probability (Theis et al. 2016).
"""

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from score_sde.conditioned import map_examples
from score_sde.data.quantization import centered_range as centered_range
from score_sde.data.quantization import dequantize as dequantize
from score_sde.errors import UserError, lookup, not_none
from score_sde.parameterization import Denoiser, velocity_fn
from score_sde.randomness import fold_each, noise, rademacher, sample_keys
from score_sde.sde import SDE, add_noise, lift, prior_log_prob, sum_event
from score_sde.solvers import solve_adaptive
from score_sde.solvers.adaptive import IntegratorOptions, check_ends, check_options, integrate
from score_sde.solvers.base import most_evaluations

Nats = TypeVar("Nats", jax.Array, np.ndarray)
DIVERGENCES = ("hutchinson", "exact")
PROBES = {"rademacher": rademacher, "gaussian": noise}


class Likelihood(NamedTuple):
    """Log-likelihood of each example in nats, log_prob = prior + divergence."""

    log_prob: jax.Array  # (batch,)
    latent: jax.Array  # (batch, *event), x at t_max
    nfe: jax.Array | None  # (batch,) network evaluations; one with its derivatives along all probes counts once
    prior: jax.Array  # (batch,) log N(latent; 0, sigma(t_max)^2)
    divergence: jax.Array  # (batch,) integral of the divergence, averaged over probes
    standard_error: jax.Array  # (batch,) standard error of the divergence over probes; NaN for one probe, 0 if exact


def log_likelihood(
    sde: SDE,
    denoiser: Denoiser,
    x: jax.Array,
    key: jax.Array | None = None,
    divergence: str = "hutchinson",
    num_probes: int = 1,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    probe: str = "rademacher",
    method: str = "tsit5",
    max_steps: int = 4096,
) -> Likelihood:
    """Return log p(x) of x at t_min, by the instantaneous change of variables (Song et al. 2021, eq. 39 and 40).

    The probes are fixed for the whole solve: resampling them would make the integrand discontinuous for an adaptive
    solver. The divergence is part of the state whose local error is controlled. Derivatives use forward mode.

    Args:
      sde: Forward process.
      denoiser: Denoiser (x, t) -> Prediction with t: (batch,). Each example is evaluated with its row of the
        conditioning, so that with labels the result is log p(x | y).
      x: Real numbers at t_min, (batch, *event): continuous data, or pixels after `dequantize`.
      key: PRNG key of the probes, folded with the example's position, or one key per example, (batch,).
      divergence: "hutchinson" for an unbiased estimate, or "exact", which costs one derivative per dimension.
      num_probes: Number of Hutchinson probes per example.
      rtol: Relative tolerance for both x and the divergence integral.
      atol: Absolute tolerance for both.
      probe: Distribution of the probes, "rademacher", which has the smallest variance, or "gaussian".
      method: Runge-Kutta method, see `solve_adaptive`.
      max_steps: Maximum number of steps per example.

    Returns:
      Likelihood. Under `jax.jit` it is NaN for examples that exceeded max_steps.

    Raises:
      UserError: if x are integers or lie on a grid (not dequantized), a name is unknown, the key is missing, or an
        example exceeded max_steps or diverged.
    """
    lookup("divergence", dict.fromkeys(DIVERGENCES), divergence, "divergence")
    sample_probe = lookup("probe", PROBES, probe, "probe")
    options = IntegratorOptions(rtol, atol, method, "i", max_steps)
    check_options(options)
    check_ends(sde, sde.t_min, sde.t_max)
    check_continuous(x)
    exact = divergence == "exact"
    if not exact and (key is None or num_probes < 1):
        raise UserError(
            f"log_likelihood: Hutchinson's estimate needs a key and num_probes >= 1, got num_probes={num_probes}",
            "num_probes",
        )
    shape = x.shape[1:]
    if exact:
        probes = jnp.zeros((len(x), 0, *shape))
    else:
        keys = sample_keys(not_none(key), len(x))
        probes = jnp.stack([sample_probe(fold_each(keys, n), x) for n in range(num_probes)], axis=1)

    def one(velocity, x, probes):
        def augmented(t, state):
            x, _ = state
            directions = jnp.eye(x.size, dtype=x.dtype).reshape(-1, *shape) if exact else probes
            value, derivatives = _directional_derivatives(lambda x: velocity(x, t), x, directions)
            products = jnp.sum((directions * derivatives).reshape(len(directions), -1), axis=1)  # v^T (dv/dx) v
            return value, jnp.sum(products, keepdims=True) if exact else products

        integrals = jnp.zeros(1 if exact else num_probes, x.dtype)
        return integrate(augmented, (x, integrals), sde.t_min, sde.t_max, options)

    (latent, integrals), steps = map_examples(one, velocity_fn(denoiser, sde), x, probes)
    nfe = None if steps is None else steps * most_evaluations(denoiser, sde.t_min, sde.t_max)
    if not isinstance(latent, jax.core.Tracer) and not np.isfinite(np.asarray(latent)).all():
        raise UserError(
            f"log_likelihood: an example exceeded max_steps={max_steps} or diverged; allow more steps or larger "
            "tolerances",
            "max_steps",
            "rtol",
            "atol",
        )
    prior, mean = prior_log_prob(sde, latent), jnp.mean(integrals, axis=1)
    error = jnp.zeros_like(mean) if exact else _standard_error(integrals, axis=1)
    return Likelihood(prior + mean, latent, nfe, prior, mean, error)


def _directional_derivatives(function, x, directions):
    """Return function(x) and its derivatives along several directions, in forward mode."""
    value, linear = jax.linearize(function, x)
    return value, jax.vmap(linear)(directions)


def _standard_error(values, axis: int):
    n = values.shape[axis]
    if n == 1:
        return jnp.full_like(jnp.sum(values, axis=axis), jnp.nan)
    return jnp.std(values, axis=axis, ddof=1) / np.sqrt(n)


def check_continuous(x) -> None:
    """Raise UserError if x is discrete: integers, or few values on a grid, like pixels that are not dequantized."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise UserError(
            f"log_likelihood: expected continuous data, got {x.dtype}; dequantize(key, images, levels) first"
        )
    if isinstance(x, jax.core.Tracer) or x.size < 64:
        return
    values = np.unique(np.asarray(x[: max(1, 4096 * len(x) // x.size)], np.float64))
    gaps = np.diff(values)
    if 2 <= len(values) <= min(256, x.size // 2) and np.allclose(
        gaps / gaps.min(), np.rint(gaps / gaps.min()), atol=1e-3
    ):
        raise UserError(
            f"log_likelihood: expected continuous data, got {len(values)} values on a grid of {gaps.min():.3g}, like "
            "pixels that were scaled but not dequantized; dequantize(key, images, levels) first"
        )


def bits_per_dim(
    log_prob: Nats,
    event_shape: tuple[int, ...],
    levels: int = 256,
    data_range: tuple[float, float] = (-1.0, 1.0),
) -> Nats:
    """Return the bits per dimension of discrete data, an upper bound on -log2 P / d, of the shape of log_prob.

    The data were mapped from [0, levels] to data_range, which multiplies the density by (width / levels)^d:
    P(v) >= p(x) (width / levels)^d on average over the dequantization noise.

    Args:
      log_prob: Log-density of the dequantized data in nats.
      event_shape: Shape of one example.
      levels: Number of levels; the data are integers 0 .. levels - 1.
      data_range: Image of [0, levels] under `dequantize`.
    """
    d = np.prod(event_shape)
    return -(log_prob / d + np.log((data_range[1] - data_range[0]) / levels)) / np.log(2.0)


def truncation(sde: SDE, denoiser: Denoiser, x0: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return x at t_min and the truncation term, which turns log p(x) into a lower bound on log p(x0).

    log p(x0) >= E[log p(x) + log p(x0 | x) - log q(x | x0)] with x ~ q(x | x0) = N(alpha x0, sigma^2) and the decoder
    N(E[x0 | x], (sigma / alpha)^2) (Song, Durkan et al. 2021, "Maximum Likelihood Training ...", Section 5). With x =
    alpha x0 + sigma eps the last two terms are d log alpha + (|eps|^2 - |eps - eps_hat|^2) / 2.

    Args:
      sde: Forward process.
      denoiser: Denoiser (x, t) -> Prediction.
      x0: Data, (batch, *event).
      key: PRNG key, or one key per example, (batch,).

    Returns:
      Pair (x (batch, *event), term (batch,) in nats).
    """
    epsilon = noise(sample_keys(key, len(x0)), x0)
    t = jnp.full(len(x0), sde.t_min, x0.dtype)
    x = add_noise(sde, x0, epsilon, t)
    error = epsilon - denoiser(x, t).epsilon
    return x, x0[0].size * jnp.log(sde.alpha(t)) + 0.5 * sum_event(epsilon**2 - error**2)


def encode(sde: SDE, denoiser: Denoiser, x: jax.Array, **kwargs) -> jax.Array:
    """Return the latent at t_max to which x flows from t_min; kwargs are those of `solve_adaptive` (rtol, ...)."""
    return solve_adaptive(sde, denoiser, x, t0=sde.t_min, t1=sde.t_max, **kwargs).x


def decode(sde: SDE, denoiser: Denoiser, z: jax.Array, temperature: float = 1.0, **kwargs) -> jax.Array:
    """Return x at t_min to which temperature * z flows from t_max; at temperature 1 the inverse of `encode`."""
    return solve_adaptive(sde, denoiser, temperature * z, t0=sde.t_max, t1=sde.t_min, **kwargs).x


def interpolate(z0: jax.Array, z1: jax.Array, weights: jax.Array, kind: str = "spherical") -> jax.Array:
    """Interpolate between two latents.

    Spherical interpolation, sin((1 - w) a) / sin(a) z0 + sin(w a) / sin(a) z1 with the angle a between z0 and z1, keeps
    the norm typical of the prior (Shoemake 1985).

    Args:
      z0: Latents at weight 0, (batch, *event).
      z1: Latents at weight 1, (batch, *event).
      weights: Weights w, (k,).
      kind: "spherical" or "linear".

    Returns:
      Interpolated latents, (k, batch, *event).
    """
    spherical = lookup("interpolation", {"spherical": True, "linear": False}, kind)
    weights = jnp.reshape(jnp.asarray(weights, z0.dtype), (-1,) + (1,) * z0.ndim)
    if not spherical:
        return (1 - weights) * z0[None] + weights * z1[None]
    cosine = sum_event(z0 * z1) / jnp.sqrt(sum_event(z0**2) * sum_event(z1**2))
    angle = lift(jnp.arccos(jnp.clip(cosine, -1.0, 1.0)), z0)[None]
    parallel = jnp.sin(angle) < 1e-6
    safe = jnp.where(parallel, 1.0, angle)
    first = jnp.where(parallel, 1 - weights, jnp.sin((1 - weights) * safe) / jnp.sin(safe))
    second = jnp.where(parallel, weights, jnp.sin(weights * safe) / jnp.sin(safe))
    return first * z0[None] + second * z1[None]
