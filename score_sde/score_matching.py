"""Training objectives: explicit, implicit, sliced and denoising score matching.

All four have the same gradient in the parameters, up to Monte-Carlo error: for a fixed density p their expectations
differ by constants (Hyvärinen 2005; Vincent 2011; Song, Garg et al. 2019).
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from score_sde.errors import UserError
from score_sde.parameterization import Denoiser, score_fn
from score_sde.randomness import fold_each, make_draw, noise, sample_keys, signs
from score_sde.sde import SDE, log_snr, marginal, sum_event
from score_sde.time_samplers import TIME_SAMPLERS
from score_sde.weightings import WEIGHTINGS, Weighting, epsilon_units, get_weighting, score_units, x0_units

__all__ = ["OBJECTIVES", "TIME_SAMPLERS", "WEIGHTINGS", "denoising", "explicit", "implicit", "make_draw", "sliced"]

Score = Callable[[jax.Array], jax.Array]  # x (batch, *event) -> score; row i is a function of row i alone


def explicit(score_fn: Score, true_score_fn: Score, x: jax.Array) -> jax.Array:
    """|s(x) - grad log p(x)|^2 / 2 of each example, (batch,) (Hyvärinen 2005, eq. 2)."""
    return 0.5 * sum_event((score_fn(x) - true_score_fn(x)) ** 2)


def implicit(score_fn: Score, x: jax.Array, key: jax.Array | None = None, num_probes: int = 1) -> jax.Array:
    """tr(grad s(x)) + |s(x)|^2 / 2 of each example, (batch,) (Hyvärinen 2005, Theorem 1).

    Its mean over p is that of `explicit` less E|grad log p|^2 / 2.

    Args:
      score_fn: x -> score.
      x: (batch, *event).
      key: None for the exact trace, a pass through the network for each dimension; otherwise one key, or one a sample,
        for Hutchinson's estimate with random signs.
      num_probes: of that estimate.
    """
    if key is None:
        return _exact_trace(score_fn, x) + 0.5 * sum_event(score_fn(x) ** 2)
    score, products = _project(score_fn, x, key, num_probes, signs)
    return jnp.mean(products, axis=0) + 0.5 * sum_event(score**2)


def sliced(
    score_fn: Score, x: jax.Array, key: jax.Array, num_projections: int = 1, variance_reduced: bool = True
) -> jax.Array:
    """v^T (grad s(x)) v + (v^T s(x))^2 / 2 with v ~ N(0, I), (batch,) (Song, Garg et al. 2019, eq. 8).

    Args:
      score_fn: x -> score.
      x: (batch, *event).
      key: one key, or one a sample.
      num_projections: the number of v that are averaged over.
      variance_reduced: |s(x)|^2 / 2, its mean over v, in place of the second term (their SSM-VR).
    """
    score, products, projected = _project(score_fn, x, key, num_projections, noise, with_projected=True)
    square = sum_event(score**2) if variance_reduced else jnp.mean(projected**2, axis=0)
    return jnp.mean(products, axis=0) + 0.5 * square


def _exact_trace(score_fn: Score, x: jax.Array) -> jax.Array:
    """The trace of each example's Jacobian, by one forward derivative a dimension."""
    dimension = x[0].size

    def add(n, total):
        direction = jnp.zeros((dimension,), x.dtype).at[n].set(1.0).reshape(x.shape[1:])
        derivative = jax.jvp(score_fn, (x,), (jnp.broadcast_to(direction, x.shape),))[1]
        return total + sum_event(derivative * direction[None])

    return jax.lax.fori_loop(0, dimension, add, jnp.zeros(x.shape[:1], x.dtype))


