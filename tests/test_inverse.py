"""Inverse problems with a Gaussian prior, whose posteriors are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde import analytic, operators
from score_sde.errors import UserError
from score_sde.inverse import (
    INVERSE_METHODS,
    Problem,
    apply_method,
    colorize,
    deblur,
    inpaint,
    sdedit,
    solve_inverse_problem,
    super_resolve,
    with_resampling,
)
from score_sde.parameterization import Prediction
from score_sde.sde import SDES, edm, flow, prior_sample, vp
from score_sde.solvers import SOLVERS, ancestral, ddim, solve, time_grid
from score_sde.thresholding import clip_x0
from tests.thinned import WITH_DENOISERS, thinned

MEAN = np.array([0.3, -0.2])
STD = 0.5
A = np.array([[0.8, 0.6]])
Y = np.array([0.9])
N = 4000


def problem(n, noise, a=A, y=Y):
    return Problem(operators.matrix(a, (a.shape[1],)), jnp.broadcast_to(jnp.asarray(y, float), (n, len(y))), noise)


def starts(sde, n=N, d=2):
    return prior_sample(sde, jax.random.key(0), (n, d))


def grid(sde, steps):
    return time_grid(sde, steps, "quadratic" if sde.t_max > 1 else "uniform")


@pytest.mark.parametrize("name", thinned(SDES, "vp", "flow"))
@pytest.mark.parametrize("noise", [0.0, 0.05, 0.5])
def test_pigdm_draws_from_the_posterior_of_isotropic_gaussian_data(name, noise):
    """Exact in the limit, as its Gaussian of x0 given x_t is the true one; 4,000 draws and 200 steps of order 1."""
    sde = SDES[name]()
    prior = analytic.correlated_gaussian_denoiser(sde, MEAN, STD**2 * np.eye(2))
    run = jax.jit(
        lambda x: (
            solve_inverse_problem(
                ddim(), sde, prior, x, grid(sde, 200), problem(N, noise), method="pigdm", sigma_data=STD, denoise=True
            ).x
        )
    )
    mean, covariance = analytic.gaussian_posterior(MEAN, STD**2 * np.eye(2), A, Y, noise)
    of_mean, of_covariance = analytic.moment_errors(run(starts(sde)), mean, covariance)
    assert of_mean < 4 / np.sqrt(N) + 0.02
    assert of_covariance < 4 * np.sqrt(2 / N) + 0.03


@pytest.mark.parametrize(("method", "how"), [("replacement", {}), ("repaint", {"repeats": 2}), ("ddrm", {"eta": 0.0})])
def test_independent_components_follow_the_prior(method, how):
    """Independent features, the first seen without noise: the second keeps its law, the first is y."""
    sde = vp()
    covariance = np.diag([0.4, 0.25]) ** 2
    prior = analytic.correlated_gaussian_denoiser(sde, MEAN, covariance)
    asked = problem(N, 0.0, np.array([[1.0, 0.0]]), np.array([0.8]))
    run = jax.jit(
        lambda x: (
            solve_inverse_problem(
                ddim(), sde, prior, x, time_grid(sde, 200), asked, jax.random.key(1), method=method, denoise=True, **how
            ).x
        )
    )
    x = np.asarray(run(starts(sde)))
    np.testing.assert_allclose(x[:, 0], 0.8, atol=5 * float(sde.sigma(sde.t_min)))  # the noise where the grid ends
    assert abs(x[:, 1].mean() - MEAN[1]) < 4 * 0.25 / np.sqrt(N) + 0.01
    assert abs(x[:, 1].std() / 0.25 - 1) < 4 / np.sqrt(2 * N) + 0.03  # 200 steps of order 1


def test_a_replaced_denoiser_keeps_the_seen_part_of_x_t_at_its_marginal():
    """Along the reverse SDE it is N(alpha y, sigma^2), what score_sde draws anew; along the flow its noise is kept."""
    sde = vp()
    prior = analytic.correlated_gaussian_denoiser(sde, MEAN, np.array([[0.25, 0.2], [0.2, 0.25]]))
    asked = problem(N, 0.0, np.array([[1.0, 0.0]]), np.array([0.8]))
    x, times = starts(sde), time_grid(sde, 20)
    for solver, fresh in ((ddim(eta=1.0), True), (ddim(), False)):
        _, replaced = apply_method(solver, prior, sde, asked, "replacement")
        path = solve(solver, sde, replaced, x, times, jax.random.key(1), trajectory=True).trajectory[..., 0]
        for n in (5, 10, 19):
            alpha, sigma = float(sde.alpha(times[n])), float(sde.sigma(times[n]))
            eps = (np.asarray(path[n]) - 0.8 * alpha) / sigma
            assert abs(eps.mean()) < 4 / np.sqrt(N) + 0.8 * 7e-3  # alpha is 7e-3 where the prior is drawn
            assert abs(eps.std() - 1) < 4 / np.sqrt(2 * N)
            correlation = np.corrcoef(eps, np.asarray(path[0]))[0, 1]
            assert abs(correlation) < 0.1 if fresh and n > 5 else fresh or correlation > 0.999


@pytest.mark.slow
def test_repeats_bring_replacement_nearer_to_the_posterior():
    """One of two correlated features is observed; RePaint's repeats halve the error of the other."""
    sde, covariance = vp(), 0.25 * np.array([[1.0, 0.9], [0.9, 1.0]])
    prior = analytic.correlated_gaussian_denoiser(sde, MEAN, covariance)
    a, y = np.array([[1.0, 0.0]]), np.array([1.0])
    mean, _ = analytic.gaussian_posterior(MEAN, covariance, a, y, 0.0)
    off = {}
    for repeats in (1, 10):
        run = jax.jit(
            lambda x, repeats=repeats: (
                solve_inverse_problem(
                    ddim(eta=1.0),
                    sde,
                    prior,
                    x,
                    time_grid(sde, 50),
                    problem(N, 0.0, a, y),
                    jax.random.key(1),
                    method="repaint",
                    repeats=repeats,
                    denoise=True,
                ).x
            )
        )
        off[repeats] = abs(float(run(starts(sde))[:, 1].mean()) - mean[1])
    assert off[10] < 0.5 * off[1]


