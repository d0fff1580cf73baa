"""log p(x) by the probability flow, bits per dimension, and what an invertible map between data and noise allows.

Along the flow d log p_t(x_t) / dt = -div v(x_t, t) (Song et al. 2021, Section 4.3 and eq. 39), so

    log p(x) = log p_T(z) + integral of div v over [t_min, t_max],    x at t_min flowing to z at t_max

log p is a density's: of continuous data it may be positive and bits/dim negative. Of discrete data only a density of
dequantized data says anything, as a bound on their probability (Theis et al. 2016).
"""

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from score_sde.conditioned import map_examples
from score_sde.errors import UserError, lookup, not_none
from score_sde.parameterization import Denoiser, velocity_fn
from score_sde.randomness import fold_each, noise, sample_keys
from score_sde.sde import SDE, add_noise, lift, prior_log_prob, sum_event
from score_sde.solvers import solve_adaptive
from score_sde.solvers.adaptive import IntegratorOptions, check_ends, check_options, integrate
from score_sde.solvers.base import most_evaluations

Nats = TypeVar("Nats", jax.Array, np.ndarray)
DIVERGENCES = ("hutchinson", "exact")
PROBES = ("rademacher", "gaussian")


class Likelihood(NamedTuple):
    """log p of each example, in nats, with its account: log_prob = prior + divergence."""

    log_prob: jax.Array  # (batch,)
    latent: jax.Array  # (batch, *event), where x flows to at t_max
    nfe: jax.Array | None  # (batch,) network evaluations, each with its derivative along the probes counted once
    prior: jax.Array  # (batch,) log N(latent; 0, sigma(t_max)^2)
    divergence: jax.Array  # (batch,) the integral, its mean over probes
    standard_error: jax.Array  # (batch,) of the divergence, from the spread over probes; NaN of one probe, 0 if exact


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
    """log p(x) of x taken to be at t_min, by the instantaneous change of variables (Song et al. 2021, eq. 39 and 40).

    The probes of Hutchinson's estimate are drawn once for the whole way: drawn anew at every evaluation they would be
    noise to an adaptive method, which then never converges. Their derivatives are taken in forward mode, and are part
    of what the error is measured of.

    Args:
      sde: the forward process.
      denoiser: (x, t) -> Prediction, with t: (batch,); each example is evaluated with its row of the conditioning, so
        that with labels this is log p(x | y).
      x: (batch, *event) real numbers at t_min: continuous data, or pixels after `dequantize`.
      key: one typed key, folded by the example's position, or (batch,) keys; for the probes.
      divergence: "hutchinson", unbiased, or "exact", which costs as many derivatives as there are dimensions.
      num_probes: of Hutchinson's estimate.
      rtol, atol: the error of a step may be atol + rtol |.|, of x and of the integral.
      probe: "rademacher" (signs, of the smallest variance) or "gaussian".
      method: as of `solve_adaptive`.
      max_steps: steps an example may take.

    Returns:
      A Likelihood; under `jax.jit` NaN where an example didn't arrive within max_steps.

    Raises:
      UserError: x are integers or lie on a grid (not dequantized), a name is unknown, a key is missing, or an example
        didn't arrive.
    """
    lookup("divergence", dict.fromkeys(DIVERGENCES), divergence, "divergence")
    lookup("probe", dict.fromkeys(PROBES), probe, "probe")
    options = IntegratorOptions(rtol, atol, method, "i", max_steps)
    check_options(options, "--config.likelihood")
    check_ends(sde, sde.t_min, sde.t_max)
    check_continuous(x)
    exact = divergence == "exact"
    if not exact and (key is None or num_probes < 1):
        raise UserError(f"Hutchinson's estimate needs a key and num_probes >= 1, got num_probes={num_probes}")
    shape = x.shape[1:]
    if exact:
        probes = jnp.zeros((len(x), 0, *shape))
    else:
        probes = _probes(sample_keys(not_none(key), len(x)), num_probes, x, probe)

    def one(velocity, x, probes):
        def augmented(t, state):
            x, _ = state
            directions = jnp.eye(x.size, dtype=x.dtype).reshape(-1, *shape) if exact else probes
            value, slopes = _along(lambda x: velocity(x, t), x, directions)
            parts = jnp.sum((directions * slopes).reshape(len(directions), -1), axis=1)
            return value, jnp.sum(parts, keepdims=True) if exact else parts

        integrals = jnp.zeros(1 if exact else num_probes, x.dtype)
        return integrate(augmented, (x, integrals), sde.t_min, sde.t_max, options)

    (latent, integrals), steps = map_examples(one, velocity_fn(denoiser, sde), x, probes)
    nfe = None if steps is None else steps * most_evaluations(denoiser, sde.t_min, sde.t_max)
    if not isinstance(latent, jax.core.Tracer) and not np.isfinite(np.asarray(latent)).all():
        raise UserError(
            f"an example didn't arrive within max_steps={max_steps}, or met NaN on the way (set "
            "--config.likelihood.max_steps, or larger --config.likelihood.rtol and atol)"
        )
    prior, mean = prior_log_prob(sde, latent), jnp.mean(integrals, axis=1)
    error = jnp.zeros_like(mean) if exact else _standard_error(integrals, axis=1)
    return Likelihood(prior + mean, latent, nfe, prior, mean, error)


