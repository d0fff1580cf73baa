"""Inverse problems: x0 from y = A x0 + noise, with a denoiser for the prior.

A method changes the denoiser, the solver, or both, and the rest is `solve`. What each holds p(y | x_t) to be decides
where it is exact; `benchmarks/inverse_problems.py` measures it against closed forms.

| method | p(y | x_t) | changes | exact for |
| --- | --- | --- | --- |
| replacement | y holds of x0, the rest as if y said nothing more of it | denoiser | what y doesn't bear on |
| repaint | likewise, and each step is repeated so that the rest settles | both | the same, nearer the posterior |
| dps | the residual at E[x0 | x_t], a step down its gradient | solver | no prior: a point-like posterior |
| pigdm | N(A E[x0 | x_t], r^2 A A^T + noise^2), r^2 that of Gaussian data | denoiser | data N(m, sigma_data^2 I) |
| ddrm | y holds of each singular direction as soon as x_t is noisier | its own solver | the same, noise = eta = 0 |
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from score_sde import operators
from score_sde.conditioned import conditioned
from score_sde.errors import UserError, build
from score_sde.guidance import shift_score
from score_sde.operators import Operator, gain
from score_sde.parameterization import Denoiser, move_x0
from score_sde.randomness import fold_each, noise, parts, sample_keys
from score_sde.sde import SDE, lift, marginal, sum_event
from score_sde.solvers import Solution, Solver, check_memoryless, solve
from score_sde.solvers.base import Memoryless


class Problem(NamedTuple):
    """y = A x0 + noise z, z ~ N(0, I)."""

    operator: Operator
    y: jax.Array  # (batch, *measured)
    noise: float = 0.0  # standard deviation, on the data's scale


Changed = tuple[Solver, Denoiser]


def replacement(solver: Solver, denoiser: Denoiser, sde: SDE, problem: Problem) -> Changed:
    """E[x0 | x_t] with what y says of it in its place: x0 + A^T (A A^T + noise^2)^-1 (y - A x0), without noise A^+.

    Song et al. 2021, Appendix I.2, replace what is seen in x_t by alpha y + sigma z with a z drawn anew each step. A
    solver that is told this x0 does that by itself: what is seen of its x_t is alpha y + sigma z, with one z along the
    probability flow, with new ones along the reverse SDE. The noise of y only keeps what A hardly sees from being made
    of it; else it is taken for data.

    Raises:
      UserError: the operator is not linear.
    """

    def replaced(x, t, denoiser, y):
        pair = denoiser(x, t)
        residual = y - problem.operator.forward(pair.x0)
        return move_x0(pair, gain(problem.operator, residual, 1.0, problem.noise), t, sde)

    return solver, conditioned(replaced, denoiser, problem.y)


def repaint(solver: Solver, denoiser: Denoiser, sde: SDE, problem: Problem, repeats: int = 5) -> Changed:
    """`replacement`, with each step repeated from x_t drawn anew given x_t_next (Lugmayr et al. 2022, Algorithm 1).

    Args:
      repeats: their U; 1 is `replacement`. Their jumps have the length of a step.

    Raises:
      UserError: the solver has a memory, which a jump back would belie, or repeats is below 1.
    """
    _, replaced = replacement(solver, denoiser, sde, problem)
    return resampled(solver, repeats), replaced


def resampled(solver: Solver, repeats: int) -> Solver:
    """A solver each of whose steps is repeated, with a step of the forward process back between two times.

    Args:
      solver: any without a memory.
      repeats: steps in place of one.

    Raises:
      UserError: the solver has a memory, or repeats is below 1.
    """
    check_memoryless(solver, "repaint")
    if not (isinstance(repeats, int) and repeats >= 1):
        raise UserError(f"repaint: need repeats >= 1, got {repeats}", "repeats")

    def step(sde, denoiser, state, t, t_next, source):
        sources = parts(source, 2 * repeats - 1)
        state = solver.step(sde, denoiser, state, t, t_next, sources[0])
        for n in range(1, repeats):  # q(x_t | x_t_next)
            kept = sde.alpha(t) / sde.alpha(t_next)
            added = jnp.sqrt(sde.sigma(t) ** 2 - (kept * sde.sigma(t_next)) ** 2)
            back = Memoryless(kept * state.x + added * noise(sources[2 * n - 1], state.x))
            state = solver.step(sde, denoiser, back, t, t_next, sources[2 * n])
        return state

    return solver._replace(
        step=step, nfe_per_step=repeats * solver.nfe_per_step, stochastic=solver.stochastic or repeats > 1
    )


def dps(solver: Solver, denoiser: Denoiser, sde: SDE, problem: Problem, step_size: float = 1.0) -> Changed:
    """Diffusion posterior sampling: a step down the gradient of |y - A E[x0 | x_t]| in x_t after each solver step.

    Chung et al. 2023, as their code has it: the step's length doesn't depend on the residual, and is that of a
    variance-preserving x_t at 1,000 steps; for another process it is that of x_t on that scale. Residuals of small
    images are shorter than such a step of size 1, which then jumps back and forth over y: here it is never longer than
    Polyak's, |residual| / |gradient|^2, which of a linear denoiser reaches y. It costs one evaluation with its gradient
    more per step. It seeks where the residual vanishes and ignores the noise of y, so that its samples are not spread
    as the posterior is.

    Args:
      step_size: Largest step, on the scale of a variance-preserving x_t; positive.

    Raises:
      UserError: the solver has a memory, which would undo the step, or step_size is not positive.
    """
    check_memoryless(solver, "dps")
    if not step_size > 0:
        raise UserError(f"dps: need step_size > 0, got {step_size}", "step_size")

    def misfit(x, t):
        squares = sum_event((problem.y - problem.operator.forward(denoiser(x, t).x0)) ** 2)
        positive = squares > 0
        length = jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1.0)), 0.0)
        return jnp.sum(length), length

    def step(sde, denoiser, state, t, t_next, source):
        gradient, length = jax.grad(misfit, has_aux=True)(state.x, t)
        now, later = (jnp.hypot(sde.alpha(time), sde.sigma(time)) for time in (t, t_next))
        squares = sum_event(gradient**2)
        polyak = length / jnp.where(squares > 0, squares, 1.0)
        size = jnp.minimum(step_size * now**2, polyak) * later / now
        moved = solver.step(sde, denoiser, state, t, t_next, source)
        return moved._replace(x=moved.x - lift(size, gradient) * gradient)

    return solver._replace(step=step, nfe_per_step=solver.nfe_per_step + 1), denoiser


def pigdm(solver: Solver, denoiser: Denoiser, sde: SDE, problem: Problem, sigma_data: float = 1.0) -> Changed:
    """The score of p(y | x_t) = N(A E[x0 | x_t], r^2 A A^T + noise^2 I) is added (Song et al. 2023, "PiGDM").

    r^2 is the variance that is left of x0 given x_t, for data of variance sigma_data^2 (they take 1).

    Args:
      sigma_data: the data's standard deviation, positive.

    Raises:
      UserError: the operator is not linear, or sigma_data is not positive.
    """
    if not sigma_data > 0:
        raise UserError(f"pigdm: need sigma_data > 0, got {sigma_data}", "sigma_data")
    if problem.operator.transpose is None:
        gain(problem.operator, problem.y, 1.0, 0.0)  # says so

    def guided(x, t, denoiser, y):
        def term(x, t):
            alpha, sigma = sde.alpha(t), sde.sigma(t)
            left = (sigma_data * sigma) ** 2 / (sigma**2 + (sigma_data * alpha) ** 2)
            x0, pull = jax.vjp(lambda x: denoiser(x, t).x0, x)
            return pull(gain(problem.operator, y - problem.operator.forward(x0), left, problem.noise))[0]

        return shift_score(denoiser(x, t), term, x, t, sde)

    return solver, conditioned(guided, denoiser, problem.y)


def ddrm(
    solver: Solver, denoiser: Denoiser, sde: SDE, problem: Problem, eta: float = 0.85, eta_b: float = 1.0
) -> Changed:
    """Each singular direction by itself: y where x_t is noisier than y, E[x0 | x_t] where y says nothing.

    Kawar et al. 2022, "Denoising Diffusion Restoration Models", in x_t / alpha, whose noise is
    sigma / alpha. It is a solver of its own, and the one given is not used.

    Args:
      eta: the share of new noise a step where y says nothing or less than x_t, in [0, 1]. Above 0 it narrows what is
        drawn, the more the finer the grid: the paper takes 20 steps. With measurement noise no eta gives the posterior:
        at 0 an observed direction has no spread, since it is a function of y as soon as x_t is less noisy than y.
      eta_b: how far the mean is y's where y says more, in [0, 1].

    Raises:
      UserError: the operator's SVD is not known, or eta or eta_b is out of range.
    """
    del solver
    svd = problem.operator.svd
    if svd is None:
        raise UserError("ddrm works in the operator's singular directions, which are not known (set method='pigdm')")
    if not (0 <= eta <= 1 and 0 <= eta_b <= 1):
        raise UserError(f"ddrm: need 0 <= eta <= 1 and 0 <= eta_b <= 1, got {eta} and {eta_b}")
    seen = svd.singular > 0
    own_noise = np.where(seen, problem.noise / np.where(seen, svd.singular, 1.0), 0.0)

    def step(sde, denoiser, state, t, t_next, source):
        x = state.x
        pair = denoiser(x, t)
        x0, epsilon = svd.vt(pair.x0), svd.vt(pair.epsilon)
        level, alpha = sde.sigma(t_next) / sde.alpha(t_next), sde.alpha(t_next)
        inverse = jnp.asarray(np.where(seen, 1 / np.where(seen, svd.singular, 1.0), 0.0), x.dtype)[None]
        measured, std = inverse * svd.ut(problem.y), jnp.asarray(own_noise, x.dtype)[None]
        kept = jnp.sqrt(1 - eta**2)
        unseen = x0 + kept * level * epsilon
        # Where x_t is the less noisy the first is chosen, and std is positive; 1 keeps the other branch finite.
        finer = x0 + kept * level * (measured - x0) / jnp.where(std > level, std, 1.0)
        coarser = (1 - eta_b) * x0 + eta_b * measured
        told, vaguely = jnp.asarray(seen)[None], std > level
        mean = jnp.where(told, jnp.where(vaguely, finer, coarser), unseen)
        variance = jnp.where(told & ~vaguely, level**2 - (eta_b * std) ** 2, (eta * level) ** 2)
        drawn = svd.vt(noise(source, x))
        return Memoryless(alpha * svd.v(mean + jnp.sqrt(jnp.maximum(variance, 0.0)) * drawn))

    return Solver(init=Memoryless, step=step, nfe_per_step=1, stochastic=True), denoiser


METHODS = {"replacement": replacement, "repaint": repaint, "dps": dps, "pigdm": pigdm, "ddrm": ddrm}


def change(
    solver: Solver, denoiser: Denoiser, sde: SDE, problem: Problem, method: str = "pigdm", **kwargs: Any
) -> Changed:
    """The solver and the denoiser with which `solve` answers the problem.

    Args:
      solver: for the methods that leave the choice.
      denoiser: the prior's.
      sde: the forward process.
      problem: what was observed.
      method: a key of `METHODS`.
      **kwargs: of the method.

    Raises:
      UserError: the method or an argument is unknown, or can't answer this problem; y has another shape than A gives.
    """
    table = {name: partial(made, solver, denoiser, sde, problem) for name, made in METHODS.items()}
    return build("method", table, method, kwargs)


def restore(
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
    """Samples of p(x0 | y), as far as the method reaches it: `solve` with what `change` makes.

    Args:
      x: (batch, *event) at times[0], drawn from the prior.
      problem: its y has a row for each of x.
      solver, sde, denoiser, times, key, trajectory, denoise: as of `solve`.
      method, **kwargs: as of `change`.

    Raises:
      UserError: as of `change` and `solve`, or y has another shape than A gives.
    """
    expected = jax.eval_shape(problem.operator.forward, x).shape
    if problem.y.shape != expected:
        raise UserError(f"y has the shape {problem.y.shape}, but of x {x.shape} the operator gives {expected}")
    solver, denoiser = change(solver, denoiser, sde, problem, method, **kwargs)
    return solve(solver, sde, denoiser, x, times, key, trajectory=trajectory, denoise=denoise)


def inpaint(solver, sde, denoiser, x, times, y, seen, noise: float = 0.0, **how: Any) -> Solution:
    """What a mask hides: y (batch, *event) is read where seen is 1; **how and the rest as of `restore`."""
    operator = operators.mask(seen, x.shape[1:])
    return restore(solver, sde, denoiser, x, times, Problem(operator, operator.forward(y), noise), **how)


def colorize(solver, sde, denoiser, x, times, y, noise: float = 0.0, **how: Any) -> Solution:
    """The colours of grey images y (batch, height, width, 1); **how and the rest as of `restore`."""
    return restore(solver, sde, denoiser, x, times, Problem(operators.grey(x.shape[1:]), y, noise), **how)


def super_resolve(solver, sde, denoiser, x, times, y, factor: int, noise: float = 0.0, **how: Any) -> Solution:
    """Images of which y has the means of factor x factor pixels; **how and the rest as of `restore`."""
    return restore(solver, sde, denoiser, x, times, Problem(operators.pool(factor, x.shape[1:]), y, noise), **how)


def deblur(solver, sde, denoiser, x, times, y, kernel, noise: float = 0.0, **how: Any) -> Solution:
    """Images that a kernel (k, k) blurred to y, circularly; **how and the rest as of `restore`."""
    return restore(solver, sde, denoiser, x, times, Problem(operators.blur(kernel, x.shape[1:]), y, noise), **how)


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
    """A guide (batch, *event) with noise, denoised: near the guide, and like the data (Meng et al. 2022, "SDEdit").

    Args:
      times: a whole grid; the last `strength` of its steps are taken, from their first time on.
      key: one typed key or one a sample; for the noise on the guide and for the solver's.
      strength: in (0, 1]; their t_0 is the time at which that share of the steps begins.
      solver, sde, denoiser, trajectory, denoise: as of `solve`.

    Raises:
      UserError: strength is out of range, or as of `solve`.
    """
    check_strength(strength)
    kept = times[-max(round(strength * (len(times) - 1)), 1) - 1 :]
    keys = sample_keys(key, len(guide))
    x = marginal(sde, guide, noise(fold_each(keys, len(times)), guide), jnp.asarray(kept[0], guide.dtype))
    return solve(solver, sde, denoiser, x, kept, keys, trajectory=trajectory, denoise=denoise)


def check_strength(strength: float) -> None:
    """Refuses a share of the steps that is none."""
    if not 0 < strength <= 1:
        raise UserError(f"sdedit: need 0 < strength <= 1, got {strength}", "strength")
