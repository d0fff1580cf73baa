"""The discrete chain against Bayes' rule, the true likelihood of Gaussian data, and the SDE it passes into."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from score_sde.ddpm import (
    SCHEDULES,
    coefficients,
    cosine_schedule,
    discretized_normal_log_prob,
    hybrid_loss,
    linear_schedule,
    make_schedule,
    normal_kl,
    q_posterior,
    q_sample,
    simple_loss,
    time_to_timestep,
    timestep_to_time,
    to_sde,
    variational_bound,
    vlb_term,
)
from score_sde.errors import UserError
from score_sde.sde import log_snr, t_from_log_snr, vp
from tests.thinned import thinned


def test_the_chain_converges_to_vp_at_rate_one_over_n(x64):
    """beta_i = beta(i/N)/N: the largest difference from vp's alpha at t = i/N falls as 1/N, by least squares."""
    sde, numbers, errors = vp(), np.array([250, 500, 1000, 2000, 4000]), []
    for number in numbers:
        t = np.arange(1, number + 1) / number
        schedule = make_schedule((0.1 + 19.9 * t) / number)
        errors.append(np.abs(np.sqrt(schedule.alphas_cumprod) - sde.alpha(t)).max())
    slope = np.polyfit(np.log(numbers), np.log(errors), 1)[0]
    assert abs(slope + 1) < 0.05
    assert errors[2] < 0.005  # at N = 1,000


def test_schedules_are_those_of_the_papers():
    linear, cosine = linear_schedule(), cosine_schedule()
    np.testing.assert_allclose(linear.betas, np.linspace(1e-4, 0.02, 1000), rtol=1e-6)
    np.testing.assert_allclose(linear.alphas_cumprod, np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)), rtol=1e-6)
    f = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(cosine.alphas_cumprod[:-1], (f[1:] / f[0])[:-1], rtol=1e-5)
    assert cosine.betas[-1] == np.float32(0.999)


@pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES)
def test_coefficients_keep_their_digits_in_float32(make, x64):
    """Against float64: 1 - abar_0 = beta_0 = 1e-4 would have 4 digits left in float32."""
    exact = coefficients(make())
    single = coefficients(jax.tree.map(lambda v: v.astype("float32"), make()))
    for name, found, expected in zip(exact._fields, single, exact, strict=True):
        assert found.dtype == jnp.float32
        # beta near 1 (the cosine chain's end) carries its rounding, 3e-8 / (1 - beta), into sqrt(1 - beta).
        last = 10 if make is cosine_schedule else 0
        np.testing.assert_allclose(found[: 1000 - last], expected[: 1000 - last], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("make", [lambda: linear_schedule(20, 0.01, 0.3), lambda: cosine_schedule(20)])
def test_the_posterior_is_bayes_rule(make, x64):
    """p(x_{n-1} | x_n, x0) on a grid: likelihood times prior, normalised, against the closed form's moments."""
    schedule, x0, x_n = make(), 0.4, -0.3
    grid = np.linspace(-6, 6, 60_001)
    posterior = jax.jit(partial(q_posterior, schedule))
    for n in (1, 5, 18):
        signal, variance = schedule.alphas_cumprod[n - 1] ** 0.5, 1 - schedule.alphas_cumprod[n - 1]
        prior = stats.norm(signal * x0, variance**0.5).pdf(grid)
        likelihood = stats.norm(np.sqrt(1 - schedule.betas[n]) * grid, schedule.betas[n] ** 0.5).pdf(x_n)
        weight = prior * likelihood / np.sum(prior * likelihood)
        mean = np.sum(weight * grid)
        found_mean, found_log_variance = posterior(np.full((1, 1), x0), np.full((1, 1), x_n), np.array([n]))
        np.testing.assert_allclose(found_mean[0, 0], mean, rtol=1e-8)
        np.testing.assert_allclose(np.exp(found_log_variance[0]), np.sum(weight * (grid - mean) ** 2), rtol=1e-6)
    first_mean, first_log_variance = posterior(np.full((1, 1), x0), np.full((1, 1), x_n), np.array([0]))
    np.testing.assert_allclose(first_mean[0, 0], x0, rtol=1e-12)  # x_{-1} is x0
    np.testing.assert_allclose(first_log_variance, np.log(coefficients(schedule).posterior_variance[1:2]))


def test_q_sample_and_the_simple_loss():
    schedule = linear_schedule()
    x0, epsilon = jax.random.normal(jax.random.key(0), (2, 5, 3))
    n = jnp.array([0, 10, 200, 700, 999])
    x_n = q_sample(schedule, x0, n, epsilon)
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[np.asarray(n)][:, None]
    np.testing.assert_allclose(x_n, np.sqrt(abar) * x0 + np.sqrt(1 - abar) * epsilon, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(simple_loss(lambda x, n: epsilon, schedule, x0, n, epsilon), 0.0)
    losses = simple_loss(lambda x, n: epsilon + x_n, schedule, x0, n, epsilon)
    np.testing.assert_allclose(losses, jnp.sum(x_n**2, axis=1), rtol=1e-5)


decoder_log_prob = jax.jit(discretized_normal_log_prob)


@pytest.mark.parametrize("std", [0.003, 0.05, 2.0])
@pytest.mark.parametrize("mean", thinned((-1.5, -0.99, 0.1, 1.0), -0.99, 1.0))
def test_the_decoder_sums_to_one_over_the_levels(mean, std):
    values = jnp.linspace(-1, 1, 256)
    log_prob = np.asarray(decoder_log_prob(values, jnp.float32(mean), jnp.log(jnp.float32(std))))
    np.testing.assert_allclose(np.exp(np.asarray(log_prob, np.float64)).sum(), 1.0, rtol=2e-5)
    middle = (np.asarray(values[1:], np.float64) + np.asarray(values[:-1], np.float64)) / 2
    edges = np.concatenate([[-np.inf], middle, [np.inf]])
    left, right = (edges - mean) / std, (mean - edges) / std  # the tail on the left keeps its digits
    exact = np.where(edges[1:] < mean, np.diff(stats.norm.cdf(left)), -np.diff(stats.norm.cdf(right)))
    sure = exact > 1e-30
    np.testing.assert_allclose(log_prob[sure], np.log(exact[sure]), rtol=2e-3, atol=2e-3)


def test_the_decoder_has_a_finite_gradient_however_wrong_the_mean_is():
    @jax.jit
    @partial(jax.value_and_grad, argnums=(0, 1))
    def total_and_gradients(mean, log_std):
        return jnp.sum(discretized_normal_log_prob(jnp.array([-1.0, 0.5, 1.0]), mean, log_std))

    for mean in (-300.0, 0.0, 300.0):
        value, gradients = total_and_gradients(jnp.float32(mean), jnp.float32(-5.0))
        assert np.isfinite(value)
        assert np.isfinite(gradients).all()


def test_normal_kl_is_the_integral(x64):
    grid = np.linspace(-20, 20, 200_001)
    p, q = stats.norm(0.3, np.exp(-0.2)), stats.norm(-0.5, np.exp(0.4))
    expected = np.trapezoid(p.pdf(grid) * (p.logpdf(grid) - q.logpdf(grid)), grid)
    np.testing.assert_allclose(normal_kl(0.3, -0.4, -0.5, 0.8), expected, rtol=1e-8)


STD = 0.3


def exact_epsilon(schedule):
    """E[eps | x_n] for data N(0, STD^2)."""

    def epsilon_fn(x, n):
        abar = schedule.alphas_cumprod[n][:, None]
        return jnp.sqrt(1 - abar) * x / (abar * STD**2 + 1 - abar)

    return epsilon_fn


@pytest.mark.slow
def test_the_bound_on_gaussian_data_is_tight(x64):
    """Data N(0, 0.3^2) rounded to 256 levels, exact eps, N = 1,000: above the true -log p, by less than 1%.

    The mean over 4,096 values of the bound's one-draw terms; 4 standard errors of the difference are allowed for.
    """
    levels = np.linspace(-1, 1, 256)
    log_p = np.asarray(discretized_normal_log_prob(jnp.asarray(levels), 0.0, jnp.log(STD)))
    index = np.random.default_rng(0).choice(256, 4096, p=np.exp(log_p) / np.exp(log_p).sum())
    x0, nll = jnp.asarray(levels[index])[:, None], -log_p[index]
    schedule = linear_schedule()
    bound = jax.jit(lambda x0: variational_bound(exact_epsilon(schedule), schedule, x0, jax.random.key(0)))(x0)
    assert bound.transitions.shape == (4096, 999)
    total = np.asarray(bound.prior + bound.transitions.sum(1) + bound.decoder)
    difference = total - nll
    error = difference.std() / 64
    assert difference.mean() > -4 * error
    assert difference.mean() < 0.01 * nll.mean() + 4 * error
    assert error < 0.005 * nll.mean()  # so that it says something
    assert bound.prior.mean() < 1e-4  # alpha_T is 0.006
    # In bits a dimension, of images: the same terms over d log 2.
    short = linear_schedule(5)

    @jax.jit
    def totals(x0):
        bits, nats = (
            variational_bound(exact_epsilon(short), short, x0, jax.random.key(0), flag) for flag in (True, False)
        )
        return bits.total, nats.total

    bits, nats = totals(x0[:4])
    np.testing.assert_allclose(bits, nats / np.log(2))


@pytest.mark.slow
def test_the_learned_variance_spans_from_the_posteriors_to_beta(x64):
    """v = 1 is the bound with variance beta; v = -1 that with the posterior's; hybrid adds T times the term."""
    schedule = linear_schedule(50, 1e-3, 0.2)
    x0 = jnp.round(127.5 * jnp.tanh(jax.random.normal(jax.random.key(0), (6, 4)))) / 127.5
    n = jnp.array([0, 1, 2, 10, 30, 49])
    epsilon = jax.random.normal(jax.random.key(1), x0.shape)
    x_n = q_sample(schedule, x0, n, epsilon)
    predicted = 0.9 * epsilon
    large = vlb_term(schedule, x0, x_n, n, predicted)
    np.testing.assert_allclose(vlb_term(schedule, x0, x_n, n, predicted, jnp.ones_like(x0)), large, rtol=1e-10)
    small = vlb_term(schedule, x0, x_n, n, predicted, -jnp.ones_like(x0))
    c = coefficients(schedule)
    mean, log_variance = q_posterior(schedule, x0, x_n, n)
    x0_hat = (x_n - c.noise[n][:, None] * predicted) / c.signal[n][:, None]
    gap = mean - q_posterior(schedule, x0_hat, x_n, n)[0]
    np.testing.assert_allclose(small[1:], 0.5 * np.sum(gap**2 / np.exp(log_variance)[:, None], axis=1)[1:], rtol=1e-9)

    def loss(scale, v):
        return jnp.sum(hybrid_loss(lambda x, n: (scale * epsilon, v), schedule, x0, n, epsilon, 0.01, levels=256))

    v = jnp.full_like(x0, 0.3)
    expected = jnp.sum(0.01 * epsilon**2) + 0.01 * 50 * jnp.sum(vlb_term(schedule, x0, x_n, n, predicted, v))
    np.testing.assert_allclose(loss(0.9, v), expected, rtol=1e-9)
    # The bound's term trains v and leaves eps to L_simple (Nichol and Dhariwal 2021, Section 3.1).
    np.testing.assert_allclose(jax.grad(loss)(0.9, v), jnp.sum(-0.2 * epsilon**2), rtol=1e-9)
    assert np.abs(jax.grad(loss, argnums=1)(0.9, v)).min() > 0


@pytest.mark.parametrize("v", [-1.0, 1.0])
def test_decoder_term_vanishes_for_perfect_epsilon(v):
    """A pixel of 17 levels is 0.0625 from its level's ends, more than six standard deviations of the first step."""
    x0 = jnp.asarray(np.random.default_rng(0).integers(0, 17, (32, 64)) / 8 - 1, "float32")
    epsilon, n = jax.random.normal(jax.random.key(1), x0.shape), jnp.zeros(32, int)
    schedule = linear_schedule()

    @jax.jit
    def compute_terms(x0, n, epsilon):
        x_n = q_sample(schedule, x0, n, epsilon)
        return vlb_term(schedule, x0, x_n, n, epsilon, jnp.full_like(x0, v), levels=17)

    terms = compute_terms(x0, n, epsilon)
    np.testing.assert_allclose(terms, 0.0, atol=64 * 1e-8)  # nats


@pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES)
def test_the_sde_passes_through_the_chain(make):
    """alpha(n / (T-1))^2 = abar_n to float32, monotone between, and its inverse finds the steps."""
    schedule = make()
    sde, n = to_sde(schedule), np.arange(1000)
    t = jnp.asarray(timestep_to_time(schedule, n), "float32")
    with jax.enable_x64(True):
        exact = make()
        abar, variance = np.asarray(exact.alphas_cumprod), np.asarray(coefficients(exact).noise)
    # the rounding of t moves B by beta(t) * 3e-8 * 999, of alpha^2 that share; 1e-5 up to where beta nears 1
    kept = n < 990
    np.testing.assert_allclose(sde.alpha(t[kept]) ** 2, abar[kept], rtol=1e-4)
    np.testing.assert_allclose(sde.sigma(t[kept]), variance[kept], rtol=2e-5)
    between = jnp.linspace(0, 1, 3001)
    assert (np.diff(log_snr(sde, between)) < 0).all()
    np.testing.assert_allclose(t_from_log_snr(sde, log_snr(sde, t)), t, atol=2e-6)
    np.testing.assert_array_equal(time_to_timestep(schedule, t), n)
    counts = np.bincount(time_to_timestep(schedule, jnp.linspace(0, 1, 100_001)), minlength=1000)
    assert abs(counts - 100).max() <= 2  # equally likely


def test_the_linear_chain_is_vp_to_one_over_n():
    """The same betas: alpha(t) differs by O(1/N); drift and diffusion stay those of a variance-preserving process."""
    chain, sde, t = to_sde(linear_schedule()), vp(), jnp.linspace(0.01, 1.0, 200)
    np.testing.assert_allclose(chain.alpha(t), sde.alpha(t), atol=0.006)
    np.testing.assert_allclose(chain.diffusion(t) ** 2, -2 * chain.drift(jnp.ones_like(t), t), rtol=2e-3)


@pytest.mark.parametrize("betas", [[0.5, 1.0], [0.0, 0.1], [0.1]])
def test_impossible_betas_are_refused(betas):
    with pytest.raises(UserError, match=r"betas in \(0, 1\)"):
        make_schedule(betas)