def _along(function, x, directions):
    """function(x), and its derivatives along several directions, in forward mode."""
    value, linear = jax.linearize(function, x)
    return value, jax.vmap(linear)(directions)


def _probes(keys, num_probes: int, x, probe: str):
    """(batch, num_probes, *event) with E[e e^T] = I."""

    def draw(keys):
        if probe == "gaussian":
            return noise(keys, x)
        return jax.vmap(lambda key: jax.random.rademacher(key, x.shape[1:], x.dtype))(keys)

    return jnp.stack([draw(fold_each(keys, n)) for n in range(num_probes)], axis=1)


def _standard_error(values, axis: int):
    n = values.shape[axis]
    if n == 1:
        return jnp.full_like(jnp.sum(values, axis=axis), jnp.nan)
    return jnp.std(values, axis=axis, ddof=1) / np.sqrt(n)


def check_continuous(x) -> None:
    """Refuses what is not dequantized.

    Raises:
      UserError: x are integers, or take few values that lie on a grid, as pixels do that were only scaled.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise UserError(f"log p of discrete data ({x.dtype}) means nothing: dequantize(key, images, levels) first")
    if isinstance(x, jax.core.Tracer) or x.size < 64:
        return
    values = np.unique(np.asarray(x[: max(1, 4096 * len(x) // x.size)], np.float64))
    gaps = np.diff(values)
    if 2 <= len(values) <= min(256, x.size // 2) and np.allclose(
        gaps / gaps.min(), np.rint(gaps / gaps.min()), atol=1e-3
    ):
        raise UserError(
            f"the data take only {len(values)} values, on a grid of {gaps.min():.3g}: pixels that were scaled but not "
            "dequantized, of which log p means nothing; dequantize(key, images, levels) first"
        )


def bits_per_dim(
    log_prob: Nats,
    event_shape: tuple[int, ...],
    levels: int = 256,
    data_range: tuple[float, float] = (-1.0, 1.0),
) -> Nats:
    """-log2 of the probability of discrete data, a dimension, of the shape of log_prob.

    The data were mapped from [0, levels] to data_range, so a density in nats gains log of the slope a dimension:
    P(v) >= p(x) (width / levels)^d.

    Args:
      log_prob: log density of the dequantized data, in nats.
      event_shape: of one example.
      levels: the data are integers 0 .. levels - 1.
      data_range: where [0, levels] was mapped to, as by `dequantize`.
    """
    d = np.prod(event_shape)
    return -(log_prob / d + np.log((data_range[1] - data_range[0]) / levels)) / np.log(2.0)


def dequantize(
    key: jax.Array, images: jax.Array | np.ndarray, levels: int = 256, data_range: tuple[float, float] = (-1.0, 1.0)
) -> jax.Array:
    """Adds uniform noise of one level and maps [0, levels] to data_range (Uria et al. 2013; Theis et al. 2016).

    Args:
      key: one typed key, folded by the example's position, or (batch,) keys.
      images: (batch, *event) integers 0 .. levels - 1.
      levels: their number.
      data_range: where [0, levels] goes.

    Returns:
      float32 of the same shape.

    Raises:
      UserError: images are not integers, or not of these levels.
    """
    if not jnp.issubdtype(images.dtype, jnp.integer):
        raise UserError(f"dequantize takes integers 0 .. {levels - 1}, got {images.dtype}")
    if not isinstance(images, jax.core.Tracer):
        least, most = int(np.min(images)), int(np.max(images))  # of JAX's uint8, 256 would wrap around to 0
        if least < 0 or most >= levels:
            raise UserError(f"dequantize takes integers 0 .. {levels - 1}, got {least} .. {most}")
    keys = sample_keys(key, len(images))
    uniform = jax.vmap(lambda key: jax.random.uniform(key, images.shape[1:]))(keys)
    low, high = data_range
    return low + (high - low) * (jnp.asarray(images, jnp.float32) + uniform) / levels


def centered_range(levels: int) -> tuple[float, float]:
    """The data range in which level v covers 2 v / (levels - 1) - 1, as `to_unit_range`, and half a level around it."""
    half = 1.0 / (levels - 1)
    return -1.0 - half, 1.0 + half


def truncation(sde: SDE, denoiser: Denoiser, x0: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What it costs to start at t_min instead of 0: x at t_min, and the term that makes log p(x0)'s bound of log p(x).

    log p(x0) >= E[log p(x) + log p(x0 | x) - log q(x | x0)] with x ~ q(x | x0) = N(alpha x0, sigma^2) and the decoder
    N(E[x0 | x], (sigma / alpha)^2) (Song, Durkan et al. 2021, "Maximum Likelihood Training ...", Section 5). With x =
    alpha x0 + sigma eps the last two are d log alpha + (|eps|^2 - |eps - eps_hat|^2) / 2.

    Args:
      x0: (batch, *event) data.
      key: one typed key, or (batch,) keys.

    Returns:
      (x (batch, *event), term (batch,) in nats).
    """
    epsilon = noise(sample_keys(key, len(x0)), x0)
    t = jnp.full(len(x0), sde.t_min, x0.dtype)
    x = add_noise(sde, x0, epsilon, t)
    error = epsilon - denoiser(x, t).epsilon
    return x, x0[0].size * jnp.log(sde.alpha(t)) + 0.5 * sum_event(epsilon**2 - error**2)


def encode(sde: SDE, denoiser: Denoiser, x: jax.Array, **how) -> jax.Array:
    """The latent at t_max that x at t_min flows to; `how` as for `solve_adaptive` (rtol, atol, method, max_steps)."""
    return solve_adaptive(sde, denoiser, x, t0=sde.t_min, t1=sde.t_max, **how).x


def decode(sde: SDE, denoiser: Denoiser, z: jax.Array, temperature: float = 1.0, **how) -> jax.Array:
    """What temperature * z flows to at t_min: `encode`'s inverse at temperature 1."""
    return solve_adaptive(sde, denoiser, temperature * z, t0=sde.t_max, t1=sde.t_min, **how).x


def interpolate(z0: jax.Array, z1: jax.Array, weights: jax.Array, kind: str = "spherical") -> jax.Array:
    """Points between two latents: of the same weight in the prior (spherical), or on the straight line (linear).

    Args:
      z0, z1: (batch, *event).
      weights: (k,), 0 is z0 and 1 is z1.
      kind: "spherical", sin((1 - w) a) / sin(a) z0 + sin(w a) / sin(a) z1 with a the angle between them, or "linear".

    Returns:
      (k, batch, *event).
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
