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
include the ratio of the transition densities. For a single model with exponent 1 they are then exact for the solver's
own chain, with any number of steps; this chain tends to the model as the number of steps grows. Particles are resampled
where the effective sample size is small. Samples are exact in the limit of many steps and particles.

If the exponents don't sum to 1, the weights include a term that grows as alpha falls, and the error of a first-order
solver in `log_normalizer` is large. Use `stochastic_runge_kutta` for them.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

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

CLIPPED = 0.05  # change of x0 by a threshold that is more than an error of the network
RESAMPLING = 2**31 - 1  # folded into the key of a population's first row, for resampling; no step has this number

# (x (batch, *event), t, x0 = E[x0 | x]) -> (batch,) in nats. At the end of the grid it is the potential of the target.
LogPotential = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


class Evaluation(NamedTuple):
    """A target at (x, t)."""

    pair: Prediction  # of the proposal: the composed pair, with the gradient of the potential
    composed: Prediction  # with eps = sum_i w_i eps_i
    rate: jax.Array  # (batch,) d log W / d log-SNR of the composition
    log_potential: jax.Array  # (batch,)
    clipped: jax.Array  # (batch,) fraction of components whose x0 is beyond the range of a threshold


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
      exponents: Exponents w_i with a positive sum; (w, 1 - w) is guidance of scale w. For another sum than 1 use
        `stochastic_runge_kutta`: first-order solvers need many steps for `log_normalizer`.

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
        return Evaluation(pair, pair, rate, jnp.zeros_like(rate), jnp.zeros_like(rate))

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

    Only the potential at the last time decides the target, in the limit of many particles. With few particles the ones
    before it matter: a potential near log E[exp(potential of x0) | x_t] keeps the weights even, while a step of many
    nats in x0 biases `log_normalizer`. Use -inf for a constraint on x0, not a large negative number: it gives the
    weight 0, and resampling keeps the particle, because it may meet the constraint later.

    Args:
      sde: Forward process.
      target: Target q, such as `product(sde, [denoiser], [1.0])`.
      log_potential: Potential, differentiable in x and x0 if there is a gradient. Its gradient is ignored at -inf. Pass
        `gradient=False` if it is unbounded, as for log(x0), because large shifts also bias `log_normalizer`.
      gradient: Whether the gradient of the potential shifts the proposal's score (Wu et al. 2023); without it particles
        are only selected (Singhal et al. 2025, "Feynman-Kac steering").
      threshold: Threshold of the x0 that the gradient has shifted. It changes the weights but not the target, as long
        as the target stays within its range, [-1, 1] for `clip`. Particles can't reach the rest, and the effective
        sample size doesn't show it. `solve_weighted` warns about x0 of the target beyond the range, outside `jax.jit`.
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
        shift = jnp.where(lift(at_x.log_potential == -jnp.inf, x), 0.0, shift)  # e.g. NaN, of log(0)
        shifted = shift_x0(at_x.pair, lift(sde.sigma(t) ** 2 / sde.alpha(t), x) * shift, t, sde)
        beyond = jnp.abs(threshold(lambda x, t: at_x.composed, sde)(x, t).x0 - at_x.composed.x0) > CLIPPED
        clipped = at_x.clipped + sum_event(beyond) / x[0].size
        return at_x._replace(pair=threshold(lambda x, t: shifted, sde)(x, t), clipped=clipped)

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
    """Compute (sum W)^2 / sum W^2 over the last axis, in float32 at least; 0 if all weights are 0."""
    log_weights = _at_least_float32(log_weights)
    size = jnp.exp(2 * jax.nn.logsumexp(log_weights, -1) - jax.nn.logsumexp(2 * log_weights, -1))
    return jnp.where(jnp.all(log_weights == -jnp.inf, -1), 0.0, size)


def systematic_resample(key: jax.Array, log_weights: jax.Array) -> jax.Array:
    """Draw the indices of a systematic resample, (n,). Index i occurs n W_i times on average, rounded up or down.

    Particles with weight 0 keep their places, and the others are resampled among themselves: index i then occurs m W_i
    times, with m positive weights. So a particle that violates a constraint isn't lost before the last time.

    Args:
      key: PRNG key.
      log_weights: Log-weights, (n,), of any scale. They are summed in float32 at least.
    """
    log_weights = _at_least_float32(log_weights)
    n, positive = len(log_weights), log_weights > -jnp.inf
    cumulative = jnp.cumsum(jax.nn.softmax(log_weights))
    rank = jnp.cumsum(positive) - 1
    positions = (rank + jax.random.uniform(key, dtype=log_weights.dtype)) / (rank[-1] + 1)
    # Rounding may put the last position after the last particle with a positive weight.
    last = jnp.max(jnp.where(positive, jnp.arange(n), 0))
    drawn = jnp.minimum(jnp.searchsorted(cumulative, positions * cumulative[-1], side="right"), last)
    return jnp.where(positive, drawn, jnp.arange(n))


