"""Solvers on Gaussian data, whose probability flow and reverse SDE are known in closed form."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.errors import UserError
from score_sde.parameterization import Prediction
from score_sde.sde import flow, vp, vp_cosine
from score_sde.solvers import (
    SOLVERS,
    SPACINGS,
    Solver,
    ddim,
    euler_maruyama,
    evaluation_times,
    solve,
    time_grid,
    to_chain,
)

SDE, M, S = vp(), 0.4, 0.6  # data N(M, S^2)


def denoiser(x, t):
    alpha, sigma = SDE.alpha(t), SDE.sigma(t)
    epsilon = sigma * (x - alpha * M) / (alpha**2 * S**2 + sigma**2)
    return Prediction((x - sigma * epsilon) / alpha, epsilon)


def deviation(t):
    return np.sqrt(SDE.alpha(t) ** 2 * S**2 + SDE.sigma(t) ** 2)


def test_ddim_is_of_order_one(x64):
    """Against the exact flow alpha m + (s_t / s_T) (x_T - alpha_T m); the error halves as the steps double."""
    x = jnp.linspace(-2.0, 2.0, 5, dtype="float64")[:, None]
    t0, t1 = SDE.t_min, SDE.t_max
    exact = SDE.alpha(t0) * M + deviation(t0) / deviation(t1) * (x - SDE.alpha(t1) * M)
    steps = np.array([64, 128, 256, 512, 1024])
    errors = [np.abs(solve(ddim(), SDE, denoiser, x, time_grid(SDE, n)).x - exact).max() for n in steps]
    order = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert abs(order - 1) < 0.2


def moments(num_steps):
    """Mean and variance of Euler-Maruyama's result: every step is x -> a x + c + b z, written out here for eq. 6."""
    times = time_grid(SDE, num_steps)
    mean, variance = 0.0, float(SDE.sigma(1.0)) ** 2
    for t, t_next in pairwise(times):
        dt = t_next - t
        beta = 0.1 + 19.9 * t
        alpha = np.exp(-0.5 * (0.1 * t + 9.95 * t**2))
        marginal = alpha**2 * S**2 + 1 - alpha**2
        a = 1 + dt * (-0.5 * beta + beta / marginal)  # score = -(x - alpha m) / marginal
        c = -dt * beta * alpha * M / marginal
        mean, variance = a * mean + c, a**2 * variance - beta * dt
    return mean, variance


def test_euler_maruyama_has_the_moments_of_its_scheme_and_weak_order_one(x64):
    n, num_steps = 40_000, 50
    x = SDE.sigma(1.0) * jax.random.normal(jax.random.key(0), (n, 1))
    result = solve(euler_maruyama(), SDE, denoiser, x, time_grid(SDE, num_steps), jax.random.key(1)).x
    mean, variance = moments(num_steps)
    assert abs(result.mean() - mean) < 4 * np.sqrt(variance / n)
    assert abs(result.var() - variance) < 4 * variance * np.sqrt(2 / n)
    # The reverse SDE has the forward process' marginals but for the prior's mismatch, about 1e-5 here.
    steps = np.array([200, 400, 800, 1600])
    errors = [abs(moments(k)[1] - deviation(SDE.t_min) ** 2) for k in steps]
    assert abs(-np.polyfit(np.log(steps), np.log(errors), 1)[0] - 1) < 0.2


def test_ddim_with_eta_one_draws_from_the_posterior():
    """With x0 known for certain the step is q(x_s | x_t, x0), here by Bayes' rule on the joint Gaussian."""
    t, s, x0, x_t = 0.6, 0.4, 0.8, 0.3

    def certain(x, t):
        return Prediction(jnp.full_like(x, x0), (x - SDE.alpha(t) * x0) / SDE.sigma(t))

    n = 40_000
    draws = solve(ddim(eta=1.0), SDE, certain, jnp.full((n, 1), x_t), np.array([t, s]), jax.random.key(0)).x
    # x_t = r x_s + N(0, v): r = alpha_t / alpha_s, v = sigma_t^2 - r^2 sigma_s^2; prior x_s ~ N(alpha_s x0, sigma_s^2).
    ratio = SDE.alpha(t) / SDE.alpha(s)
    v = SDE.sigma(t) ** 2 - ratio**2 * SDE.sigma(s) ** 2
    precision = 1 / SDE.sigma(s) ** 2 + ratio**2 / v
    mean = (SDE.alpha(s) * x0 / SDE.sigma(s) ** 2 + ratio * x_t / v) / precision
    assert abs(draws.mean() - mean) < 4 / np.sqrt(precision * n)
    assert abs(draws.var() * precision - 1) < 4 * np.sqrt(2 / n)