def _project(score_fn, x, key, num_probes, draw, with_projected=False):
    """The score (batch, *event), v^T (grad s) v (num_probes, batch) and, if asked for, v^T s (num_probes, batch)."""
    keys = sample_keys(key, x.shape[0])

    def probe(n):
        v = draw(fold_each(keys, n), x)
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
    """The denoising score matching loss of each example (Vincent 2011; Song et al. 2021, eq. 7).

    The squared error of the score, |s(x_t, t) - grad log p(x_t | x0)|^2 = |eps_hat - eps|^2 / sigma^2, weighted. Where
    the SNR is below `LOW_SNR`, it is taken of x0: |x0_hat - x0|^2 = |eps_hat - eps|^2 / snr, which keeps its digits
    down to snr = 0 for every network that can start from there.

    Args:
      denoiser: (x, t) -> Prediction.
      sde: the forward process.
      x0: (batch, *event) data.
      t: (batch,) times.
      epsilon: the noise, of the shape of x0.
      weighting: a key of `WEIGHTINGS`, or what one of its functions makes.

    Returns:
      (batch,) losses, summed over the event.
    """
    weighting = get_weighting(weighting)
    predicted = denoiser(marginal(sde, x0, epsilon, t), t)
    level = log_snr(sde, t)
    low = level < LOW_SNR
    weight = jnp.where(
        low,
        weighting(x0_units(sde, t, jnp.minimum(level, LOW_SNR))),
        weighting(epsilon_units(sde, t, jnp.maximum(level, LOW_SNR))),
    )
    return weight * jnp.where(low, sum_event((predicted.x0 - x0) ** 2), sum_event((predicted.epsilon - epsilon) ** 2))


LOW_SNR = -6.0  # log-SNR; there alpha / sigma = 0.05 and eps has lost 1.3 of float32's 7.2 digits to the division by it


# An objective of a training step: (denoiser, sde, x0, t, epsilon, keys (batch,), weighting) -> (batch,) losses.
Objective = Callable[..., jax.Array]


def denoising_objective() -> Objective:
    """`denoising`."""
    return lambda denoiser, sde, x0, t, epsilon, keys, weighting: denoising(denoiser, sde, x0, t, epsilon, weighting)


def implicit_objective(exact: bool = False, num_probes: int = 1) -> Objective:
    """Twice `implicit` at x_t, weighted as the score error is: `denoising` less a constant, in the mean."""
    _check_probes("implicit", "num_probes", num_probes)

    def loss(score, x, keys):
        return implicit(score, x, None if exact else keys, num_probes)

    return partial(_at_noise_level, loss)


def sliced_objective(num_projections: int = 1, variance_reduced: bool = True) -> Objective:
    """Twice `sliced` at x_t, weighted as the score error is: `denoising` less a constant, in the mean."""
    _check_probes("sliced", "num_projections", num_projections)

    def loss(score, x, keys):
        return sliced(score, x, keys, num_projections, variance_reduced)

    return partial(_at_noise_level, loss)


def explicit_objective(truth: Denoiser) -> Objective:
    """Twice `explicit` at x_t against the exact denoiser of the data, weighted as the score error is."""

    def objective(denoiser, sde, x0, t, epsilon, keys, weighting):
        def loss(score, x, keys):
            return explicit(score, lambda x: score_fn(truth, sde)(x, t), x)

        return _at_noise_level(loss, denoiser, sde, x0, t, epsilon, keys, weighting)

    return objective


def _at_noise_level(loss, denoiser, sde, x0, t, epsilon, keys, weighting):
    """The losses at level t: (score, x_t, keys) -> (batch,), which halve the score error, in the loss' place."""
    x_t = marginal(sde, x0, epsilon, t)
    weight = get_weighting(weighting)(score_units(sde, t))
    return weight * 2 * loss(lambda x: score_fn(denoiser, sde)(x, t), x_t, keys)


def _check_probes(objective: str, name: str, number: int) -> None:
    if not (isinstance(number, int) and number >= 1):
        raise UserError(
            f"{objective}: {name} must be an integer of at least 1, got {number} "
            f"(set --config.loss.objective_kwargs.{name})"
        )


OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "denoising": denoising_objective,
    "implicit": implicit_objective,
    "sliced": sliced_objective,
    "explicit": explicit_objective,  # only where the data's score is known; experiment.py gives the truth
}
