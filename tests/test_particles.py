"""Weighted particles against closed forms: Gaussians, mixtures by quadrature, linear measurements and rewards."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde import operators
from score_sde.analytic import correlated_gaussian_denoiser, gaussian_denoiser, gaussian_posterior, mixture_denoiser
from score_sde.conditioned import conditioned
from score_sde.errors import UserError
from score_sde.inverse import Problem, measurement_potential, solve_inverse_problem
from score_sde.model import DiffusionModel
from score_sde.models import create
from score_sde.particles import (
    effective_sample_size,
    log_weight_increment,
    product,
    solve_weighted,
    systematic_resample,
    tilted,
)
from score_sde.sampling import Guidance, InverseTask, _sample_weighted, check_sampling, sample, weighted_target
from score_sde.sde import SDES, prior_sample
from score_sde.solvers import (
    adaptive,
    ancestral,
    check_finite,
    ddim,
    dpm_solver_pp_sde,
    edm_stochastic,
    euler,
    exponential_sde,
    flow_map_steps,
    langevin,
    predictor_corrector,
    solve,
    stochastic_runge_kutta,
    time_grid,
)
from score_sde.solvers.base import CONSTRAINT_NOT_MET
from score_sde.thresholding import clip_x0, none
from tests import mixtures
from tests.thinned import thinned

N = 40_000
CONDITIONAL, UNCONDITIONAL = (1.0, 0.5), (0.0, 1.0)  # means and standard deviations
TARGETS = {
    "guidance": ([CONDITIONAL, UNCONDITIONAL], (2.0, -1.0)),  # N(8/7, 1/7)
    "annealing": ([CONDITIONAL], (1.3,)),
    "product": ([CONDITIONAL, (0.5, 0.7)], (0.6, 0.6)),
}
CASES = {f"{sde} {target}": (sde, target) for sde in ("vp", "ve", "sub_vp", "edm", "flow") for target in TARGETS}


def grid(sde, steps=400, total=1.0):
    """Exponents whose sum isn't 1 need alpha > 0 at the start, which flow has not at t_max."""
    t_max = 0.99 if total != 1.0 and float(sde.alpha(np.float32(sde.t_max))) == 0 else None
    return time_grid(sde, steps, "karras" if sde.t_max > 1 else "uniform", t_max=t_max)


def prior(sde, n=N, d=1):
    return prior_sample(sde, jax.random.key(0), (n, d))


def normal(x, mean, std):
    return np.exp(-0.5 * ((x - mean) / std) ** 2) / std / np.sqrt(2 * np.pi)


def moments(x, log_weights):
    """The weighted mean and standard deviation, and their standard errors."""
    weights = np.exp(np.asarray(log_weights, np.float64) - np.max(log_weights))
    weights, x = weights / weights.sum(), np.asarray(x, np.float64).reshape(-1)
    mean = weights @ x
    variance = weights @ (x - mean) ** 2
    errors = [np.sqrt(np.sum((weights * values) ** 2)) for values in (x - mean, (x - mean) ** 2 - variance)]
    return mean, np.sqrt(variance), errors[0], errors[1] / (2 * np.sqrt(variance))


def check(value, truth, error, slack=0.0):
    assert abs(value - truth) < 4 * error + slack, (value, truth, error)


