"""Weighted particles: exact samples of guided, tempered, combined and conditioned models (Feynman-Kac).

The target at time t is

    q_t(x) ~ prod_i p_i,t(x)^w_i exp(log_potential(x, t))

for the marginals p_i,t of models of one forward process. Classifier-free guidance and autoguidance are w and 1 - w,
annealing is p^beta, a product of models has several exponents. A potential is log p(y | x) of a measurement or a class,
or a reward. The reverse SDE with eps = sum_i w_i eps_i does not sample q_t by itself. Its samples are corrected by the
weights W with

    d log W = (|sum_i w_i eps_i|^2 - sum_i w_i |eps_i|^2) / 2 d log-SNR + (1 - sum_i w_i) d log alpha^dim

which follow from the Fokker-Planck equations of the p_i,t, with any amount of noise. Potentials act as in twisted
sequential Monte Carlo (Wu et al. 2023, Algorithm 1): their gradient shifts the score of the proposal, and the weights
include the ratio of the transition densities. For a single model with exponent 1 they are then exact for any step size.
Particles are resampled where the effective sample size is small. Samples are exact in the limit of many steps and
particles.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from score_sde.conditioned import Conditioned, conditioned, count_evaluations
from score_sde.errors import UserError
from score_sde.guidance import time_with_signal, together
from score_sde.parameterization import Denoiser, Prediction, shift_x0
from score_sde.randomness import fold_each, noise, sample_keys
from score_sde.sde import NO_SIGNAL, SDE, lift, log_snr, sum_event
from score_sde.solvers import Solution, Solver, check_one_step, check_times
from score_sde.solvers.base import check_finite, ends_at_data
from score_sde.solvers.exponential import combine
from score_sde.thresholding import Threshold, none

RESAMPLING = 2**31 - 1  # folded into the key of a population's first row, for resampling; no step has this number

# (x (batch, *event), t, x0 = E[x0 | x]) -> (batch,) in nats. At the end of the grid it is the potential of the target.
LogPotential = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


class Evaluation(NamedTuple):
    """A target at (x, t)."""

    pair: Prediction  # of the proposal: the composed pair, with the gradient of the potential
    composed: Prediction  # with eps = sum_i w_i eps_i
    rate: jax.Array  # (batch,) d log W / d log-SNR of the composition
    log_potential: jax.Array  # (batch,)


class Target(NamedTuple):
    """A distribution that weighted particles sample."""

    evaluate: Callable[[jax.Array, ArrayLike], Evaluation]  # (x, t) -> Evaluation
    total: float  # sum_i w_i
    tilted: bool = False  # whether there is a potential


def product(sde: SDE, denoisers: Sequence[Denoiser] | Callable, exponents: Sequence[float]) -> Target:
    """Return the target prod_i p_i^w_i.

    Args:
      sde: Forward process.
      denoisers: Denoisers of the p_i, or a function (x, t) -> sequence of their pairs.
      exponents: Exponents w_i, whose sum is positive; (w, 1 - w) is guidance of scale w.

    Raises:
      UserError: if the sum of the exponents is not positive.
    """
    total = round(math.fsum(exponents), 12)  # of (w, 1 - w) it is 1
    if not total > 0:
        raise UserError(f"product: expected exponents with a positive sum, got {tuple(exponents)}", "exponents")
    if not callable(denoisers) and len(denoisers) != len(exponents):
        raise UserError(f"product: got {len(denoisers)} denoisers and {len(exponents)} exponents", "exponents")

    def evaluate(x, t, predict):
        pairs = predict(x, t)
        if isinstance(pairs, Prediction):
            raise UserError("product: expected a sequence of denoisers, got one", "denoisers")
        epsilons = [pair.epsilon for pair in pairs]
        x0 = combine(exponents, [pair.x0 for pair in pairs])
        if total != 1.0:
            x0 = x0 + (1 - total) * x / lift(sde.alpha(t), x)
        pair = pairs[0]._replace(x0=x0, epsilon=combine(exponents, epsilons))
        rate = log_weight_rate(epsilons, exponents)
        return Evaluation(pair, pair, rate, jnp.zeros_like(rate))

    if callable(denoisers):
        predict = denoisers
    else:  # a model with the exponent 0 is not evaluated
        kept = [(denoiser, w) for denoiser, w in zip(denoisers, exponents, strict=True) if w != 0]
        predict, exponents = together(*(denoiser for denoiser, _ in kept)), [w for _, w in kept]
    return Target(conditioned(evaluate, predict), total)


def tilted(
    sde: SDE,
    target: Target,
    log_potential: LogPotential,
    gradient: bool = True,
    threshold: Threshold = none(),  # noqa: B008
) -> Target:
    """Return the target q exp(log_potential), for a measurement, a class or a reward.

    Any potential at t > t_min gives the same target. One near log E[exp(potential of x0) | x_t] keeps the weights even.

    Args:
      sde: Forward process.
      target: Target q, such as `product(sde, [denoiser], [1.0])`.
      log_potential: Potential, differentiable in x and x0 if there is a gradient.
      gradient: Whether the gradient of the potential shifts the proposal's score (Wu et al. 2023); without it particles
        are only selected (Singhal et al. 2025, "Feynman-Kac steering").
      threshold: Threshold of the x0 that the gradient has shifted. It changes the weights but not the target.
    """

    def evaluate(x, t, of_target, log_potential):
        # At alpha = 0, x0 has no gradient in x. A time shortly before it serves.
        t = time_with_signal(sde, jnp.asarray(t, x.dtype))

        def potential(x):
            at_x = of_target(x, t)
            value = log_potential(x, t, at_x.composed.x0)
            return jnp.sum(value), at_x._replace(log_potential=at_x.log_potential + value)

        if not gradient:
            return potential(x)[1]
        shift, at_x = jax.grad(potential, has_aux=True)(x)
        shifted = shift_x0(at_x.pair, lift(sde.sigma(t) ** 2 / sde.alpha(t), x) * shift, t, sde)
        return at_x._replace(pair=threshold(lambda x, t: shifted, sde)(x, t))

    def evaluations(t):
        own = count_evaluations(log_potential, t) if isinstance(log_potential, Conditioned) else 0
        return count_evaluations(target.evaluate, t) + own

    joined = conditioned(evaluate, target.evaluate, log_potential, evaluations=evaluations)
    return Target(joined, target.total, tilted=True)


def log_weight_rate(epsilons: Sequence[jax.Array], exponents: Sequence[float]) -> jax.Array:
    """Return (|sum_i w_i eps_i|^2 - sum_i w_i |eps_i|^2) / 2, (batch,), as squares of differences, for precision."""
    if len(exponents) == 1:  # exactly 0 for the exponent 1
        return 0.5 * (exponents[0] - 1) * exponents[0] * sum_event(epsilons[0] ** 2)
    mean = combine(exponents, epsilons)
    spread = sum(w * sum_event((epsilon - mean) ** 2) for w, epsilon in zip(exponents, epsilons, strict=True))
    return 0.5 * ((sum(exponents) - 1) * sum_event(mean**2) - spread)


def log_weight_increment(
    epsilons: Sequence[jax.Array], weights: Sequence[float], log_snr: ArrayLike, log_snr_next: ArrayLike
) -> jax.Array:
    """Return the change of log W, (batch,), of a step with the exponents `weights`, without the term in alpha."""
    return log_weight_rate(epsilons, weights) * (jnp.asarray(log_snr_next) - log_snr)


def effective_sample_size(log_weights: jax.Array) -> jax.Array:
    """Return (sum W)^2 / sum W^2 over the last axis."""
    return jnp.exp(2 * jax.nn.logsumexp(log_weights, -1) - jax.nn.logsumexp(2 * log_weights, -1))


def systematic_resample(key: jax.Array, log_weights: jax.Array) -> jax.Array:
    """Return the indices of a systematic resample, (n,). Index i occurs n W_i times on average, rounded up or down.

    Args:
      key: PRNG key.
      log_weights: Log-weights, (n,), of any scale.
    """
    n = len(log_weights)
    cumulative = jnp.cumsum(jax.nn.softmax(log_weights))
    positions = (jnp.arange(n) + jax.random.uniform(key, dtype=log_weights.dtype)) / n
    return jnp.minimum(jnp.searchsorted(cumulative, positions * cumulative[-1], side="right"), n - 1)


def solve_weighted(
    solver: Solver,
    sde: SDE,
    target: Target,
    x: jax.Array,
    times: jax.Array,
    key: jax.Array,
    num_particles: int,
    resample_below: float = 0.5,
    denoise: bool = False,
) -> Solution:
    """Run a stochastic solver on weighted particles, from the prior at times[0] down to times[-1].

    num_particles consecutive rows of x are a population, which does not depend on the others.

    Args:
      solver: Stochastic solver, see `check_weighted`.
      sde: Forward process.
      target: Target, from `product` or `tilted`.
      x: Samples from the prior at times[0], (populations * num_particles, *event).
      times: Descending times, see `solve`.
      key: PRNG key, folded with the row, or one key per row.
      num_particles: Particles of a population.
      resample_below: Fraction of num_particles. A population is resampled when its effective sample size falls below
        it; 0 disables resampling.
      denoise: Whether to replace the last x by E[x0 | x].

    Returns:
      Solution with the rows' log_weights, the populations' log_normalizer, which estimates log of the integral of
      prod_i p_i^w_i exp(log_potential), and the effective sample size before the resampling of every step.

    Raises:
      UserError: if `check_weighted` rejects the solver, the times have no step before 0, or the number of rows is not a
        multiple of num_particles.
    """
    check_times(times, sde, solver.requires_nonzero_alpha or target.total != 1.0)
    check_weighted(solver, target.tilted)
    if num_particles < 1 or len(x) % num_particles:
        raise UserError(f"solve_weighted: expected a multiple of {num_particles} rows, got {len(x)}", "num_particles")
    to_data = ends_at_data(times, sde)
    if len(times) - to_data < 2:
        raise UserError("solve_weighted: expected a step before the one to 0, got none", "num_steps=2")
    times = jnp.asarray(times, x.dtype)[: len(times) - to_data]
    keys, dimension = sample_keys(key, len(x)), x[0].size
    populations = (-1, num_particles)
    population_keys = fold_each(keys[::num_particles], RESAMPLING)
    reused = []  # whether the solver's first call is at x, where the target is already known

    def log_alpha(t):
        return jnp.log(sde.alpha(t)) if target.total != 1.0 else 0.0

    def composition(before, after, t, t_next):
        """Return the change of log W by the trapezoidal rule; from alpha = 0 the rate is proportional to the SNR."""
        start = log_snr(sde, t) <= NO_SIGNAL
        width = log_snr(sde, t_next) - log_snr(sde, jnp.where(start, t_next, t))
        return jnp.where(start, after.rate, 0.5 * (before.rate + after.rate) * width)

    def advance(carry, interval):
        state, before, log_weights, nonfinite_at = carry
        n, t, t_next = interval
        rngs = fold_each(keys, n)

        def step(known: Prediction, rng):
            def denoiser(y, s):
                reused.append(y is state.x and s is t)
                return known if reused[-1] else target.evaluate(y, s).pair

            return solver.step(sde, denoiser, state, t, t_next, rng)

        rngs = noise(rngs, state.x) if target.tilted else rngs
        moved = step(before.pair, rngs)
        if target.tilted:
            log_weights = log_weights + _log_density_ratio(step, before, moved.x, rngs)
        state = moved
        after = target.evaluate(state.x, t_next)
        log_weights += composition(before, after, t, t_next)
        log_weights += after.log_potential - before.log_potential
        log_weights += (1 - target.total) * dimension * (log_alpha(t_next) - log_alpha(t))

        size = effective_sample_size(log_weights.reshape(populations))
        (state, after), log_weights = _resample(
            fold_each(population_keys, n), (state, after), log_weights, size < resample_below * num_particles
        )
        first = jnp.isnan(nonfinite_at) & ~jnp.all(jnp.isfinite(log_weights) & jnp.isfinite(sum_event(state.x)))
        return (state, after, log_weights, jnp.where(first, t, nonfinite_at)), size

    x = x / jnp.sqrt(target.total)  # q at t_max is a power of the normal prior
    start = target.evaluate(x, times[0])
    variance = 2 * jnp.pi * sde.sigma(times[0]) ** 2
    prior = 0.5 * dimension * ((1 - target.total) * jnp.log(variance) - jnp.log(target.total))
    carry = solver.init(x), start, prior + start.log_potential, jnp.full((), jnp.nan, x.dtype)
    intervals = jnp.arange(len(times) - 1), times[:-1], times[1:]
    (state, last, log_weights, nonfinite_at), sizes = jax.lax.scan(advance, carry, intervals)
    calls = (len(times) - 1) * (solver.nfe_per_step + (not all(reused[:1]))) + 1
    cost = int(count_evaluations(target.evaluate, np.zeros(1))[0])
    solution = Solution(
        last.composed.x0 if denoise or to_data else state.x,
        calls * cost,
        None,
        nonfinite_at,
        log_weights,
        jax.nn.logsumexp(log_weights.reshape(populations), axis=1) - jnp.log(num_particles),
        sizes,
    )
    if not isinstance(nonfinite_at, jax.core.Tracer):
        check_finite(solution)
    return solution


def check_weighted(solver: Solver, tilted: bool) -> None:
    """Raise UserError unless `solve_weighted` supports the solver, for a target with or without a potential."""
    if solver.jumps or not solver.reverse_sde:
        raise UserError(
            "particles: the weights are for the reverse SDE, which flow_map_steps, Langevin dynamics and s_noise other "
            "than 1 don't follow",
            "solver=exponential_sde",
        )
    if not solver.stochastic:
        raise UserError(
            "particles: expected a stochastic solver, because only noise separates the copies of a resampled particle; "
            "exponential_sde, ancestral and ddim with eta=1 draw noise",
            "solver=exponential_sde",
        )
    if not tilted:
        return
    check_one_step(solver, "particles with a potential")
    if solver.nfe_per_step != 1:
        raise UserError(
            "particles: a potential requires a solver whose step is normal, with one evaluation; exponential_sde, "
            "ancestral and ddim with eta=1 have this form",
            "solver=exponential_sde",
        )


def _log_density_ratio(step: Callable, at_x: Evaluation, proposed: jax.Array, z: jax.Array) -> jax.Array:
    """Return log N(x'; m, s^2) - log N(x'; m', s^2) of a step x' = m' + s z, m with the composed pair, (batch,)."""
    zero = jnp.zeros_like(z)
    shift = proposed - step(at_x.composed, z).x
    std = step(at_x.composed, zero + 1).x - step(at_x.composed, zero).x
    shift = shift / jnp.where(std == 0, jnp.inf, std)
    return -sum_event(shift * z + 0.5 * shift**2)


def _resample(keys: jax.Array, rows, log_weights: jax.Array, chosen: jax.Array):
    """Resample the `chosen` populations, (populations,), and set their weights to the mean weight."""
    grouped = log_weights.reshape(len(keys), -1)
    count = grouped.shape[1]
    resampled = jnp.where(chosen[:, None], jax.vmap(systematic_resample)(keys, grouped), jnp.arange(count))
    mean = jax.nn.logsumexp(grouped, axis=1, keepdims=True) - jnp.log(count)
    indices = (resampled + count * jnp.arange(len(keys))[:, None]).reshape(-1)
    batch = len(log_weights)
    gathered = jax.tree.map(lambda leaf: leaf[indices] if jnp.shape(leaf)[:1] == (batch,) else leaf, rows)
    return gathered, jnp.where(chosen[:, None], mean, grouped).reshape(-1)
