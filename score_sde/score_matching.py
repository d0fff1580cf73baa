"""Training objectives: explicit, implicit, sliced and denoising score matching.

All four have the same gradient in the parameters up to Monte Carlo error, because for a fixed density p their
expectations differ by constants (Hyvärinen 2005; Vincent 2011; Song, Garg et al. 2019).
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from score_sde.errors import UserError
from score_sde.parameterization import Denoiser, score_fn
from score_sde.randomness import fold_each, make_example_rngs, noise, rademacher, sample_keys
from score_sde.sde import SDE, add_noise, log_snr, sum_event
from score_sde.time_samplers import TIME_SAMPLERS
from score_sde.weightings import WEIGHTINGS, Weighting, epsilon_scales, get_weighting, score_scales, x0_scales

__all__ = [
    "OBJECTIVES",
    "TIME_SAMPLERS",
    "WEIGHTINGS",
    "denoising",
    "explicit",
    "implicit",
    "make_example_rngs",
    "sliced",
]

Score = Callable[[jax.Array], jax.Array]  # x (batch, *event) -> score; row i depends only on row i


def explicit(score_fn: Score, true_score_fn: Score, x: jax.Array) -> jax.Array:
    """Return |s(x) - grad log p(x)|^2 / 2 of each example, (batch,) (Hyvärinen 2005, eq. 2)."""
    return 0.5 * sum_event((score_fn(x) - true_score_fn(x)) ** 2)


def implicit(score_fn: Score, x: jax.Array, key: jax.Array | None = None, num_probes: int = 1) -> jax.Array:
    """Return tr(grad s(x)) + |s(x)|^2 / 2 of each example, (batch,) (Hyvärinen 2005, Theorem 1).

    Its expectation over p is that of `explicit` minus E|grad log p|^2 / 2.

    Args:
      score_fn: Score x -> s(x).
      x: Points, (batch, *event).
      key: PRNG key, or one key per sample, for Hutchinson's estimate of the trace with Rademacher probes. None gives
        the exact trace, which costs one pass through the network per dimension.
      num_probes: Number of Hutchinson probes per example.
    """
    if key is None:
        return _exact_trace(score_fn, x) + 0.5 * sum_event(score_fn(x) ** 2)
    score, products = _project(score_fn, x, key, num_probes, rademacher)
    return jnp.mean(products, axis=0) + 0.5 * sum_event(score**2)


def sliced(
    score_fn: Score, x: jax.Array, key: jax.Array, num_projections: int = 1, variance_reduced: bool = True
) -> jax.Array:
    """Return v^T (grad s(x)) v + (v^T s(x))^2 / 2 with v ~ N(0, I), (batch,) (Song, Garg et al. 2019, eq. 8).

    Args:
      score_fn: Score x -> s(x).
      x: Points, (batch, *event).
      key: PRNG key, or one key per sample.
      num_projections: Number of directions v to average over.
      variance_reduced: Whether the second term is replaced by its expectation over v, |s(x)|^2 / 2 (SSM-VR).
    """
    score, products, projected = _project(score_fn, x, key, num_projections, noise, with_projected=True)
    square = sum_event(score**2) if variance_reduced else jnp.mean(projected**2, axis=0)
    return jnp.mean(products, axis=0) + 0.5 * square


def _exact_trace(score_fn: Score, x: jax.Array) -> jax.Array:
    """Return the trace of each example's Jacobian, with one forward-mode derivative per dimension."""
    dimension = x[0].size

    def add(n, total):
        direction = jnp.zeros((dimension,), x.dtype).at[n].set(1.0).reshape(x.shape[1:])
        derivative = jax.jvp(score_fn, (x,), (jnp.broadcast_to(direction, x.shape),))[1]
        return total + sum_event(derivative * direction[None])

    return jax.lax.fori_loop(0, dimension, add, jnp.zeros(x.shape[:1], x.dtype))


def _project(score_fn, x, key, num_probes, sample_probe, with_projected=False):
    """Return the score (batch, *event), v^T (grad s) v (num_probes, batch) and optionally v^T s (num_probes, batch)."""
    keys = sample_keys(key, x.shape[0])

    def probe(n):
        v = sample_probe(fold_each(keys, n), x)
        score, derivative = jax.jvp(score_fn, (x,), (v,))
        return score, sum_event(v * derivative), sum_event(v * score)

    score, products, projected = jax.lax.map(probe, jnp.arange(num_probes))
    return (score[0], products, projected) if with_projected else (score[0], products)


