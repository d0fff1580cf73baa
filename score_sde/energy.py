"""Energy-based models and Langevin dynamics.

p(x) = exp(-E(x)) / Z. The score -grad E does not depend on the normalizing constant Z, so neither score matching nor
Langevin dynamics needs it. Densities are not probabilities, so p may exceed 1 and E may be negative.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from score_sde.randomness import fold_each, noise, sample_keys
from score_sde.sde import sum_event


def score_from_energy(energy_fn: Callable) -> Callable:
    """Return the score function (x, *rest) -> -grad_x E(x, *rest), of the shape of x.

    Args:
      energy_fn: Energy (x (batch, *event), *rest) -> (batch,); row i depends only on row i of x.
    """
    return jax.grad(lambda x, *rest: -jnp.sum(energy_fn(x, *rest)))


def langevin(score_fn: Callable, x: jax.Array, key: jax.Array, step_size: float, num_steps: int) -> jax.Array:
    """Run unadjusted Langevin dynamics, x <- x + (h/2) score(x) + sqrt(h) z (Song and Ermon 2019, eq. 4).

    The score is multiplied by h/2, as in Song and Ermon 2019. The step size of `solvers.langevin` is h/2, as in Song et
    al. 2021, Algorithms 4 and 5.

    The stationary distribution has an error of O(h). For N(0, s^2) its variance is s^2 / (1 - h / (4 s^2)).

    Args:
      score_fn: Score x -> grad log p(x).
      x: Initial states of the chains, (batch, *event).
      key: PRNG key, or one key per chain.
      step_size: Step size h.
      num_steps: Number of steps.

    Returns:
      Final states of the chains, (batch, *event).
    """
    keys = sample_keys(key, x.shape[0])

    def step(x, n):
        return x + 0.5 * step_size * score_fn(x) + jnp.sqrt(step_size) * noise(fold_each(keys, n), x), None

    return jax.lax.scan(step, x, jnp.arange(num_steps))[0]


class Mala(NamedTuple):
    """Result of `mala`."""

    x: jax.Array  # (batch, *event), final states of the chains
    acceptance: jax.Array  # (batch,), fraction of accepted proposals


def mala(energy_fn: Callable, x: jax.Array, key: jax.Array, step_size: float, num_steps: int) -> Mala:
    """Run the Metropolis-adjusted Langevin algorithm, whose stationary distribution is exactly exp(-E) / Z.

    The proposal q(x' | x) = N(x'; x - (h/2) grad E(x), h I) is accepted with probability
    min(1, exp(E(x) - E(x')) q(x | x') / q(x' | x)) (Roberts and Tweedie 1996, Section 1.4.2).

    Args:
      energy_fn: Energy x (batch, *event) -> (batch,).
      x: Initial states of the chains, (batch, *event).
      key: PRNG key, or one key per chain.
      step_size: Step size h.
      num_steps: Number of steps.
    """
    keys = sample_keys(key, x.shape[0])

    def evaluate(x):
        energy, vjp = jax.vjp(energy_fn, x)
        return energy, -vjp(jnp.ones_like(energy))[0]

    def log_proposal(to, start, score):
        return -sum_event((to - start - 0.5 * step_size * score) ** 2) / (2 * step_size)

    def step(carry, n):
        x, energy, score, accepted = carry
        step_keys = fold_each(keys, n)
        proposed = x + 0.5 * step_size * score + jnp.sqrt(step_size) * noise(fold_each(step_keys, 0), x)
        new_energy, new_score = evaluate(proposed)
        log_ratio = energy - new_energy + log_proposal(x, proposed, new_score) - log_proposal(proposed, x, score)
        uniform = jax.vmap(lambda key: jax.random.uniform(key, dtype=x.dtype))(fold_each(step_keys, 1))
        accept = jnp.log1p(-uniform) < log_ratio  # 1 - uniform is in (0, 1]

        def choose(new, old):
            return jnp.where(accept.reshape(accept.shape + (1,) * (new.ndim - 1)), new, old)

        chosen = choose(proposed, x), choose(new_energy, energy), choose(new_score, score)
        return (*chosen, accepted + accept), None

    energy, score = evaluate(x)
    start = (x, energy, score, jnp.zeros_like(energy))
    (x, _, _, accepted), _ = jax.lax.scan(step, start, jnp.arange(num_steps))
    return Mala(x, accepted / num_steps)


def annealed_langevin(
    score_fn: Callable,
    x: jax.Array,
    key: jax.Array,
    sigmas: Sequence[float],
    step_size: float = 2e-5,
    num_steps: int = 100,
) -> jax.Array:
    """Run annealed Langevin dynamics: one noise level after another, with h_i = step_size sigma_i^2 / sigma_L^2.

    Song and Ermon 2019, Algorithm 1. At high noise levels the modes merge, so that chains reach them in the right
    proportions. Langevin dynamics at only the last level mixes between modes far too slowly.

    Args:
      score_fn: Score (x, sigma) of the data with noise of standard deviation sigma; sigma is ().
      x: Initial states of the chains, (batch, *event).
      key: PRNG key, or one key per chain.
      sigmas: Decreasing noise levels, (L,).
      step_size: Step size at the last level.
      num_steps: Number of steps per level.
    """
    keys = sample_keys(key, x.shape[0])
    levels = jnp.asarray(sigmas, x.dtype)

    def level(x, numbered):
        i, sigma = numbered
        h = step_size * (sigma / levels[-1]) ** 2
        return langevin(lambda x: score_fn(x, sigma), x, fold_each(keys, i), h, num_steps), None

    return jax.lax.scan(level, x, (jnp.arange(len(levels)), levels))[0]