MULTISTEP = ("unipc", "deis", "dpm_solver_pp_sde")
MEMORYLESS = [name for name in WITH_DENOISERS if name not in MULTISTEP]


@pytest.mark.parametrize("method", INVERSE_METHODS)
@pytest.mark.parametrize("solver", thinned(MEMORYLESS, "euler_maruyama"))
def test_methods_run_under_every_solver_they_may(method, solver):
    """Finite, and nearer to y than without."""
    sde, how = vp(), {"pigdm": {"sigma_data": STD}, "repaint": {"repeats": 2}}.get(method, {})
    prior = analytic.correlated_gaussian_denoiser(sde, MEAN, STD**2 * np.eye(2))
    made = SOLVERS[solver](**({"multistep": False} if solver == "dpm_solver_pp" else {}))
    asked, x, key, times = problem(64, 0.1), starts(sde, 64), jax.random.key(2), time_grid(sde, 30)

    def off(x):
        return float(np.mean(np.abs(np.asarray(x) @ A[0] - Y[0])))

    run = jax.jit(
        lambda x: (
            solve_inverse_problem(made, sde, prior, x, times, asked, key, method=method, denoise=True, **how).x,
            solve(made, sde, prior, x, times, key, denoise=True).x,
        )
    )
    told, untold = run(x)
    assert np.isfinite(told).all()
    assert off(told) < off(untold)