def denoising(
    denoiser: Denoiser,
    sde: SDE,
    x0: jax.Array,
    t: jax.Array,
    epsilon: jax.Array,
    weighting: str | Weighting = "simple",
) -> jax.Array:
    """Return the denoising score matching loss of each example, (batch,) (Vincent 2011; Song et al. 2021, eq. 7).

    With the score s = -eps_hat / sigma and the target grad log p(x_t | x0) = -eps / sigma, the loss is

        lambda(t) |s(x_t, t) - grad log p(x_t | x0)|^2
            = (lambda / sigma^2) |eps_hat - eps|^2            where log-SNR >= `LOW_SNR`
            = (lambda snr / sigma^2) |x0_hat - x0|^2          where log-SNR < `LOW_SNR`

    The three are equal. The last is accurate down to snr = 0 for every network that can start from there. The weighting
    returns the factor of the error that is computed.

    Args:
      denoiser: Denoiser (x, t) -> Prediction.
      sde: Forward process.
      x0: Data, (batch, *event).
      t: Times, (batch,).
      epsilon: Noise, of the shape of x0.
      weighting: Weighting lambda(t), a key of `WEIGHTINGS` or the result of one of its functions.

    Raises:
      UserError: if the weighting is unknown.
    """
    weighting = get_weighting(weighting)
    x_t = add_noise(sde, x0, epsilon, t)
    predicted = denoiser(x_t, t)
    level = log_snr(sde, t)
    low = level < LOW_SNR
    epsilon_factor = weighting(epsilon_scales(sde, t, jnp.maximum(level, LOW_SNR)))  # lambda / sigma^2
    x0_factor = weighting(x0_scales(sde, t, jnp.minimum(level, LOW_SNR)))  # lambda snr / sigma^2
    epsilon_error = sum_event((predicted.epsilon - epsilon) ** 2)
    x0_error = sum_event((predicted.x0 - x0) ** 2)
    return jnp.where(low, x0_factor, epsilon_factor) * jnp.where(low, x0_error, epsilon_error)


# A log-SNR. At -6 alpha / sigma = 0.05, and the division by it costs eps 1.3 of float32's 7.2 digits.
LOW_SNR = -6.0


# Training objective (denoiser, sde, x0, t, epsilon, keys (batch,), weighting) -> losses (batch,).
Objective = Callable[..., jax.Array]


def denoising_objective() -> Objective:
    """Return the objective `denoising`."""
    return lambda denoiser, sde, x0, t, epsilon, keys, weighting: denoising(denoiser, sde, x0, t, epsilon, weighting)


def implicit_objective(exact: bool = False, num_probes: int = 1) -> Objective:
    """Return the objective 2 lambda(t) `implicit` at x_t, whose expectation is that of `denoising` minus a constant.

    Args:
      exact: Whether the trace is exact instead of Hutchinson's estimate.
      num_probes: Number of Hutchinson probes per example.

    Raises:
      UserError: if num_probes is not an integer of at least 1.
    """
    _check_probes("implicit", "num_probes", num_probes)

    def loss(score, x, keys):
        return implicit(score, x, None if exact else keys, num_probes)

    return partial(_at_noise_level, loss)


def sliced_objective(num_projections: int = 1, variance_reduced: bool = True) -> Objective:
    """Return the objective 2 lambda(t) `sliced` at x_t, whose expectation is that of `denoising` minus a constant.

    Args:
      num_projections: Number of directions to average over.
      variance_reduced: See `sliced`.

    Raises:
      UserError: if num_projections is not an integer of at least 1.
    """
    _check_probes("sliced", "num_projections", num_projections)

    def loss(score, x, keys):
        return sliced(score, x, keys, num_projections, variance_reduced)

    return partial(_at_noise_level, loss)


def explicit_objective(truth: Denoiser) -> Objective:
    """Return the objective 2 lambda(t) `explicit` at x_t.

    Args:
      truth: Exact denoiser of the data.
    """

    def objective(denoiser, sde, x0, t, epsilon, keys, weighting):
        def loss(score, x, keys):
            return explicit(score, lambda x: score_fn(truth, sde)(x, t), x)

        return _at_noise_level(loss, denoiser, sde, x0, t, epsilon, keys, weighting)

    return objective


def _at_noise_level(loss, denoiser, sde, x0, t, epsilon, keys, weighting):
    """Return 2 lambda(t) times a loss (score, x_t, keys) -> (batch,) that has the factor 1/2, as an objective does.

    Up to a constant the expectation is that of lambda(t) |s(x_t, t) - grad log p|^2.
    """
    x_t = add_noise(sde, x0, epsilon, t)
    lambda_t = get_weighting(weighting)(score_scales(sde, t))
    return lambda_t * 2 * loss(lambda x: score_fn(denoiser, sde)(x, t), x_t, keys)


def _check_probes(objective: str, name: str, number: int) -> None:
    if not (isinstance(number, int) and number >= 1):
        raise UserError(f"{objective}: expected {name} to be an integer of at least 1, got {number}", name)


OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "denoising": denoising_objective,
    "implicit": implicit_objective,
    "sliced": sliced_objective,
    "explicit": explicit_objective,  # only for data whose score is known
}