@pytest.mark.parametrize("case", thinned(CASES, "vp guidance", "edm annealing", "flow guidance"))
def test_gaussians(case):
    """Weighted moments and E[W] = int prod p_i^w_i are within 4 standard errors; the solver has weak order 2."""
    name, target = CASES[case]
    parts, exponents = TARGETS[target]
    sde = SDES[name]()
    solver = ddim(eta=1.0) if case == "flow guidance" else dpm_solver_pp_sde(2)
    composed = product(sde, [gaussian_denoiser(sde, *part) for part in parts], exponents)
    times = grid(sde, total=sum(exponents))
    run = jax.jit(lambda x: solve_weighted(solver, sde, composed, x, times, jax.random.key(1), N, 0.0))
    solution = run(prior(sde))
    mean, std, of_mean, of_std = moments(solution.x, solution.log_weights)
    x = np.linspace(-12, 12, 100_001)
    density = np.prod([normal(x, *part) ** w for part, w in zip(parts, exponents, strict=True)], axis=0)
    integral = density.sum() * (x[1] - x[0])
    true_mean = density @ x / density.sum()
    true_std = np.sqrt(density @ (x - true_mean) ** 2 / density.sum())
    check(mean, true_mean, of_mean)
    check(std, true_std, of_std)
    weights = np.exp(np.asarray(solution.log_weights, np.float64))
    check(weights.mean(), integral, weights.std() / np.sqrt(N))
    assert np.isclose(np.log(weights.mean()), solution.log_normalizer[0], atol=1e-3)
    if target == "guidance":
        plain = np.asarray(solution.x).mean()  # nothing is resampled, so these are the samples of plain guidance
        assert abs(plain - true_mean) > 0.08 * true_mean
    assert solution.nfe == 401 * len(parts)


@pytest.mark.parametrize("solver", [dpm_solver_pp_sde(2), edm_stochastic(2.0), stochastic_runge_kutta()])
def test_resampling_keeps_the_target_for_any_stochastic_solver(solver):
    """40 populations of 500: their mean moments and normalizers are within 4 standard errors of the truth."""
    sde = SDES["vp"]()
    parts, exponents = TARGETS["guidance"]
    target = product(sde, [gaussian_denoiser(sde, *part) for part in parts], exponents)
    times = time_grid(sde, 200)
    run = jax.jit(lambda x: solve_weighted(solver, sde, target, x, times, jax.random.key(1), 500))
    solution = run(prior(sde, 20_000))
    assert solution.effective_sample_size.shape == (200, 40)
    sizes = np.asarray(solution.effective_sample_size)
    assert (sizes < 250).any() and (sizes.max(1) > 250).all()  # it resamples, and that mends the weights
    found = [
        moments(x, w)[:2]
        for x, w in zip(solution.x.reshape(40, 500), solution.log_weights.reshape(40, 500), strict=True)
    ]
    normalizers = np.exp(np.asarray(solution.log_normalizer, np.float64))
    x = np.linspace(-12, 12, 100_001)
    density = normal(x, 1.0, 0.5) ** 2 / normal(x, 0.0, 1.0)
    truths = (8 / 7, 1 / np.sqrt(7), density.sum() * (x[1] - x[0]))
    # 200 steps, and a population's own moments are off by some 1 / 500 of a variance.
    for values, truth in zip((*np.transpose(found), normalizers), truths, strict=True):
        check(np.mean(values), truth, np.std(values) / np.sqrt(40), 0.02 * truth)


@pytest.mark.slow
@pytest.mark.parametrize("dimension", [1, 2])
def test_mixtures_by_quadrature(dimension):
    """Guidance of two components against the mixture: moments of p_c^1.7 / p^0.7 on a grid."""
    sde = SDES["vp"]()
    means, stds, weights = mixtures.MEANS[:, :dimension], mixtures.STDS + 0.2, mixtures.WEIGHTS
    everything = mixture_denoiser(sde, means.tolist(), stds.tolist(), weights.tolist())
    some = mixture_denoiser(sde, means[:2].tolist(), stds[:2].tolist(), weights[:2].tolist())
    target = product(sde, [some, everything], (1.7, -0.7))
    run = jax.jit(
        lambda x: solve_weighted(dpm_solver_pp_sde(2), sde, target, x, time_grid(sde, 200), jax.random.key(1), N, 0.0)
    )
    solution = run(prior(sde, d=dimension))
    ticks = np.linspace(-3, 3, 401)
    points = np.stack(np.meshgrid(*[ticks] * dimension), -1).reshape(-1, dimension)
    at_points = jnp.asarray(points, jnp.float32)
    logs = 1.7 * some.log_prob(at_points, sde.t_min) - 0.7 * everything.log_prob(at_points, sde.t_min)
    density = np.exp(np.asarray(logs, np.float64))
    integral = density.sum() * (ticks[1] - ticks[0]) ** dimension
    for axis in range(dimension):
        truth = density @ points[:, axis] / density.sum()
        spread = np.sqrt(density @ (points[:, axis] - truth) ** 2 / density.sum())
        mean, std, of_mean, of_std = moments(solution.x[:, axis], solution.log_weights)
        check(mean, truth, of_mean)
        check(std, spread, of_std)
    found = np.exp(np.asarray(solution.log_weights, np.float64))
    check(found.mean(), integral, found.std() / np.sqrt(N))