@pytest.mark.parametrize("solver", MULTISTEP)
@pytest.mark.parametrize(("method", "how"), [("replacement", {}), ("pigdm", {"sigma_data": STD})])
def test_what_only_changes_the_denoiser_runs_under_multistep_solvers_too(method, how, solver):
    sde = edm()
    prior = analytic.correlated_gaussian_denoiser(sde, MEAN, STD**2 * np.eye(2))
    x = solve_inverse_problem(
        SOLVERS[solver](),
        sde,
        prior,
        starts(sde, 64),
        grid(sde, 20),
        problem(64, 0.1),
        jax.random.key(2),
        method=method,
        **how,
    ).x
    assert np.abs(np.asarray(x) @ A[0] - Y[0]).mean() < 0.3


@pytest.mark.parametrize(("noise", "mean", "std"), [(0.0, 0.8, 0.0), (0.5, 0.79, 0.0)])
def test_ddrm_without_eta_ignores_measurement_noise(noise, mean, std):
    """Prior N(0, 0.7^2), y = 0.8: the posterior is y without noise, N(0.53, 0.41^2) with noise 0.5, which it misses."""
    sde, x = vp(), starts(vp(), 256, 1)
    prior = analytic.correlated_gaussian_denoiser(sde, np.zeros(1), 0.49 * np.eye(1))
    asked = problem(256, noise, np.eye(1), np.array([0.8]))
    grid = time_grid(sde, 1000, "quadratic")
    drawn = solve_inverse_problem(
        ddim(), sde, prior, x, grid, asked, jax.random.key(1), method="ddrm", eta=0.0, denoise=True
    ).x
    np.testing.assert_allclose(drawn.mean(), mean, atol=0.01)
    np.testing.assert_allclose(drawn.std(), std, atol=0.02)  # sigma(t_min) is 0.01


@pytest.mark.parametrize(("step_size", "steps"), [(1.0, 50), (1.0, 200), (0.1, 1000)])
def test_dps_reaches_the_measurement(step_size, steps):
    """8x8 images of independent pixels, half of them observed: steps of one length would leave residuals of 0.5."""
    sde, shape = vp(), (8, 8, 1)
    operator = operators.mask((np.arange(64) % 2).reshape(shape), shape)
    y = operator.forward(STD * jax.random.normal(jax.random.key(2), (8, *shape)))

    def prior(x, t):
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        return Prediction(*(part * x / (alpha**2 * STD**2 + sigma**2) for part in (alpha * STD**2, sigma)))

    x = prior_sample(sde, jax.random.key(0), (8, *shape))
    given = {"method": "dps", "step_size": step_size, "denoise": True}
    x = solve_inverse_problem(ddim(), sde, prior, x, time_grid(sde, steps), Problem(operator, y), **given).x
    residuals = jnp.sqrt(jnp.sum((operator.forward(x) - y) ** 2, axis=(1, 2, 3)))
    assert float(residuals.max()) < 0.02


@pytest.mark.parametrize("method", ["pigdm", "dps"])
def test_observed_pixels_are_met_through_a_clip(method):
    """Data N(-0.9, 0.3^2), of which a third lie beyond the clip at -1: as near to y = -0.9 as without it."""
    sde = vp()
    denoiser = analytic.correlated_gaussian_denoiser(sde, -0.9 * np.ones(8), 0.09 * np.eye(8))
    operator = operators.mask(np.arange(8) % 2, (8,))
    asked = Problem(operator, operator.forward(jnp.full((256, 8), -0.9)))
    x = solve_inverse_problem(
        ddim(), sde, clip_x0()(denoiser, sde), starts(sde, 256, 8), grid(sde, 200), asked, method=method
    ).x
    assert float(jnp.abs(x[:, 1::2] + 0.9).max()) < 0.1


