"""Solvers on Gaussian data, whose probability flow and reverse SDE are known in closed form."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.errors import UserError
from score_sde.parameterization import Prediction
from score_sde.sde import SDES, edm, flow, log_snr, ve, vp, vp_cosine
from score_sde.solvers import (
    SOLVERS,
    SPACINGS,
    Solver,
    ancestral,
    check_finite,
    ddim,
    deis,
    dpm_solver_pp,
    edm_stochastic,
    euler_maruyama,
    evaluation_times,
    heun,
    predictor_corrector,
    reverse_diffusion,
    snap_to_timesteps,
    solve,
    time_grid,
    unipc,
)
from tests.solvers import gaussian
from tests.thinned import WITH_DENOISERS, thinned

SDE, M, S = vp(), 0.4, 0.6  # data N(M, S^2)
QUICK = ("ddim", "heun", "unipc", "euler_maruyama", "predictor_corrector")  # one solver of each kind


def denoiser(x, t):
    alpha, sigma = SDE.alpha(t), SDE.sigma(t)
    epsilon = sigma * (x - alpha * M) / (alpha**2 * S**2 + sigma**2)
    return Prediction((x - sigma * epsilon) / alpha, epsilon)


def deviation(t):
    return np.sqrt(SDE.alpha(t) ** 2 * S**2 + SDE.sigma(t) ** 2)


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


@pytest.mark.parametrize("name", thinned(WITH_DENOISERS, *QUICK))
def test_a_sample_does_not_depend_on_its_batch(name):
    x = jax.random.normal(jax.random.key(0), (6, 3))
    keys = jax.random.split(jax.random.key(1), 6)
    times = time_grid(SDE, 5)
    whole = solve(SOLVERS[name](), SDE, denoiser, x, times, keys).x
    part = solve(SOLVERS[name](), SDE, denoiser, x[2:5], times, keys[2:5]).x
    np.testing.assert_array_equal(part, whole[2:5])


def test_one_key_is_folded_by_the_place_in_the_batch():
    x, times, key = jnp.ones((6, 3)), time_grid(SDE, 5), jax.random.key(2)
    whole = solve(ancestral(), SDE, denoiser, x, times, key).x
    np.testing.assert_array_equal(solve(ancestral(), SDE, denoiser, x[:3], times, key).x, whole[:3])
    assert len(np.unique(np.asarray(whole))) == 18


@pytest.mark.parametrize("name", thinned(WITH_DENOISERS, *QUICK))
def test_what_solve_returns(name):
    x, times = jnp.ones((2, 3)), time_grid(SDE, 4)
    solver = SOLVERS[name]()
    plain = solve(solver, SDE, denoiser, x, times, jax.random.key(0))
    full = solve(solver, SDE, denoiser, x, times, jax.random.key(0), trajectory=True, denoise=True)
    assert plain.trajectory is None
    assert (plain.nfe, full.nfe) == (4 * solver.nfe_per_step, 4 * solver.nfe_per_step + 1)
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
    level = log_snr_of(SDE, times)
    even = {
        "uniform": times,
        "quadratic": np.sqrt(times),
        "karras": np.exp(-level / 2) ** (1 / 7),
        "log_snr": level,
    }[spacing]
    np.testing.assert_allclose(np.diff(even), (even[-1] - even[0]) / 7, rtol=1e-9)
    to_zero = time_grid(SDE, 8, spacing, end="zero")
    np.testing.assert_array_equal(to_zero, [*times, 0.0])
    np.testing.assert_array_equal(time_grid(SDE, 1, spacing, end="zero"), [1.0, 0.0])


def log_snr_of(sde, t):
    with jax.enable_x64(True):
        return np.asarray(log_snr(sde, jnp.asarray(t)))


def test_karras_grid_is_the_papers():
    """Karras et al. 2022, eq. 5, and another rho."""
    i, n = np.arange(18), 18
    for rho in (7.0, 3.0):
        expected = (80 ** (1 / rho) + i / (n - 1) * (0.002 ** (1 / rho) - 80 ** (1 / rho))) ** rho
        times = time_grid(edm(), 18, "karras", end="zero", spacing_kwargs={"rho": rho})
        np.testing.assert_allclose(times, [*expected, 0.0], rtol=1e-12)


@pytest.mark.parametrize("sde", [flow(), vp_cosine()], ids=["flow", "vp_cosine"])
@pytest.mark.parametrize("spacing", ["karras", "log_snr"])
def test_grids_in_noise_level_start_from_80_where_it_is_infinite(sde, spacing):
    times = time_grid(sde, 10, spacing)
    assert times[0] == 1.0
    level = np.exp(-log_snr_of(sde, times[1:]) / 2)
    even = level ** (1 / 7) if spacing == "karras" else np.log(level)
    first = 80 ** (1 / 7) if spacing == "karras" else np.log(80)
    np.testing.assert_allclose(even[0], first + (even[-1] - first) / 10, rtol=1e-6)


@pytest.mark.parametrize("name", thinned(WITH_DENOISERS, *QUICK))
def test_the_last_step_to_sigma_zero_is_the_denoised(name):
    """And costs one evaluation: EDM's 2 N - 1 for Heun's method."""
    x, solver, key = jnp.linspace(-1.0, 1.0, 6).reshape(2, 3), SOLVERS[name](), jax.random.key(0)
    whole = time_grid(SDE, 4, "karras", end="zero")
    result = solve(solver, SDE, denoiser, x, whole, key, trajectory=True)
    before = solve(solver, SDE, denoiser, x, whole[:-1], key, denoise=True)
    np.testing.assert_array_equal(result.x, before.x)
    assert result.nfe == before.nfe == 3 * solver.nfe_per_step + 1
    assert result.trajectory.shape == (5, 2, 3)
    np.testing.assert_array_equal(result.trajectory[-1], result.x)


def test_one_step_to_sigma_zero_is_one_evaluation():
    x = jnp.linspace(-1.0, 1.0, 6).reshape(2, 3)
    at_once = solve(heun(), SDE, denoiser, x, np.array([1.0, 0.0]), denoise=True)
    np.testing.assert_allclose(at_once.x, denoiser(x, 1.0).x0, rtol=1e-6)
    assert at_once.nfe == 1


def test_ve_ends_at_zero_with_a_step_like_any_other():
    """Its data keep the noise sigma_min, so there is no sigma = 0 to step into."""
    sde = ve()
    times = time_grid(sde, 4, end="zero")
    data = gaussian.denoiser(sde)
    x = jnp.ones((2, 1))
    np.testing.assert_allclose(
        solve(ddim(), sde, data, x, times).x, solve(ddim(), sde, data, x, times[:-1]).x, atol=0.01
    )
    assert solve(heun(), sde, data, x, times).nfe == 8


def test_a_grid_moved_to_a_chain_is_the_nearest_without_repeats():
    times = time_grid(SDE, 37)
    on_chain = snap_to_timesteps(times, 1000)
    index = on_chain * 999
    np.testing.assert_allclose(index, np.rint(index), atol=1e-9)
    assert np.abs(on_chain - times).max() <= 0.5 / 999 + 1e-12
    quadratic = snap_to_timesteps(time_grid(SDE, 500, "quadratic"), 1000)  # finer than the chain near the data
    assert (np.diff(quadratic * 999) < -0.5).all()
    np.testing.assert_allclose(snap_to_timesteps(time_grid(SDE, 999), 1000) * 999, np.arange(999, -1, -1), atol=1e-9)


def test_the_times_a_solver_asks_for_are_found():
    def step(sde, denoiser, state, t, t_next, keys):
        denoiser(state.x, t)
        denoiser(state.x, 0.5 * (t + t_next))
        return state

    midpoint = Solver(ddim().init, step, 2)
    times = np.array([1.0, 0.5, 0.1])
    np.testing.assert_allclose(evaluation_times(midpoint, SDE, times), [1.0, 0.75, 0.5, 0.3], rtol=1e-6)
    np.testing.assert_allclose(evaluation_times(midpoint, SDE, [1.0, 0.5, 0.0]), [1.0, 0.75, 0.5], rtol=1e-6)
    np.testing.assert_allclose(evaluation_times(heun(), SDE, times), [1.0, 0.5, 0.5, 0.1], rtol=1e-6)
    for make in (ddim, unipc, deis, ancestral, euler_maruyama):
        np.testing.assert_allclose(evaluation_times(make(), SDE, times), times[:-1], rtol=1e-6)


@pytest.mark.parametrize("name", thinned(("heun", "unipc", "ancestral"), "unipc"))
def test_traced_grids_equal_known_ones(name):
    """`to_data` says whether a traced grid ends at the data; a traced grid that does not descend gives NaN."""
    x, times, key = jnp.ones((2, 1)), time_grid(SDE, 5, end="zero"), jax.random.key(0)

    @partial(jax.jit, static_argnums=1)
    def run(times, to_data):
        return solve(SOLVERS[name](), SDE, denoiser, x, times, key, to_data=to_data).x

    np.testing.assert_allclose(run(times, True), solve(SOLVERS[name](), SDE, denoiser, x, times, key).x, rtol=1e-5)
    np.testing.assert_allclose(
        run(times[:-1], False), solve(SOLVERS[name](), SDE, denoiser, x, times[:-1], key).x, rtol=1e-5
    )
    with pytest.raises(UserError, match="expected times that are known while tracing"):
        run(times, None)
    assert np.isnan(run(times[::-1], False)).all()
    with pytest.raises(UserError, match="expected to_data=True for times that end at 0"):
        solve(SOLVERS[name](), SDE, denoiser, x, times, key, to_data=False)


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
        (lambda x: solve(ddim(), SDE, denoiser, x, np.array([0.1, 0.5])), "strictly descending"),
        (lambda x: solve(ddim(), SDE, denoiser, x, np.array([0.5, 0.5, 0.1])), "strictly descending"),
        (lambda x: solve(ddim(), SDE, denoiser, x, np.array([1.5, 0.1])), r"within \[0, 1.0\]"),
        (lambda x: solve(ddim(), SDE, denoiser, x, np.array([0.5])), "at least one step"),
        (lambda x: solve(euler_maruyama(), SDE, denoiser, x, np.array([0.5, 0.1])), "stochastic"),
        (lambda x: ddim(eta=2.0), "0 <= eta <= 1"),
        (lambda x: time_grid(SDE, 0), "expected num_steps >= 1"),
        (lambda x: snap_to_timesteps(time_grid(SDE, 50), 50), "at most 49"),
        (lambda x: time_grid(SDE, 5, "quadratc"), "Did you mean 'quadratic'"),
        (lambda x: time_grid(SDE, 5, end="zer"), "Did you mean 'zero'"),
        (lambda x: time_grid(SDE, 5, "karras", spacing_kwargs={"rh": 3}), "Did you mean 'rho'"),
        (lambda x: time_grid(SDE, 5, "karras", spacing_kwargs={"rho": -1}), "rho > 0"),
        (lambda x: time_grid(SDE, 5, t_min=2.0), r"0 < t_min < 1.0"),
        (lambda x: unipc(4), "order must be one of"),
        (lambda x: dpm_solver_pp(0), "must be one of"),
        (lambda x: deis(4), "order must be one of"),
        (lambda x: deis(variable="log_snt"), "Did you mean 'log_snr'"),
        (lambda x: unipc(variant="bh3"), "unknown variant"),
        (lambda x: edm_stochastic(s_churn=-1.0), "s_churn >= 0"),
        (lambda x: solve(ancestral(), SDE, denoiser, x, np.array([0.5, 0.1]), noise=jnp.ones((2, 2, 1))), "num_steps"),
        (
            lambda x: solve(predictor_corrector(), SDE, denoiser, x, np.array([0.5, 0.1]), noise=jnp.ones((1, 2, 1))),
            "draws noise 2 times per step",
        ),
        (lambda x: predictor_corrector("ancestrl"), "Did you mean 'ancestral'"),
        (lambda x: predictor_corrector("dpm_solver_pp"), "a multistep method recomputes x"),
        (lambda x: predictor_corrector(unipc()), "a multistep method recomputes x"),
        (lambda x: unipc(2.0), "order must be one of"),
        (lambda x: dpm_solver_pp(2, multistep=False, reach=2.0), "corrected_start and reach have no effect"),
        (lambda x: predictor_corrector(corrector_kwargs={"snrr": 1}), "Did you mean 'snr'"),
    ],
)
def test_wrong_arguments_are_refused(call, words):
    """Each with a sentence that says what was given."""
    with pytest.raises(UserError, match=words):
        call(jnp.ones((2, 1)))


def test_nan_is_reported_with_the_time_at_which_it_appeared():
    def breaks_below(x, t):
        x0, epsilon = denoiser(x, t)
        return Prediction(jnp.where(t < 0.5, jnp.nan, x0), jnp.where(t < 0.5, jnp.nan, epsilon))

    x, times = jnp.ones((2, 1)), np.array([1.0, 0.6, 0.45, 0.2, 0.1])
    with pytest.raises(UserError, match=r"last finite at t = 0.45"):
        solve(ddim(), SDE, breaks_below, x, times)
    with pytest.raises(UserError, match=r"last finite at t = 0.45"):
        solve(ddim(), SDE, breaks_below, x, np.array([1.0, 0.6, 0.45, 0.0]))
    compiled = jax.jit(lambda x: solve(ddim(), SDE, breaks_below, x, times)._replace(nfe=0))(x)
    with pytest.raises(UserError, match=r"last finite at t = 0.45"):
        check_finite(compiled)
    check_finite(solve(ddim(), SDE, breaks_below, x, times[:3]))


def test_given_noise_takes_the_place_of_a_keys():
    x, key, times = jnp.ones((3, 2)), jax.random.key(0), time_grid(SDE, 4)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(3))
    noise = jnp.stack(
        [jax.vmap(lambda key, n=n: jax.random.normal(jax.random.fold_in(key, n), (2,)))(keys) for n in range(4)]
    )
    for solver in (ancestral(), euler_maruyama(), edm_stochastic(s_churn=1.0)):
        by_key = solve(solver, SDE, denoiser, x, times, key).x
        np.testing.assert_allclose(solve(solver, SDE, denoiser, x, times, noise=noise).x, by_key, rtol=1e-6)


def test_reach_lowers_the_order_of_a_long_step_alone():
    """Even short steps keep order 3; a step 10 times as long as the ones before falls to order 1, which is DDIM."""
    x = jnp.ones((1, 1))
    even = np.array([0.5, 0.49, 0.48, 0.47])
    run = lambda solver, times: float(solve(solver, SDE, denoiser, x, times).x[0, 0])  # noqa: E731
    assert run(dpm_solver_pp(3), even) == run(dpm_solver_pp(3, reach=np.inf), even)
    assert run(dpm_solver_pp(3), even) != run(dpm_solver_pp(3, reach=3.0), even)
    uneven = np.array([0.5, 0.49, 0.3])
    np.testing.assert_allclose(run(dpm_solver_pp(2), uneven), run(ddim(), uneven), rtol=1e-5)
    assert abs(run(dpm_solver_pp(2, reach=np.inf), uneven) - run(ddim(), uneven)) > 1e-3


def test_a_wide_ve_starts_where_there_is_signal():
    """Its g is above 1,000 and its log-SNR -14: nothing is infinite there."""
    sde = ve(0.01, 1348.0)
    x = 1348.0 * jax.random.normal(jax.random.key(0), (4, 2))
    result = solve(reverse_diffusion(), sde, gaussian.denoiser(sde), x, time_grid(sde, 20), jax.random.key(1)).x
    assert np.isfinite(result).all()


def test_a_singlestep_predictor_takes_a_corrector():
    sde = vp()
    solver = predictor_corrector("dpm_solver_pp", predictor_kwargs={"multistep": False})
    result = solve(solver, sde, gaussian.denoiser(sde), jnp.ones((2, 2)), time_grid(sde, 5), jax.random.key(1)).x
    assert np.isfinite(result).all()


@pytest.mark.parametrize("name", thinned(SDES, "vp", "edm"))
def test_churn_stays_within_the_process(name):
    sde = SDES[name]()
    asked = evaluation_times(edm_stochastic(s_churn=40.0), sde, time_grid(sde, 8, "karras"))
    assert asked.min() > 0
    assert asked.max() <= np.float32(sde.t_max)
