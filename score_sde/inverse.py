"""Inverse problems: sample x0 given y = A x0 + noise, with a denoiser as the prior.

A method replaces the denoiser, the solver, or both, which `solve` then uses. Each method approximates p(y | x_t), which
decides for which data it is exact. `benchmarks/inverse_problems.py` compares the methods with closed forms.

| method | approximation | replaces | exact for |
| --- | --- | --- | --- |
| replacement | enforces A x0 = y; the rest follows the prior | denoiser | components independent of y |
| repaint | as replacement, with repeated steps that harmonize the components | both | as replacement, less biased |
| dps | gradient step on the norm of y - A E[x0 | x_t] | solver | a posterior that is a single point |
| pigdm | p(y | x_t) = N(A E[x0 | x_t], r^2 A A^T + noise^2 I) | denoiser | data N(m, sigma_data^2 I) |
| ddrm | enforces y in singular directions where x_t is noisier than y | solver | as replacement; noise = eta = 0 |
| twisted | none; weights correct pigdm | both | any data, in the limit of many particles and steps |
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from score_sde import operators
from score_sde.conditioned import conditioned
from score_sde.errors import UserError, build
from score_sde.guidance import shift_score
from score_sde.operators import Operator, regularized_pinv
from score_sde.parameterization import Denoiser, shift_x0
from score_sde.particles import product, solve_weighted, tilted
from score_sde.randomness import fold_each, noise, sample_keys, split_rng
from score_sde.sde import SDE, add_noise, lift, sum_event
from score_sde.solvers import Solution, Solver, check_one_step, solve
from score_sde.solvers.base import OneStepState


class Problem(NamedTuple):
    """y = A x0 + noise z, z ~ N(0, I)."""

    operator: Operator
    y: jax.Array  # (batch, *measured)
    noise: float = 0.0  # standard deviation, on the data's scale


SolverAndDenoiser = tuple[Solver, Denoiser]


def replacement(solver: Solver, denoiser: Denoiser, sde: SDE, problem: Problem) -> SolverAndDenoiser:
    """Apply replacement: the predicted x0 becomes x0 + A^T (A A^T + noise^2)^-1 (y - A x0).

    Song et al. 2021, Appendix I.2, replace the observed part of x_t by alpha y + sigma z with new noise z in each step.
    Replacing x0 has the same effect for any solver: the observed part of x_t becomes alpha y + sigma z, with one z for
    the probability flow and new ones for the reverse SDE. Measurement noise only regularizes directions with small
    singular values.

    Args:
      solver: Base solver.
      denoiser: Denoiser of the prior.
      sde: Forward process.
      problem: Operator, measurement and noise.

    Returns:
      Pair (solver, denoiser) for `solve`.

    Raises:
      UserError: if the operator is not linear.
    """

    def replaced(x, t, denoiser, y):
        pair = denoiser(x, t)
        residual = y - problem.operator.forward(pair.x0)
        return shift_x0(pair, regularized_pinv(problem.operator, residual, 1.0, problem.noise), t, sde)

    return solver, conditioned(replaced, denoiser, problem.y)


def repaint(solver: Solver, denoiser: Denoiser, sde: SDE, problem: Problem, repeats: int = 5) -> SolverAndDenoiser:
    """Apply RePaint: `replacement` with steps that are repeated after forward steps (Lugmayr et al. 2022, Algorithm 1).

    Args:
      solver: Base solver, a one-step method.
      denoiser: Denoiser of the prior.
      sde: Forward process.
      problem: Operator, measurement and noise.
      repeats: Number of resampling steps, U of the paper; 1 is `replacement`. The jump length is one step.

    Returns:
      Pair (solver, denoiser) for `solve`.

    Raises:
      UserError: if the solver is a multistep method, or repeats is below 1.
    """
    _, replaced = replacement(solver, denoiser, sde, problem)
    return with_resampling(solver, repeats), replaced


def with_resampling(solver: Solver, repeats: int) -> Solver:
    """Return a solver that repeats each step, with a forward step q(x_t | x_t_next) before each repetition.

    Args:
      solver: Base solver, a one-step method.
      repeats: Number of times each step is taken.

    Raises:
      UserError: if the solver is a multistep method, or repeats is below 1.
    """
    check_one_step(solver, "repaint")
    if not (isinstance(repeats, int) and repeats >= 1):
        raise UserError(f"repaint: expected repeats >= 1, got {repeats}", "repeats")

    def step(sde, denoiser, state, t, t_next, rng):
        rngs = split_rng(rng, 2 * repeats - 1)
        state = solver.step(sde, denoiser, state, t, t_next, rngs[0])
        for n in range(1, repeats):  # q(x_t | x_t_next) = N(r x_t_next, std^2 I)
            r = sde.alpha(t) / sde.alpha(t_next)
            std = jnp.sqrt(sde.sigma(t) ** 2 - (r * sde.sigma(t_next)) ** 2)
            renoised = OneStepState(r * state.x + std * noise(rngs[2 * n - 1], state.x))
            state = solver.step(sde, denoiser, renoised, t, t_next, rngs[2 * n])
        return state

    return solver._replace(
        step=step, nfe_per_step=repeats * solver.nfe_per_step, stochastic=solver.stochastic or repeats > 1
    )


def dps(solver: Solver, denoiser: Denoiser, sde: SDE, problem: Problem, step_size: float = 1.0) -> SolverAndDenoiser:
    """Apply diffusion posterior sampling: a gradient step on |y - A E[x0 | x_t]| after each solver step.

        x_t_next <- x_t_next - zeta grad_x_t |y - A E[x0 | x_t]|        (Chung et al. 2023, Algorithm 1)

    zeta is `step_size` on the scale of a variance-preserving x_t, as in the authors' code, which is tuned for 1,000
    steps. The residual of a small image is smaller than a step of size 1, which would oscillate around y. Therefore
    zeta is at most Polyak's step size, |residual| / |gradient|^2, which reaches y for a linear denoiser.

    The method costs one extra evaluation and its gradient per step. It does not sample the posterior: it minimizes the
    residual and ignores the measurement noise.

    Args:
      solver: Base solver, a one-step method.
      denoiser: Denoiser of the prior.
      sde: Forward process.
      problem: Operator, measurement and noise.
      step_size: Largest step size zeta, on the scale of a variance-preserving x_t, positive.

    Returns:
      Pair (solver, denoiser) for `solve`.

    Raises:
      UserError: if the solver is a multistep method, which would undo the gradient step, or step_size is not positive.
    """
    check_one_step(solver, "dps")
    if not step_size > 0:
        raise UserError(f"dps: expected step_size > 0, got {step_size}", "step_size")

    def residual_norm(x, t):
        squares = sum_event((problem.y - problem.operator.forward(denoiser(x, t).x0)) ** 2)
        positive = squares > 0
        norm = jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1.0)), 0.0)
        return jnp.sum(norm), norm

    def step(sde, denoiser, state, t, t_next, rng):
        gradient, norm = jax.grad(residual_norm, has_aux=True)(state.x, t)
        vp_scale, vp_scale_next = (jnp.hypot(sde.alpha(time), sde.sigma(time)) for time in (t, t_next))
        squares = sum_event(gradient**2)
        polyak = norm / jnp.where(squares > 0, squares, 1.0)
        zeta = jnp.minimum(step_size * vp_scale**2, polyak) * vp_scale_next / vp_scale
        state = solver.step(sde, denoiser, state, t, t_next, rng)
        return state._replace(x=state.x - lift(zeta, gradient) * gradient)

    return solver._replace(step=step, nfe_per_step=solver.nfe_per_step + 1), denoiser


def pigdm(solver: Solver, denoiser: Denoiser, sde: SDE, problem: Problem, sigma_data: float = 1.0) -> SolverAndDenoiser:
    """Apply PiGDM: the score of p(y | x_t) = N(A E[x0 | x_t], r^2 A A^T + noise^2 I) is added (Song et al. 2023).

        (d E[x0 | x_t] / d x_t)^T A^T (r^2 A A^T + noise^2 I)^-1 (y - A E[x0 | x_t])

    r^2 is the variance of x0 given x_t for data of variance sigma_data^2, which the paper sets to 1.

    Args:
      solver: Base solver.
      denoiser: Denoiser of the prior.
      sde: Forward process.
      problem: Operator, measurement and noise.
      sigma_data: Standard deviation of the data, positive.

    Returns:
      Pair (solver, denoiser) for `solve`.

    Raises:
      UserError: if the operator is not linear, or sigma_data is not positive.
    """
    _check_sigma_data("pigdm", sigma_data)
    if problem.operator.transpose is None:
        regularized_pinv(problem.operator, problem.y, 1.0, 0.0)  # raises UserError

    def guided(x, t, denoiser, y):
        def term(x, t):
            r_squared = _posterior_variance(sde, t, sigma_data)
            x0, vjp = jax.vjp(lambda x: denoiser(x, t).x0, x)
            return vjp(regularized_pinv(problem.operator, y - problem.operator.forward(x0), r_squared, problem.noise))[
                0
            ]

        return shift_score(denoiser(x, t), term, x, t, sde)

    return solver, conditioned(guided, denoiser, problem.y)


def ddrm(
    solver: Solver, denoiser: Denoiser, sde: SDE, problem: Problem, eta: float = 0.85, eta_b: float = 1.0
) -> SolverAndDenoiser:
    """Apply DDRM, which treats each singular direction separately.

    Kawar et al. 2022, "Denoising Diffusion Restoration Models", Section 3.

    With x_t / alpha, whose noise is sigma = sigma_t_next / alpha_t_next, the direction i of the next x is normal with

        mean                                                    variance
        x0_i + sqrt(1 - eta^2) sigma eps_i                      eta^2 sigma^2                  if s_i = 0
        x0_i + sqrt(1 - eta^2) sigma (y_i - x0_i) / std_i       eta^2 sigma^2                  if sigma < std_i
        (1 - eta_b) x0_i + eta_b y_i                            sigma^2 - eta_b^2 std_i^2      if sigma >= std_i

    where y_i = (U^T y)_i / s_i has the standard deviation std_i = noise / s_i.

    Args:
      solver: Base solver, ignored.
      denoiser: Denoiser of the prior.
      sde: Forward process.
      problem: Operator, measurement and noise.
      eta: Fraction of new noise per step in directions where y is not less noisy than x, in [0, 1]. Positive values
        reduce the variance of the samples, the more the finer the grid; the paper uses 20 steps. With measurement noise
        no eta samples the posterior. At 0 the observed directions have no variance, because they are functions of y.
      eta_b: Weight of y in the mean where y is less noisy than x, in [0, 1].

    Returns:
      Pair (solver, denoiser) for `solve`.

    Raises:
      UserError: if the operator's SVD is not known, or eta or eta_b is out of range.
    """
    del solver
    svd = problem.operator.svd
    if svd is None:
        raise UserError("ddrm: expected an operator with a known SVD; method='pigdm' works without", "method=pigdm")
    if not (0 <= eta <= 1 and 0 <= eta_b <= 1):
        raise UserError(f"ddrm: expected 0 <= eta <= 1 and 0 <= eta_b <= 1, got {eta} and {eta_b}")
    observed = svd.singular > 0
    direction_std = np.where(observed, problem.noise / np.where(observed, svd.singular, 1.0), 0.0)

    def step(sde, denoiser, state, t, t_next, rng):
        x = state.x
        pair = denoiser(x, t)
        x0, epsilon = svd.vt(pair.x0), svd.vt(pair.epsilon)
        sigma, alpha = sde.sigma(t_next) / sde.alpha(t_next), sde.alpha(t_next)
        inverse = jnp.asarray(np.where(observed, 1 / np.where(observed, svd.singular, 1.0), 0.0), x.dtype)[None]
        measured, std = inverse * svd.ut(problem.y), jnp.asarray(direction_std, x.dtype)[None]
        kept = jnp.sqrt(1 - eta**2)
        unobserved_mean = x0 + kept * sigma * epsilon
        # This mean is used only for std > sigma; 1 instead of std = 0 keeps the unused values finite.
        noisier_mean = x0 + kept * sigma * (measured - x0) / jnp.where(std > sigma, std, 1.0)
        measured_mean = (1 - eta_b) * x0 + eta_b * measured
        is_observed, y_is_noisier = jnp.asarray(observed)[None], std > sigma
        mean = jnp.where(is_observed, jnp.where(y_is_noisier, noisier_mean, measured_mean), unobserved_mean)
        variance = jnp.where(is_observed & ~y_is_noisier, sigma**2 - (eta_b * std) ** 2, (eta * sigma) ** 2)
        z = svd.vt(noise(rng, x))
        return OneStepState(alpha * svd.v(mean + jnp.sqrt(jnp.maximum(variance, 0.0)) * z))

    return Solver(init=OneStepState, step=step, nfe_per_step=1, stochastic=True), denoiser


def measurement_potential(sde: SDE, problem: Problem, sigma_data: float = 1.0) -> Callable:
    """Return the potential (x, t, x0) -> log N(y; A x0, r^2 A A^T + noise^2 I) of `pigdm`, (batch,), for `particles`.

    r vanishes with sigma, so that at t_min it is log p(y | x0) up to r^2, the variance of y if noise = 0. An operator
    without a known SVD has r^2 I in place of r^2 A A^T.

    Args:
      sde: Forward process.
      problem: Operator, measurement and noise; its y has one row per row of x.
      sigma_data: Standard deviation of the data, positive.

    Raises:
      UserError: if sigma_data is not positive.
    """
    _check_sigma_data("twisted", sigma_data)
    svd = problem.operator.svd

    def log_potential(x, t, x0):
        residual, r_squared = problem.y - problem.operator.forward(x0), _posterior_variance(sde, t, sigma_data)
        if svd is None:
            variance = lift(r_squared + problem.noise**2, residual)
            return -0.5 * sum_event(residual**2 / variance + jnp.log(2 * jnp.pi * variance))
        observed = svd.singular > 0
        squares = jnp.asarray(np.where(observed, svd.singular, 1.0) ** 2, x.dtype)[None]
        spectrum = svd.ut(residual)
        variance = lift(r_squared, spectrum.real) * squares + problem.noise**2
        terms = jnp.abs(spectrum) ** 2 / variance + jnp.log(2 * jnp.pi * variance)
        return -0.5 * sum_event(jnp.where(observed[None], terms, 0.0))

    return log_potential


def _posterior_variance(sde: SDE, t: jax.Array, sigma_data: float) -> jax.Array:
    """Return r^2 = Var(x0 | x_t) of data with variance sigma_data^2, of the shape of t."""
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    return (sigma_data * sigma) ** 2 / (sigma**2 + (sigma_data * alpha) ** 2)


def _check_sigma_data(method: str, sigma_data: float) -> None:
    if not sigma_data > 0:
        raise UserError(f"{method}: expected sigma_data > 0, got {sigma_data}", "sigma_data")


INVERSE_METHODS = {"replacement": replacement, "repaint": repaint, "dps": dps, "pigdm": pigdm, "ddrm": ddrm}
TWISTED = "twisted"  # the method of `particles.solve_weighted` with `measurement_potential`


def apply_method(
    solver: Solver, denoiser: Denoiser, sde: SDE, problem: Problem, method: str = "pigdm", **kwargs: Any
) -> SolverAndDenoiser:
    """Return a solver and a denoiser with which `solve` samples p(x0 | y).

    Args:
      solver: Base solver; ignored by methods that define their own (ddrm).
      denoiser: Unconditional denoiser, of p(x0).
      sde: Forward process.
      problem: Operator, measurement and noise.
      method: Name of the method, a key of `INVERSE_METHODS`.
      **kwargs: Keyword arguments of the method.

    Raises:
      UserError: if the method or an argument is unknown, or if the method can't solve this problem.
    """
    table = {name: partial(function, solver, denoiser, sde, problem) for name, function in INVERSE_METHODS.items()}
    return build("method", table, method, kwargs)


def twisted(
    solver: Solver,
    sde: SDE,
    denoiser: Denoiser,
    x: jax.Array,
    times: jax.Array,
    problem: Problem,
    key: jax.Array,
    num_particles: int = 16,
    sigma_data: float = 1.0,
    denoise: bool = False,
) -> Solution:
    """Sample p(x0 | y) with weighted particles and PiGDM as the proposal (Wu et al. 2023, "Twisted Diffusion Sampler").

    Args:
      solver: Stochastic one-step solver with one evaluation per step.
      sde: Forward process.
      denoiser: Denoiser of the prior.
      x: Samples from the prior; num_particles consecutive rows are a population with one y.
      times: Descending times, see `solve`.
      problem: Operator, measurement and noise.
      key: PRNG key, see `solve`.
      num_particles: Particles of a population.
      sigma_data: Standard deviation of the data, see `pigdm`.
      denoise: Whether to denoise the last x, see `solve`.

    Returns:
      Solution with weights, see `particles.solve_weighted`.
    """
    target = tilted(sde, product(sde, [denoiser], [1.0]), measurement_potential(sde, problem, sigma_data))
    return solve_weighted(solver, sde, target, x, times, key, num_particles, denoise=denoise)


def solve_inverse_problem(
    solver: Solver,
    sde: SDE,
    denoiser: Denoiser,
    x: jax.Array,
    times: jax.Array,
    problem: Problem,
    key: jax.Array | None = None,
    method: str = "pigdm",
    trajectory: bool = False,
    denoise: bool = False,
    **kwargs: Any,
) -> Solution:
    """Sample approximately from p(x0 | y): `apply_method`, then `solve`, or weighted particles for "twisted".

    Args:
      solver: Base solver, see `apply_method`.
      sde: Forward process.
      denoiser: Denoiser of the prior.
      x: Samples from the prior at times[0], (batch, *event).
      times: Descending times, see `solve`.
      problem: Operator, measurement and noise; its y has one row per row of x.
      key: PRNG key, see `solve`.
      method: Name of the method, see `apply_method`, or "twisted" (see there), which has no trajectory.
      trajectory: Whether to return x at every time, see `solve`.
      denoise: Whether to denoise the last x, see `solve`.
      **kwargs: Keyword arguments of the method.

    Raises:
      UserError: if y has another shape than A x; see also `apply_method` and `solve`.
    """
    expected = jax.eval_shape(problem.operator.forward, x).shape
    if problem.y.shape != expected:
        raise UserError(f"y: expected shape {expected} for x of shape {x.shape}, got {problem.y.shape}")
    if method == TWISTED:
        if trajectory or key is None:
            raise UserError(
                f"twisted: expected a key and no trajectory, got key={key} and trajectory={trajectory}",
                "key",
                "trajectory",
            )
        table = {TWISTED: partial(twisted, solver, sde, denoiser, x, times, problem, key, denoise=denoise)}
        return build("method", table, TWISTED, kwargs)
    solver, denoiser = apply_method(solver, denoiser, sde, problem, method, **kwargs)
    return solve(solver, sde, denoiser, x, times, key, trajectory=trajectory, denoise=denoise)


def inpaint(solver, sde, denoiser, x, times, y, observed, noise: float = 0.0, **kwargs: Any) -> Solution:
    """Sample images given y (batch, *event) where the mask `observed` is 1; see `solve_inverse_problem`."""
    operator = operators.mask(observed, x.shape[1:])
    problem = Problem(operator, operator.forward(y), noise)
    return solve_inverse_problem(solver, sde, denoiser, x, times, problem, **kwargs)


def colorize(solver, sde, denoiser, x, times, y, noise: float = 0.0, **kwargs: Any) -> Solution:
    """Sample color images given grayscale images y (batch, height, width, 1); see `solve_inverse_problem`."""
    problem = Problem(operators.grayscale(x.shape[1:]), y, noise)
    return solve_inverse_problem(solver, sde, denoiser, x, times, problem, **kwargs)


def super_resolve(solver, sde, denoiser, x, times, y, factor: int, noise: float = 0.0, **kwargs: Any) -> Solution:
    """Sample images given their averages y over factor x factor pixels; see `solve_inverse_problem`."""
    problem = Problem(operators.pool(factor, x.shape[1:]), y, noise)
    return solve_inverse_problem(solver, sde, denoiser, x, times, problem, **kwargs)


def deblur(solver, sde, denoiser, x, times, y, kernel, noise: float = 0.0, **kwargs: Any) -> Solution:
    """Sample images given y, blurred circularly with a kernel (k, k); see `solve_inverse_problem`."""
    problem = Problem(operators.blur(kernel, x.shape[1:]), y, noise)
    return solve_inverse_problem(solver, sde, denoiser, x, times, problem, **kwargs)


def sdedit(
    solver: Solver,
    sde: SDE,
    denoiser: Denoiser,
    guide: jax.Array,
    times: jax.Array,
    key: jax.Array,
    strength: float = 0.5,
    trajectory: bool = False,
    denoise: bool = False,
) -> Solution:
    """Sample images near a guide by noising and denoising it (Meng et al. 2022, "SDEdit", Algorithm 1).

    Args:
      solver: Solver, see `solve`.
      sde: Forward process.
      denoiser: Denoiser (x, t) -> Prediction.
      guide: Guide images, (batch, *event).
      times: Full grid of descending times; only the last fraction `strength` of its steps is taken.
      key: PRNG key, or one key per sample, for the noise of the guide and of the solver.
      strength: Fraction of the steps in (0, 1]. It determines t_0 of the paper, the time of the noised guide.
      trajectory: Whether to return x at every time, see `solve`.
      denoise: Whether to denoise the last x, see `solve`.

    Raises:
      UserError: if strength is out of range; see also `solve`.
    """
    check_strength(strength)
    times_from_t0 = times[-max(round(strength * (len(times) - 1)), 1) - 1 :]
    keys = sample_keys(key, len(guide))
    x = add_noise(sde, guide, noise(fold_each(keys, len(times)), guide), jnp.asarray(times_from_t0[0], guide.dtype))
    return solve(solver, sde, denoiser, x, times_from_t0, keys, trajectory=trajectory, denoise=denoise)


def check_strength(strength: float) -> None:
    """Raise UserError unless 0 < strength <= 1."""
    if not 0 < strength <= 1:
        raise UserError(f"sdedit: expected 0 < strength <= 1, got {strength}", "strength")