def test_dps_takes_any_function():
    """|x0| is measured, which is not linear: samples come to lie on that circle."""
    sde = vp()
    prior = analytic.correlated_gaussian_denoiser(sde, np.zeros(2), np.eye(2))
    norm = operators.function(lambda x: jnp.linalg.norm(x, axis=1, keepdims=True))
    asked = Problem(norm, jnp.full((256, 1), 1.5))
    run = jax.jit(
        lambda x: (
            solve_inverse_problem(
                ancestral(),
                sde,
                prior,
                x,
                time_grid(sde, 200),
                asked,
                jax.random.key(0),
                "dps",
                step_size=0.1,
                denoise=True,
            ).x
        )
    )
    x = np.asarray(run(starts(sde, 256)))
    radius = np.linalg.norm(x, axis=1)
    assert abs(radius.mean() - 1.5) < 0.1 and radius.std() < 0.2
    assert np.abs(x.mean(0)).max() < 0.4  # all around it


@pytest.mark.slow
def test_a_resampled_solver_draws_from_the_same_law():
    """Steps back and forth of the exact chain leave the marginal where it is."""
    sde = vp()
    prior = analytic.correlated_gaussian_denoiser(sde, MEAN, STD**2 * np.eye(2))
    plain, thrice = (
        solve(solver, sde, prior, starts(sde), time_grid(sde, 200), jax.random.key(3), denoise=True)
        for solver in (ancestral(), with_resampling(ancestral(), 3))
    )
    assert (plain.nfe, thrice.nfe) == (201, 601)
    (_, own), (of_mean, of_covariance) = (
        analytic.moment_errors(end.x, MEAN, STD**2 * np.eye(2)) for end in (plain, thrice)
    )
    sampling = 4 * np.sqrt(2 / N)
    assert of_mean < 4 / np.sqrt(N) + 0.01
    assert of_covariance < 3 * (own + sampling)  # three steps, each with the step's own error


IMAGE = (4, 4, 3)


def test_tasks_restore_images_of_independent_pixels():
    """Each task on pixels N(0, 0.5^2): what is measured is met, to the noise that the grid leaves."""
    sde, n = vp(), 16
    prior_of = analytic.correlated_gaussian_denoiser(sde, np.zeros(48), 0.25 * np.eye(48))

    def prior(x, t):
        return jax.tree.map(lambda part: part.reshape(x.shape), prior_of(x.reshape(len(x), -1), t))

    truth = 0.5 * jax.random.normal(jax.random.key(5), (n, *IMAGE))
    x, times = prior_sample(sde, jax.random.key(0), (n, *IMAGE)), time_grid(sde, 50)
    kernel, seen = operators.gaussian_kernel(0.6, 3), np.indices((4, 4)).sum(0) % 2
    shared = {"sigma_data": 0.5, "denoise": True}
    for operator, run in (
        (operators.mask(seen, IMAGE), lambda y: inpaint(ddim(), sde, prior, x, times, y, seen, **shared)),
        (operators.grayscale(IMAGE), lambda y: colorize(ddim(), sde, prior, x, times, y, **shared)),
        (operators.pool(2, IMAGE), lambda y: super_resolve(ddim(), sde, prior, x, times, y, 2, **shared)),
        (operators.blur(kernel, IMAGE), lambda y: deblur(ddim(), sde, prior, x, times, y, kernel, **shared)),
    ):
        y = operator.forward(truth)
        found = jax.jit(lambda y, run=run: run(y).x)(y)
        np.testing.assert_allclose(operator.forward(found), y, atol=0.03)  # sigma is 0.01 where the grid ends


def test_sdedit_stays_nearer_to_its_guide_the_less_it_may_change():
    sde, n = vp(), 500
    prior = analytic.correlated_gaussian_denoiser(sde, MEAN, STD**2 * np.eye(2))
    guide = jnp.full((n, 2), 1.5)
    ends = [
        sdedit(ddim(), sde, prior, guide, time_grid(sde, 50), jax.random.key(0), strength)
        for strength in (0.2, 0.5, 1.0)
    ]
    assert [end.nfe for end in ends] == [10, 25, 50]
    distances = [float(jnp.linalg.norm(end.x - guide, axis=1).mean()) for end in ends]
    assert distances[0] < distances[1] < distances[2]
    np.testing.assert_allclose(ends[2].x.mean(0), MEAN, atol=4 * STD / np.sqrt(n) + 0.01)
    alone = sdedit(ddim(), sde, prior, guide[:7], time_grid(sde, 50), jax.random.key(0), 0.5)
    np.testing.assert_allclose(alone.x, ends[1].x[:7], atol=1e-5)  # a sample doesn't depend on its batch