def test_a_scale_of_one_has_equal_weights():
    sde = SDES["vp"]()
    denoisers = [gaussian_denoiser(sde, *part) for part in (CONDITIONAL, UNCONDITIONAL)]
    target = product(sde, denoisers, (1.0, 0.0))
    x, times = prior(sde, 8), time_grid(sde, 5)
    weighted, plain = jax.jit(
        lambda x: (
            solve_weighted(ancestral(), sde, target, x, times, jax.random.key(1), 4),
            solve(ancestral(), sde, denoisers[0], x, times, jax.random.key(1)),
        )
    )(x)
    np.testing.assert_array_equal(weighted.log_weights, np.zeros(8))
    np.testing.assert_array_equal(weighted.log_normalizer, np.zeros(2))
    np.testing.assert_allclose(weighted.x, plain.x, rtol=1e-6)
    np.testing.assert_allclose(weighted.effective_sample_size, np.full((5, 2), 4.0), rtol=1e-6)


def test_the_increment_is_the_feynman_kac_term():
    rng = np.random.default_rng(0)
    epsilons, exponents = jnp.asarray(rng.normal(size=(3, 5, 4)), jnp.float32), (1.5, -0.7, 0.4)
    mean = np.einsum("i,ibd->bd", exponents, epsilons)
    squares = np.einsum("i,ibd->b", exponents, np.asarray(epsilons) ** 2)
    expected = 0.5 * ((mean**2).sum(1) - squares) * (0.9 - 0.2)
    np.testing.assert_allclose(log_weight_increment(epsilons, exponents, 0.2, 0.9), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(log_weight_increment(epsilons[:1], (1.0,), 0.2, 0.9), np.zeros(5))


def test_a_systematic_resample_has_each_particle_in_proportion():
    weights = np.random.default_rng(0).dirichlet(np.full(50, 0.3))
    keys = jax.random.split(jax.random.key(0), 2000)
    indices = jax.vmap(lambda key: systematic_resample(key, jnp.log(weights.astype(np.float32)) + 3.0))(keys)
    counts = np.stack([np.bincount(row, minlength=50) for row in np.asarray(indices)])
    assert (np.abs(counts - 50 * weights) < 1 + 1e-4).all()  # rounded up or down
    np.testing.assert_allclose(counts.mean(0), 50 * weights, atol=4 * 0.5 / np.sqrt(2000))
    assert float(effective_sample_size(jnp.zeros(7))) == pytest.approx(7)
    assert float(effective_sample_size(jnp.array([0.0, -jnp.inf]))) == pytest.approx(1)


def test_resampling_sums_in_float32():
    """Equal weights in bfloat16: each index occurs exactly once."""
    indices = systematic_resample(jax.random.key(0), jnp.zeros(100_000, jnp.bfloat16))
    np.testing.assert_array_equal(indices, np.arange(100_000))
    assert float(effective_sample_size(jnp.zeros(100_000, jnp.bfloat16))) == pytest.approx(100_000, rel=1e-3)


def test_resampling_keeps_zero_weights():
    log_weights = jnp.log(jnp.array([0.0, 0.7, 0.0, 0.1, 0.1, 0.1, 0.0]))
    keys = jax.random.split(jax.random.key(0), 500)
    indices = np.asarray(jax.vmap(lambda key: systematic_resample(key, log_weights))(keys))
    assert (indices[:, [0, 2, 6]] == [0, 2, 6]).all()
    counts = np.stack([np.bincount(row, minlength=7) for row in indices])[:, [1, 3, 4, 5]]
    np.testing.assert_allclose(counts.mean(0), [2.8, 0.4, 0.4, 0.4], atol=4 * 0.5 / np.sqrt(500))
    nothing = systematic_resample(keys[0], jnp.full(3, -jnp.inf))
    np.testing.assert_array_equal(nothing, np.arange(3))
    assert float(effective_sample_size(jnp.full(3, -jnp.inf))) == 0


CONSTRAINTS = {  # reward and integral over N(0, 1)
    "step": (lambda x0: jnp.where(x0 > 0, 0.0, -jnp.inf), 0.5),
    "gradient of log 0": (lambda x0: jnp.log(jnp.where(x0 > 0, jnp.exp(-x0), 0.0)), 0.26158),  # e^0.5 F(-1)
}


@pytest.mark.parametrize("name", CONSTRAINTS)
@pytest.mark.parametrize("resample_below", thinned((0.5, 1.0), 0.5))
def test_constraint_keeps_its_normalizer(name, resample_below):
    """A potential of -inf is the weight 0, and resampling keeps its particles, which may return."""
    sde, (reward, integral) = SDES["vp"](), CONSTRAINTS[name]
    target = tilted(sde, product(sde, [gaussian_denoiser(sde, 0.0, 1.0)], [1.0]), lambda x, t, x0: reward(x0[:, 0]))
    times = time_grid(sde, 50, "log_snr")
    run = jax.jit(
        lambda x: solve_weighted(exponential_sde(), sde, target, x, times, jax.random.key(1), 64, resample_below)
    )
    solution = run(prior(sde, 6400))
    found = np.exp(np.asarray(solution.log_normalizer, np.float64))
    check(found.mean(), integral, found.std() / 10)
    assert np.isnan(solution.nonfinite_at) and np.isfinite(solution.x).all()
    assert not np.isnan(solution.log_weights).any()
    violated = np.asarray(solution.x)[:, 0] < -0.1  # at t_min, x0 differs from x by less
    assert violated.any() and (np.asarray(solution.log_weights)[violated] == -np.inf).all()


def test_unmet_constraint_has_no_sample():
    model = DiffusionModel(create("mlp", features=(8,)), SDES["vp"](), (1,))
    sde, times = model.sde, time_grid(model.sde, 4)
    base = product(sde, [gaussian_denoiser(sde, 0.0, 1.0)], [1.0])
    target = tilted(sde, base, lambda x, t, x0: jnp.where(x[:, 0] > 99, 0.0, -jnp.inf))
    solution = solve_weighted(exponential_sde(), sde, target, prior(sde, 8), times, jax.random.key(1), 4)
    assert (solution.log_normalizer == -jnp.inf).all() and np.isfinite(solution.x).all()
    np.testing.assert_array_equal(solution.effective_sample_size, np.zeros((4, 2)))
    run = lambda: _sample_weighted(  # noqa: E731
        model, exponential_sde(), target, times, jax.random.split(jax.random.key(1), 8), 4, False
    )
    with pytest.raises(UserError, match="expected a particle that meets the constraint in every population"):
        run()
    drawn = jax.jit(run)()
    assert drawn.nonfinite_at == CONSTRAINT_NOT_MET and np.isnan(drawn.x).all()
    with pytest.raises(UserError, match="all log potentials are -inf"):
        check_finite(drawn)


@pytest.mark.parametrize(("std", "leaves"), [(0.6, True), (0.1, False)])
def test_clipped_target_warns(std, leaves):
    """Without the threshold the mean is right; with it, it isn't where the target leaves [-1, 1]."""
    sde, x, times = SDES["vp"](), prior(SDES["vp"](), 3200), time_grid(SDES["vp"](), 50, "log_snr")
    base = product(sde, [gaussian_denoiser(sde, 0.4, std)], [1.0])
    precision = std**-2 + 2.0
    truth = (0.4 / std**2 + 2.0) / precision
    for threshold in (none(), clip_x0()):
        target = tilted(sde, base, lambda x, t, x0: -jnp.sum((x0 - 1.0) ** 2, -1), threshold=threshold)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            solution = solve_weighted(exponential_sde(), sde, target, x, times, jax.random.key(1), 64)
        weights = jax.nn.softmax(solution.log_weights.reshape(50, 64), axis=1)
        means = np.asarray(jnp.sum(weights * solution.x.reshape(50, 64), axis=1))
        warned = [str(warning.message) for warning in caught]
        clips = leaves and threshold(gaussian_denoiser, sde) is not gaussian_denoiser
        assert len(warned) == clips and all("within the threshold's range" in message for message in warned)
        if not clips:
            check(means.mean(), truth, means.std() / np.sqrt(50), 0.01)
        else:
            assert means.mean() < truth - 0.05
            assert float(solution.effective_sample_size.mean()) > 0.8 * 64


def test_a_population_does_not_depend_on_the_others():
    sde = SDES["vp"]()
    shifts = jnp.repeat(jnp.array([0.5, -0.5, 0.0]), 16)

    def of(rows):
        moved = conditioned(lambda x, t, mean: gaussian_denoiser(sde, mean[:, None], 0.5)(x, t), shifts[rows])
        target = product(sde, [moved, gaussian_denoiser(sde, 0.0, 1.0)], (2.0, -1.0))
        keys = jax.random.split(jax.random.key(2), 48)[rows]
        x, times = prior(sde, 48)[rows], time_grid(sde, 50)
        return solve_weighted(ancestral(), sde, target, x, times, keys, 16)

    whole, alone = (jax.jit(of)(rows) for rows in (jnp.arange(48), jnp.arange(16, 32)))
    np.testing.assert_allclose(whole.x[16:32], alone.x, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(whole.log_normalizer[1:2], alone.log_normalizer, rtol=1e-4)


COVARIANCE = np.array([[1.0, 0.8, 0.3], [0.8, 1.2, 0.1], [0.3, 0.1, 0.5]])
MEAN = np.array([0.3, -0.2, 0.5])
OPERATOR = np.array([[1.0, 0.0, 0.5]])


@pytest.mark.parametrize("name", thinned(("vp", "edm", "flow"), "vp"))
def test_twisted_particles_sample_the_posterior_of_a_correlated_gaussian(name):
    """Mean, covariance and evidence: E[W] = N(y; A m, A C A^T + noise^2), within 4 errors over 40 populations."""
    sde, y, noise = SDES[name](), np.array([2.0]), 0.4
    problem = Problem(
        operators.matrix(OPERATOR, (3,)), jnp.broadcast_to(jnp.asarray(y, jnp.float32), (20_000, 1)), noise
    )
    denoiser = correlated_gaussian_denoiser(sde, MEAN, COVARIANCE)
    solver = ddim(eta=1.0) if name == "flow" else exponential_sde()  # alpha = 0 at the start of flow

    def twisted(x):
        times = grid(sde, 200)
        return solve_inverse_problem(
            solver, sde, denoiser, x, times, problem, jax.random.key(1), "twisted", num_particles=500
        )

    solution = jax.jit(twisted)(prior(sde, 20_000, 3))
    mean, covariance = gaussian_posterior(MEAN, COVARIANCE, OPERATOR, y, noise)
    evidence = np.linalg.norm(normal(y, OPERATOR @ MEAN, np.sqrt(OPERATOR @ COVARIANCE @ OPERATOR.T + noise**2)))
    populations = zip(solution.x.reshape(40, 500, 3), solution.log_weights.reshape(40, 500), strict=True)
    found = []
    for x, log_weights in populations:
        weights = np.exp(np.asarray(log_weights) - log_weights.max())
        weights, x = weights / weights.sum(), np.asarray(x, np.float64)
        center = weights @ x
        found.append(np.concatenate([center, np.einsum("n,ni,nj->ij", weights, x - center, x - center).ravel()]))
    truth = np.concatenate([mean, covariance.ravel()])
    for value, each, error in zip(truth, np.mean(found, 0), np.std(found, 0) / np.sqrt(40), strict=True):
        check(each, value, error, 0.02)  # 200 steps of order 1, and 500 particles
    normalizers = np.exp(np.asarray(solution.log_normalizer, np.float64))
    check(normalizers.mean(), evidence, normalizers.std() / np.sqrt(40), 0.02 * evidence)


def test_twisted_particles_weigh_the_modes_of_a_mixture():
    """One coordinate is measured and two modes explain it: their shares come right, where pigdm alone does not."""
    sde = SDES["vp"]()
    means, stds, weights = np.array([[0.0, 1.0], [0.3, -1.0]]), np.array([0.3, 0.2]), np.array([0.3, 0.7])
    y, noise = -0.1, 0.2
    problem = Problem(operators.matrix(np.array([[1.0, 0.0]]), (2,)), jnp.full((16_384, 1), y), noise)
    denoiser = mixture_denoiser(sde, means.tolist(), stds.tolist(), weights.tolist())
    target = tilted(sde, product(sde, [denoiser], [1.0]), measurement_potential(sde, problem, 0.5))
    run = jax.jit(
        lambda x: solve_weighted(exponential_sde(), sde, target, x, time_grid(sde, 200), jax.random.key(1), 256)
    )
    solution = run(prior(sde, 16_384, 2))
    first = weights[0] * normal(y, means[0, 0], np.hypot(stds[0], noise))
    truth = first / (first + weights[1] * normal(y, means[1, 0], np.hypot(stds[1], noise)))
    within = np.asarray(solution.x)[:, 1].reshape(64, 256) > 0
    shares = np.exp(np.asarray(solution.log_weights).reshape(64, 256))
    shares = (shares * within).sum(1) / shares.sum(1)
    check(shares.mean(), truth, shares.std() / 8, 0.01)
    assert shares.std() / 8 < 0.02


@pytest.mark.parametrize("gradient", thinned((True, False), True))
def test_a_quadratic_reward_tilts_a_gaussian(gradient):
    """N(m, s^2) exp(-k (x - c)^2 / 2) is a Gaussian; with the gradient and without."""
    sde, (mean, std), stiffness, center = SDES["vp"](), (0.2, 0.8), 3.0, 1.5
    reward = lambda x, t, x0: -0.5 * stiffness * jnp.sum((x0 - center) ** 2, axis=-1)  # noqa: E731
    target = tilted(sde, product(sde, [gaussian_denoiser(sde, mean, std)], [1.0]), reward, gradient)
    run = jax.jit(lambda x: solve_weighted(ancestral(), sde, target, x, time_grid(sde, 400), jax.random.key(1), 1000))
    solution = run(prior(sde))
    precision = std**-2 + stiffness
    found = [
        moments(x, w)[:2] for x, w in zip(solution.x.reshape(40, -1), solution.log_weights.reshape(40, -1), strict=True)
    ]
    for values, truth in zip(
        np.transpose(found), ((mean / std**2 + stiffness * center) / precision, precision**-0.5), strict=True
    ):
        check(np.mean(values), truth, np.std(values) / np.sqrt(40), 0.01)


def test_unsupported_solvers_raise():
    sde = SDES["vp"]()
    target = product(sde, [gaussian_denoiser(sde, *CONDITIONAL)], [1.0])
    reward = tilted(sde, target, lambda x, t, x0: x0[:, 0])
    run = lambda solver, target, particles=4: solve_weighted(  # noqa: E731
        solver, sde, target, prior(sde, 8), time_grid(sde, 4), jax.random.key(0), particles
    )
    with pytest.raises(UserError, match="expected a stochastic solver, because only noise separates the copies"):
        run(euler(), target)
    with pytest.raises(UserError, match="a potential requires a solver whose step is normal"):
        run(stochastic_runge_kutta(), reward)
    for other in (flow_map_steps(1.0), predictor_corrector(), langevin(0.1), edm_stochastic(40.0, s_noise=1.05)):
        with pytest.raises(UserError, match="which flow_map_steps, Langevin dynamics and s_noise other than 1"):
            run(other, target)
    with pytest.raises(UserError, match="a multistep method recomputes x from its history"):
        run(dpm_solver_pp_sde(2), reward)
    with pytest.raises(UserError, match="expected a multiple of 3 rows, got 8"):
        run(ancestral(), target, 3)
    with pytest.raises(UserError, match="expected exponents with a positive sum, got"):
        product(sde, [gaussian_denoiser(sde, *CONDITIONAL)], [-1.0])
    with pytest.raises(UserError, match="got 1 denoisers and 2 exponents"):
        product(sde, [gaussian_denoiser(sde, *CONDITIONAL)], [2.0, -1.0])
    with pytest.raises(UserError, match="expected a sequence of denoisers, got one"):
        run(ancestral(), product(sde, gaussian_denoiser(sde, *CONDITIONAL), [1.0]))
    denoisers = [gaussian_denoiser(sde, *CONDITIONAL)] * 2
    assert all(product(sde, denoisers, (w, 1 - w)).total == 1.0 for w in np.arange(-40, 41) / 10)


DIT = {"width": 16, "depth": 1, "heads": 2, "num_classes": 3, "label_dropout": 0.1}


@pytest.fixture(scope="module")
def guided():
    """A class-conditional network, and the options of sampling it with particles."""
    model = DiffusionModel(create("dit", **DIT), SDES["vp"](), (8, 8, 1))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: np.float32(0.1 * rng.normal(size=leaf.shape)), shapes)
    keys, labels = jax.random.split(jax.random.key(1), 3), jnp.array([0, 2, 1])
    options = {"solver": exponential_sde(), "times": time_grid(model.sde, 4), "guidance": Guidance(2.0), "particles": 4}
    return lambda rows, **changed: sample(model, params, keys[rows], labels=labels[rows], **options | changed)


@pytest.mark.slow
def test_a_sample_is_a_particle_of_its_own_population(guided):
    """Whatever the batch; NFE counts all particles and predictions."""
    whole, alone = jax.jit(lambda: guided(slice(None)))(), jax.jit(lambda: guided(slice(1, 2)))()
    np.testing.assert_allclose(whole.x[1:2], alone.x, atol=1e-4)
    assert whole.x.shape == (3, 8, 8, 1)
    assert int(whole.nfe) == 4 * 5 * 2  # particles, evaluations of a grid of 4 steps, predictions
    sizes = np.asarray(whole.effective_sample_size)
    assert sizes.shape == (3,) and ((sizes >= 1) & (sizes <= 4)).all()


def test_what_particles_are_not_sampled_with(guided):
    shapes = jax.eval_shape(lambda: guided(slice(None)))
    assert shapes.x.shape == (3, 8, 8, 1) and shapes.effective_sample_size.shape == (3,)
    refused = {
        "guidance_interval would change": {"guidance": Guidance(2.0, interval=(0.1, 0.5))},
        "threshold would change": {"threshold": clip_x0()},
        "without guidance or a task all weights are equal": {"guidance": Guidance()},
        "an adaptive solver gives each particle its own times": {"solver": adaptive(), "times": None},
        "weighted particles have no single trajectory": {"trajectory": True},
    }
    for message, changed in refused.items():
        with pytest.raises(UserError, match=message):
            jax.eval_shape(lambda of=changed: guided(slice(None), **of))


def test_the_scale_zero_is_one_bounded_unconditional_model():
    model = DiffusionModel(create("dit", **DIT), SDES["vp"](), (8, 8, 1))
    params = jax.tree.map(lambda leaf: np.asarray(leaf) + 0.1, model.init(jax.random.key(0)))
    x, t = jax.random.normal(jax.random.key(1), (2, 8, 8, 1)), jnp.full(2, 0.9)

    def predicted(labels, scale, threshold):
        target = weighted_target(model, params, jnp.array(labels), Guidance(scale), threshold=threshold)
        return target.evaluate(x, t).composed.x0

    found, expected, unbounded = jax.jit(
        lambda: (
            predicted([0, 2], 0.0, clip_x0()),
            predicted([-1, -1], 1.0, clip_x0()),
            predicted([-1, -1], 1.0, none()),
        )
    )()
    np.testing.assert_array_equal(found, expected)
    assert jnp.abs(found).max() <= 1 < jnp.abs(unbounded).max()


def test_a_task_by_another_method_has_no_weights():
    model = DiffusionModel(create("mlp", features=(8,)), SDES["vp"](), (2,))
    params = model.init(jax.random.key(0))
    keys, times = jax.random.split(jax.random.key(1), 2), time_grid(model.sde, 4)
    task = InverseTask("first", operators.matrix(np.array([[1.0, 0.0]]), (2,)), 0.1, method="pigdm")
    options = {"solver": exponential_sde(), "times": times, "measurement": jnp.ones((2, 1)), "particles": 3}
    run = lambda task: jax.eval_shape(lambda keys: sample(model, params, keys, task=task, **options), keys)  # noqa: E731
    with pytest.raises(UserError, match="the method 'pigdm' has no target density"):
        run(task)
    with pytest.raises(UserError, match="'twisted' requires several particles, got 1"):
        jax.eval_shape(
            lambda keys: sample(
                model, params, keys, task=task._replace(method="twisted"), **options | {"particles": 1}
            ),
            keys,
        )
    with pytest.raises(UserError, match="method 'twisted' has no argument 'sigma'"):
        run(task._replace(method="twisted", method_kwargs={"sigma": 1.0}))
    assert run(task._replace(method="twisted")).x.shape == (2, 2)
    with pytest.warns(UserWarning, match="got data that aren't images"):
        twisted = {"task": task._replace(method="twisted"), "particles": 3, "threshold": clip_x0()}
        check_sampling(model, solver=exponential_sde(), times=times, **twisted)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_an_exact_classifier_gives_its_tilted_density(scale):
    """p(x) p(y | x)^scale of a mixture in 1-D by quadrature; the classifier's evaluations are counted."""
    sde, means, stds, weights = SDES["vp"](), np.array([-0.8, 0.6]), np.array([0.5, 0.4]), np.array([0.6, 0.4])

    def logits(x, t):
        variance = sde.alpha(t) ** 2 * stds[None] ** 2 + sde.sigma(t) ** 2
        return jnp.log(weights)[None] - 0.5 * (x - sde.alpha(t) * means[None]) ** 2 / variance - 0.5 * jnp.log(variance)

    def log_prob(x, t):
        return jax.nn.log_softmax(logits(x, t))[:, 1]

    potential = conditioned(lambda x, t, x0, log_prob: scale * log_prob(x, t), log_prob)
    mixture = mixture_denoiser(sde, means[:, None].tolist(), stds.tolist(), weights.tolist())
    target = tilted(sde, product(sde, [mixture], [1.0]), potential)
    run = jax.jit(lambda x: solve_weighted(exponential_sde(), sde, target, x, grid(sde), jax.random.key(1), N, 0.0))
    solution = run(prior(sde))
    assert solution.nfe == 401 * 2
    x = jnp.linspace(-4, 4, 4001)[:, None]
    density = np.exp(np.asarray(mixture.log_prob(x, sde.t_min) + scale * log_prob(x, sde.t_min), np.float64))
    truth = density @ np.asarray(x)[:, 0] / density.sum()
    mean, _, error, _ = moments(solution.x, solution.log_weights)
    check(mean, truth, error, 0.005)  # order 1
    found = np.exp(np.asarray(solution.log_weights, np.float64))
    check(found.mean(), density.sum() * 8 / 4000, found.std() / np.sqrt(N), 0.005)


@pytest.mark.slow
def test_twisted_particles_take_any_operator():
    """y = x0^2 + noise z has no SVD and two modes: mean and evidence by quadrature."""
    sde, y, noise = SDES["vp"](), 0.8, 0.3
    problem = Problem(operators.function(lambda x: x**2), jnp.full((N, 1), y), noise)
    target = tilted(sde, product(sde, [gaussian_denoiser(sde, 0.3, 0.8)], [1.0]), measurement_potential(sde, problem))
    run = jax.jit(lambda x: solve_weighted(exponential_sde(), sde, target, x, grid(sde), jax.random.key(1), N, 0.0))
    solution = run(prior(sde))
    x = np.linspace(-5, 5, 10_001)
    density = normal(x, 0.3, 0.8) * normal(y, x**2, noise)
    mean, _, error, _ = moments(solution.x, solution.log_weights)
    check(mean, density @ x / density.sum(), error, 0.005)
    found = np.exp(np.asarray(solution.log_weights, np.float64))
    check(found.mean(), density.sum() * (x[1] - x[0]), found.std() / np.sqrt(N), 0.005)