def test_ddim_between_its_ends_keeps_the_marginal():
    """Any eta: with a certain x0 and the matching eps, x_s has the variance sigma_s^2."""
    t, s, n = 0.6, 0.4, 40_000
    x = SDE.sigma(t) * jax.random.normal(jax.random.key(0), (n, 1))  # x0 = 0

    def certain(x, t):
        return Prediction(jnp.zeros_like(x), x / SDE.sigma(t))

    draws = solve(ddim(eta=0.5), SDE, certain, x, np.array([t, s]), jax.random.key(1)).x
    assert abs(draws.var() / SDE.sigma(s) ** 2 - 1) < 4 * np.sqrt(2 / n)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_sample_does_not_depend_on_its_batch(name):
    x = jax.random.normal(jax.random.key(0), (6, 3))
    keys = jax.random.split(jax.random.key(1), 6)
    times = time_grid(SDE, 5)
    whole = solve(SOLVERS[name](), SDE, denoiser, x, times, keys).x
    parts = [solve(SOLVERS[name](), SDE, denoiser, x[i : i + 2], times, keys[i : i + 2]).x for i in (0, 2, 4)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    one_key = solve(SOLVERS[name](), SDE, denoiser, x, times, jax.random.key(2)).x
    np.testing.assert_array_equal(solve(SOLVERS[name](), SDE, denoiser, x[:3], times, jax.random.key(2)).x, one_key[:3])


@pytest.mark.parametrize("name", SOLVERS)
def test_what_solve_returns(name):
    x, times = jnp.ones((2, 3)), time_grid(SDE, 4)
    solver = SOLVERS[name]()
    plain = solve(solver, SDE, denoiser, x, times, jax.random.key(0))
    full = solve(solver, SDE, denoiser, x, times, jax.random.key(0), trajectory=True, denoise=True)
    assert plain.trajectory is None
    assert (plain.nfe, full.nfe) == (4, 5)
    assert full.trajectory.shape == (5, 2, 3)
    np.testing.assert_array_equal(full.trajectory[0], x)
    np.testing.assert_array_equal(full.trajectory[-1], full.x)
    np.testing.assert_allclose(full.x, denoiser(plain.x, times[-1]).x0, rtol=1e-5)


def test_the_program_does_not_grow_with_the_steps():
    def text(num_steps):
        times = time_grid(SDE, num_steps)
        program = jax.jit(lambda x, key: solve(euler_maruyama(), SDE, denoiser, x, times, key).x)
        return program.lower(jnp.ones((2, 3)), jax.random.key(0)).as_text()

    assert text(1000).count("\n") == text(10).count("\n")


@pytest.mark.parametrize("spacing", SPACINGS)
def test_grids_descend_from_end_to_end(spacing):
    times = time_grid(SDE, 7, spacing)
    assert times.shape == (8,)
    assert (times[0], times[-1]) == (SDE.t_max, SDE.t_min)
    assert (np.diff(times) < 0).all()
    even = {"uniform": times, "quadratic": np.sqrt(times)}[spacing]
    np.testing.assert_allclose(np.diff(even), (even[-1] - even[0]) / 7, rtol=1e-9)


def test_a_grid_moved_to_a_chain_is_the_nearest_without_repeats():
    times = time_grid(SDE, 37)
    on_chain = to_chain(times, 1000)
    index = on_chain * 999
    np.testing.assert_allclose(index, np.rint(index), atol=1e-9)
    assert np.abs(on_chain - times).max() <= 0.5 / 999 + 1e-12
    quadratic = to_chain(time_grid(SDE, 500, "quadratic"), 1000)  # finer than the chain near the data
    assert (np.diff(quadratic * 999) < -0.5).all()
    np.testing.assert_allclose(to_chain(time_grid(SDE, 999), 1000) * 999, np.arange(999, -1, -1), atol=1e-9)


def test_the_times_a_solver_asks_for_are_found():
    def step(sde, denoiser, state, t, t_next, keys):
        denoiser(state.x, t)
        denoiser(state.x, 0.5 * (t + t_next))
        return state

    midpoint = Solver(ddim().init, step, 2)
    times = np.array([1.0, 0.5, 0.1])
    np.testing.assert_allclose(evaluation_times(midpoint, SDE, times), [[1.0, 0.75], [0.5, 0.3]], rtol=1e-6)
    for make in SOLVERS.values():
        np.testing.assert_allclose(evaluation_times(make(), SDE, times), times[:-1, None], rtol=1e-6)


@pytest.mark.parametrize("sde", [flow(), vp_cosine()], ids=["flow", "vp_cosine"])
def test_a_solver_that_follows_the_sde_does_not_start_where_it_is_infinite(sde):
    x, key = jnp.ones((2, 1)), jax.random.key(0)

    def zero(x, t):
        return Prediction(jnp.zeros_like(x), x)

    with pytest.raises(UserError, match="alpha reaches 0 there"):
        solve(euler_maruyama(), sde, zero, x, time_grid(sde, 5), key)
    assert np.isfinite(solve(euler_maruyama(), sde, zero, x, np.array([0.9, 0.5]), key).x).all()
    for eta in (0.0, 1.0):  # the exact transitions don't need drift and diffusion
        assert np.isfinite(solve(ddim(eta), sde, zero, x, time_grid(sde, 5), key).x).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: solve(ddim(), SDE, denoiser, x, np.array([0.1, 0.5])), "descend strictly"),
        (lambda x: solve(ddim(), SDE, denoiser, x, np.array([0.5, 0.5, 0.1])), "descend strictly"),
        (lambda x: solve(ddim(), SDE, denoiser, x, np.array([1.5, 0.1])), r"within \[0, 1.0\]"),
        (lambda x: solve(ddim(), SDE, denoiser, x, np.array([0.5])), "at least one step"),
        (lambda x: solve(euler_maruyama(), SDE, denoiser, x, np.array([0.5, 0.1])), "stochastic"),
        (lambda x: ddim(eta=2.0), "0 <= eta <= 1"),
        (lambda x: time_grid(SDE, 0), "at least 1 step"),
        (lambda x: to_chain(time_grid(SDE, 50), 50), "at most 49"),
        (lambda x: time_grid(SDE, 5, "quadratc"), "Did you mean 'quadratic'"),
    ],
)
def test_wrong_arguments_are_refused(call, words):
    with pytest.raises(UserError, match=words):
        call(jnp.ones((2, 1)))