def _at_least_float32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


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
      resample_below: Fraction of the particles with a positive weight. A population is resampled when its effective
        sample size falls below it; 0 disables resampling.
      denoise: Whether to replace the last x by E[x0 | x].

    Returns:
      Solution with the rows' log_weights, the populations' log_normalizer, which estimates log of the integral of
      prod_i p_i^w_i exp(log_potential), and the effective sample size before the resampling of every step. If no
      particle of a population meets a constraint at the end, its log_normalizer is -inf.

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
        state, before, base, nonfinite_at = carry  # W = base exp(log_potential), so that a weight of 0 can recover
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
            base = base + _log_density_ratio(step, before, moved.x, rngs)
        state = moved
        after = target.evaluate(state.x, t_next)
        base += composition(before, after, t, t_next)
        base += (1 - target.total) * dimension * (log_alpha(t_next) - log_alpha(t))

        log_weights = (base + after.log_potential).reshape(populations)
        size, num_positive = effective_sample_size(log_weights), jnp.sum(log_weights > -jnp.inf, axis=1)
        chosen = size < resample_below * num_positive
        (state, after), base = _resample(fold_each(population_keys, n), (state, after), base, chosen)
        finite = jnp.isfinite(base) & (after.log_potential < jnp.inf) & jnp.isfinite(sum_event(state.x))
        first = jnp.isnan(nonfinite_at) & ~jnp.all(finite)
        clipped = jnp.where(log_snr(sde, t_next) > 0, jnp.mean(after.clipped), 0.0)
        return (state, after, base, jnp.where(first, t, nonfinite_at)), (size, clipped)

    x = x / jnp.sqrt(target.total)  # q at t_max is a power of the normal prior
    start = target.evaluate(x, times[0])
    variance = 2 * jnp.pi * sde.sigma(times[0]) ** 2
    prior = 0.5 * dimension * ((1 - target.total) * jnp.log(variance) - jnp.log(target.total))
    base = _at_least_float32(jnp.broadcast_to(prior, len(x)))
    carry = solver.init(x), start, base, jnp.full((), jnp.nan, x.dtype)
    intervals = jnp.arange(len(times) - 1), times[:-1], times[1:]
    (state, last, base, nonfinite_at), (sizes, clipped) = jax.lax.scan(advance, carry, intervals)
    log_weights = base + last.log_potential
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
        if (most := float(jnp.max(clipped))) > 0.01:
            warn_clipped(f"{most:.0%} of its components beyond it at one noise level")
    return solution


def warn_clipped(value: str) -> None:
    """Warn that a threshold may keep particles from a part of the target."""
    warnings.warn(
        f"particles: expected x0 of the target within the threshold's range, got {value}. Particles can't leave this "
        "range, and the effective sample size doesn't show it. Use threshold=none.",
        stacklevel=2,  # one place, so that a run shows it once
    )


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


def _resample(keys: jax.Array, rows: tuple[Any, Evaluation], base: jax.Array, chosen: jax.Array):
    """Resample the `chosen` populations, (populations,), and set their positive weights to the mean of these."""
    batch, count = len(base), len(base) // len(keys)
    grouped = (base + rows[1].log_potential).reshape(len(keys), count)
    positive = grouped > -jnp.inf
    resampled = jnp.where(chosen[:, None], jax.vmap(systematic_resample)(keys, grouped), jnp.arange(count))
    mean = jax.nn.logsumexp(grouped, axis=1) - jnp.log(jnp.sum(positive, axis=1))
    indices = (resampled + count * jnp.arange(len(keys))[:, None]).reshape(-1)
    rows = jax.tree.map(lambda leaf: leaf[indices] if jnp.shape(leaf)[:1] == (batch,) else leaf, rows)
    changed = (chosen[:, None] & positive).reshape(-1)
    return rows, jnp.where(changed, jnp.repeat(mean, count) - rows[1].log_potential, base)