def tiny(method="pigdm", solver=None, asked=None, **kwargs):
    sde = vp()
    prior = analytic.correlated_gaussian_denoiser(sde, MEAN, np.eye(2))
    asked = problem(2, 0.0) if asked is None else asked
    return solve_inverse_problem(
        solver or ddim(), sde, prior, jnp.zeros((2, 2)), time_grid(sde, 3), asked, None, method, **kwargs
    )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: tiny("pigd"), "unknown method 'pigd'.*Did you mean 'pigdm'"),
        (lambda: tiny(sigma=1.0), "'pigdm' has no argument 'sigma'.*It takes sigma_data"),
        (lambda: tiny(sigma_data=0.0), "expected sigma_data > 0"),
        (lambda: tiny("repaint", repeats=0), "expected repeats >= 1"),
        (lambda: tiny("repaint", SOLVERS["unipc"]()), "repaint changes x between steps"),
        (lambda: tiny("dps", SOLVERS["unipc"]()), "dps changes x between steps"),
        (lambda: tiny("dps", step_size=-1.0), "expected step_size > 0"),
        (lambda: tiny("ddrm", eta=1.5), "expected 0 <= eta <= 1"),
        (
            lambda: tiny(asked=problem(3, 0.0)),
            r"y: expected shape \(2, 1\) for x of shape \(2, 2\), got \(3, 1\)",
        ),
        (
            lambda: tiny("pigdm", asked=Problem(operators.function(lambda x: x**2), jnp.zeros((2, 2)))),
            "needs a linear operator",
        ),
        (
            lambda: tiny("ddrm", asked=Problem(operators.Operator(lambda x: x, lambda y: y), jnp.zeros((2, 2)))),
            "expected an operator with a known SVD",
        ),
        (
            lambda: sdedit(ddim(), vp(), None, jnp.zeros((1, 2)), np.ones(3), jax.random.key(0), 0.0),
            "0 < strength <= 1",
        ),
    ],
)
def test_invalid_inverse_problems_raise(call, words):
    with pytest.raises(UserError, match=words):
        call()


@pytest.mark.slow
def test_times_of_each_example_are_its_own():
    """As adaptive solvers of SDEs ask, t (batch,)."""
    sde = vp()
    prior = analytic.correlated_gaussian_denoiser(sde, MEAN, STD**2 * np.eye(2))
    _, told = apply_method(ddim(), prior, sde, problem(2, 0.1), "pigdm", sigma_data=STD)
    x, times = jax.random.normal(jax.random.key(0), (2, 2)), jnp.array([0.2, 0.7])
    together = told(x, times).x0
    for n in range(2):
        _, alone = apply_method(ddim(), prior, sde, problem(1, 0.1), "pigdm", sigma_data=STD)
        np.testing.assert_allclose(together[n : n + 1], alone(x[n : n + 1], times[n]).x0, atol=1e-5)


def test_pigdm_is_finite_where_alpha_vanishes():
    sde = flow()
    prior = analytic.correlated_gaussian_denoiser(sde, MEAN, STD**2 * np.eye(2))
    _, told = apply_method(ddim(), prior, sde, problem(4, 0.1), "pigdm", sigma_data=STD)
    mean, _ = analytic.gaussian_posterior(MEAN, STD**2 * np.eye(2), A, Y, 0.1)
    np.testing.assert_allclose(told(starts(sde, 4), 1.0).x0, np.broadcast_to(mean, (4, 2)), atol=5e-3)
