"""Forward SDEs against their defining identities, by automatic differentiation, float64 and simulation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.errors import UserError
from score_sde.sde import (
    SDES,
    edm,
    flow,
    from_schedule,
    lift,
    log_snr,
    perturb,
    prior_log_prob,
    prior_sample,
    probability_flow,
    probability_flow_epsilon,
    reverse_sde,
    reverse_sde_epsilon,
    sub_vp,
    t_from_log_snr,
    time_derivative,
    ve,
    vp,
    vp_cosine,
)
from score_sde.solvers import euler_maruyama, solve
from tests import mixtures
from tests.thinned import thinned

ENDLESS = ("vp_cosine", "flow")  # alpha = 0 at t = 1: drift and diffusion are infinite there


def times(name, dtype="float64"):
    """All of the range; its ends, where drift and diffusion are finite."""
    t_max = SDES[name]().t_max
    inside = np.concatenate([[1e-7, 1e-5, 1e-3], np.linspace(0.01, 0.99, 99), 1 - np.array([1e-2, 1e-3, 1e-4])]) * t_max
    ends = [0.0] if name in ENDLESS else [0.0, t_max]
    return jnp.asarray(np.concatenate([inside, ends]), dtype)


def float64_of(t):
    """The very numbers that float32 holds, in float64: what is tested is the function, not the rounding of t."""
    return jnp.asarray(t, "float64")


@pytest.mark.parametrize("name", thinned(SDES, "vp", "ve", "flow"))
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-10)])
def test_drift_and_diffusion_are_those_of_alpha_and_sigma(name, dtype, tolerance, x64):
    """f = (d log alpha / dt) x and g^2 = d sigma^2 / dt - 2 (d log alpha / dt) sigma^2, whatever the SDE."""
    sde = SDES[name]()
    t = times(name, dtype)
    exact = float64_of(t)
    log_alpha_slope = jax.vmap(jax.grad(lambda t: jnp.log(sde.alpha(t))))(exact)
    # d sigma^2 / dt as 2 sigma sigma' would be 0 * infinity at t = 0, where sigma is sqrt(t): the limit is taken there.
    safe = jnp.where(exact == 0, 1e-14, exact)
    variance_slope = jax.vmap(jax.grad(lambda t: sde.sigma(t) ** 2))(safe)
    x = jnp.linspace(-2.0, 2.0, len(t)).astype(dtype)
    np.testing.assert_allclose(sde.drift(x, t), log_alpha_slope * x, rtol=tolerance)
    squared = variance_slope - 2 * log_alpha_slope * sde.sigma(exact) ** 2
    np.testing.assert_allclose(sde.diffusion(t) ** 2, squared, rtol=tolerance, atol=1e-12)


@pytest.mark.parametrize("name", SDES)
def test_alpha_and_sigma_keep_their_digits_in_float32(name, x64):
    """To 1e-6 over the whole range and near both ends, against the formulas of the design in float64."""
    sde = SDES[name]()
    t32 = jnp.concatenate([jnp.asarray(np.geomspace(1e-7, 1.0, 200), "float32") * sde.t_max, times(name, "float32")])
    t = np.asarray(t32, np.float64)
    b = 0.1 * t + 0.5 * 19.9 * t**2
    k, shift = np.pi / 2 / 1.008, np.pi / 2 / 1.008 * 0.008
    alpha, sigma = {
        "vp": lambda: (np.exp(-b / 2), np.sqrt(-np.expm1(-b))),
        "sub_vp": lambda: (np.exp(-b / 2), -np.expm1(-b)),
        "vp_cosine": lambda: (
            np.sin(k * (1 - t)) / np.cos(shift),
            np.sqrt(np.sin(k * t) * np.sin(k * t + 2 * shift)) / np.cos(shift),
        ),
        "ve": lambda: (1.0 + 0 * t, 0.01 * 5000.0**t),
        "edm": lambda: (1.0 + 0 * t, t),
        "flow": lambda: (1 - t, t),
    }[name]()
    assert sde.alpha(t32).dtype == sde.sigma(t32).dtype == jnp.float32
    np.testing.assert_allclose(sde.alpha(t32), alpha, rtol=1e-6)
    np.testing.assert_allclose(sde.sigma(t32), sigma, rtol=1e-6)


def test_where_variance_is_preserved():
    t = jnp.linspace(0, 1, 101)
    for sde in (vp(), vp_cosine()):
        np.testing.assert_allclose(sde.alpha(t) ** 2 + sde.sigma(t) ** 2, 1.0, rtol=1e-6)
    assert (sub_vp().sigma(t[1:]) < vp().sigma(t[1:])).all()


def test_the_cosine_sde_is_the_limit_of_the_cosine_chain(x64):
    """abar(t) = cos^2((t + s)/(1 + s) pi/2) / cos^2(s/(1 + s) pi/2) (Nichol and Dhariwal 2021, eq. 17)."""
    t = np.linspace(0, 1, 101)
    abar = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(vp_cosine().alpha(jnp.asarray(t)) ** 2, abar, atol=1e-15)


@pytest.mark.parametrize("name", thinned(SDES, "vp", "edm"))
def test_simulated_paths_have_the_marginals_moments(name):
    """20,000 paths from x0 = 1.5 by Euler-Maruyama: mean alpha x0, variance sigma^2, within 4 standard errors.

    Steps are equal in sqrt(t) (edm, whose g grows from 0) or in t; their bias, below 1e-3 of the moment, is within
    that.
    """
    sde, n, x0, num_steps = SDES[name](), 20_000, 1.5, 2000
    end = 0.9 * sde.t_max
    grid = jnp.linspace(0, end**0.5, num_steps + 1) ** 2 if name == "edm" else jnp.linspace(0, end, num_steps + 1)

    def step(x, interval):
        i, t, t_next = interval
        z = jax.random.normal(jax.random.fold_in(jax.random.key(0), i), x.shape)
        return x + sde.drift(x, t) * (t_next - t) + sde.diffusion(t) * jnp.sqrt(t_next - t) * z, None

    start = x0 + sde.sigma(0.0) * jax.random.normal(jax.random.key(1), (n,))  # ve has noise at t = 0
    x = jax.lax.scan(step, start, (jnp.arange(num_steps), grid[:-1], grid[1:]))[0]
    sigma = float(sde.sigma(end))
    assert abs(x.mean() - sde.alpha(end) * x0) < 4 * sigma / np.sqrt(n)
    assert abs(x.var() / sigma**2 - 1) < 4 * np.sqrt(2 / n)


@pytest.mark.parametrize("name", thinned(SDES, "vp"))
def test_the_marginals_of_the_reverse_processes_are_the_datas(name):
    """With a mixture's exact score, from the prior: the sliced Wasserstein distance to data is that of two data
    samples.

    Both run on a grid even in log-SNR, between 1e-4 of the noise and 1e-3 of the signal.
    """
    sde, n, num_steps = SDES[name](), 4000, 2000
    levels = np.linspace(max(-14.0, log_snr(sde, sde.t_max)), min(9.2, log_snr(sde, sde.t_min)), num_steps + 1)
    grid = np.asarray(t_from_log_snr(sde, levels), np.float64)
    first, second = mixtures.draw(n, 1), mixtures.draw(n, 2)
    allowed = 1.5 * mixtures.sliced_wasserstein(first, second)
    x = sde.sigma(grid[0]) * jax.random.normal(jax.random.key(0), (n, 2))

    result = solve(euler_maruyama(), sde, mixtures.denoiser(sde), x, grid, jax.random.key(1)).x
    assert mixtures.sliced_wasserstein(result, first) < allowed

    drift = probability_flow(sde, mixtures.score(sde))

    def heun(x, interval):
        t, t_next = interval
        h, k = t_next - t, drift(x, t)
        return x + 0.5 * h * (k + drift(x + h * k, t_next)), None

    ends = jnp.asarray(grid[::5], "float32")
    result = jax.lax.scan(heun, x, (ends[:-1], ends[1:]))[0]
    assert mixtures.sliced_wasserstein(result, first) < allowed
    assert mixtures.sliced_wasserstein(result * 1.2, first) > allowed  # which is not lenient


def test_perturb_and_prior_have_the_stated_moments():
    sde = vp()
    x0 = jnp.full((20_000, 2), 1.5)
    x_t, epsilon = perturb(sde, jax.random.key(0), x0, 0.3)
    np.testing.assert_allclose(x_t, sde.alpha(0.3) * x0 + sde.sigma(0.3) * epsilon, rtol=1e-6)
    standard_error = sde.sigma(0.3) / np.sqrt(x0.size)
    assert abs(x_t.mean() - sde.alpha(0.3) * 1.5) < 4 * standard_error
    for sde in (vp(), ve(), edm()):
        prior = prior_sample(sde, jax.random.key(1), (20_000, 2))
        assert abs(prior.std() / sde.sigma(sde.t_max) - 1) < 4 / np.sqrt(2 * prior.size)


@pytest.mark.parametrize("sde", [vp(beta_max=3.0), ve(), edm(), flow()])
def test_prior_log_prob_is_scipys(sde):
    from scipy.stats import norm

    x = jax.random.normal(jax.random.key(0), (5, 2, 3))
    expected = norm(0, float(sde.sigma(sde.t_max))).logpdf(np.asarray(x)).sum((1, 2))
    np.testing.assert_allclose(prior_log_prob(sde, x), expected, rtol=1e-5)


CUSTOM = {
    # Two with no closed form: a polynomial flow, and vp_cosine by its two functions.
    "power": lambda: from_schedule(lambda t: 1 - t**3, lambda t: t**1.5, 1e-3, 1.0),
    "cosine": lambda: from_schedule(vp_cosine().alpha, vp_cosine().sigma, 1e-3, 1.0),
    "vp": lambda: from_schedule(vp().alpha, vp().sigma, 1e-3, 1.0),
}


@pytest.mark.parametrize("name", thinned([*SDES, *CUSTOM], "vp", "flow", "power"))
def test_log_snr_falls_at_the_rate_of_the_likelihood_weighting_and_has_an_inverse(name, x64):
    sde = (SDES | CUSTOM)[name]()
    t = jnp.geomspace(1e-6, 0.999, 200) * sde.t_max
    level = log_snr(sde, t)
    np.testing.assert_allclose(level, np.log(sde.alpha(t) ** 2 / sde.sigma(t) ** 2), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(
        time_derivative(lambda t: -log_snr(sde, t), t), (sde.diffusion(t) / sde.sigma(t)) ** 2, rtol=1e-8
    )
    np.testing.assert_allclose(t_from_log_snr(sde, level), t, rtol=1e-9, atol=1e-9 if name == "ve" else 0)
    inverse_slope = jax.vmap(jax.grad(lambda level: t_from_log_snr(sde, level)))(level)
    np.testing.assert_allclose(inverse_slope, -((sde.sigma(t) / sde.diffusion(t)) ** 2), rtol=1e-7)


@pytest.mark.parametrize("name", [*SDES, *CUSTOM])
def test_the_inverse_keeps_its_digits_in_float32(name):
    """A time is known as well as the log-SNR tells it: the rounding of log-SNR, 1e-6 at 16, times |dt / d log-SNR|."""
    sde = (SDES | CUSTOM)[name]()
    t = np.geomspace(1e-5, 0.999, 100).astype("float32") * np.float32(sde.t_max)
    found = np.asarray(t_from_log_snr(sde, log_snr(sde, t)), np.float64)
    rate = np.asarray((sde.sigma(t) / sde.diffusion(t)) ** 2)
    assert (np.abs(found - t) <= 4e-6 * rate + 5e-7 * t).all()


def test_from_schedule_has_vps_drift_and_diffusion(x64):
    sde, same = vp(), CUSTOM["vp"]()
    t, x = jnp.linspace(1e-4, 1.0, 50), jnp.linspace(-1, 1, 50)
    np.testing.assert_allclose(same.drift(x, t), sde.drift(x, t), rtol=1e-10)
    np.testing.assert_allclose(same.diffusion(t), sde.diffusion(t), rtol=1e-10)


def test_score_form_and_epsilon_form_agree():
    """With score = -epsilon / sigma; the flow is the reverse SDE's drift with half its score (Song et al., eq. 13)."""
    for sde in (vp(), flow()):
        x, t = jax.random.normal(jax.random.key(0), (7, 3)), jnp.linspace(0.1, 0.9, 7)

        def epsilon(x, t):
            return jnp.tanh(x) * lift(1 + t, x)

        def score(x, t, sde=sde):
            return -epsilon(x, t) / lift(sde.sigma(t), x)

        squared = lift(sde.diffusion(t) ** 2, x)
        reverse = sde.drift(x, t) - squared * score(x, t)
        halved = sde.drift(x, t) - 0.5 * squared * score(x, t)
        for drift, diffusion in (reverse_sde(sde, score), reverse_sde_epsilon(sde, epsilon)):
            np.testing.assert_allclose(drift(x, t), reverse, rtol=1e-5, atol=1e-5)
            np.testing.assert_array_equal(diffusion(t), sde.diffusion(t))
        for drift in (probability_flow(sde, score), probability_flow_epsilon(sde, epsilon)):
            np.testing.assert_allclose(drift(x, t), halved, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SDES)
def test_coefficients_have_the_shape_of_t(name):
    sde = SDES[name]()
    for t in (0.3, jnp.float32(0.3), jnp.full(4, 0.3)):
        for function in (sde.alpha, sde.sigma, sde.diffusion, lambda t, sde=sde: log_snr(sde, t)):
            assert jnp.shape(function(t)) == jnp.shape(t)
            assert jnp.result_type(function(t)) == jnp.float32
    x = jnp.ones((4, 2, 3))
    assert sde.drift(x, jnp.full(4, 0.3)).shape == x.shape


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: vp(beta_min=2, beta_max=1), "vp: need 0 < beta_min < beta_max"),
        (lambda: vp(beta_min=0.0), "vp: need 0 < beta_min < beta_max"),
        (lambda: sub_vp(beta_min=-1.0), "sub_vp: need 0 < beta_min < beta_max"),
        (lambda: ve(sigma_min=60), "ve: expected 0 < sigma_min < sigma_max"),
        (lambda: edm(sigma_min=0.0), "edm: expected 0 < sigma_min < sigma_max"),
        (lambda: vp_cosine(s=0.0), "expected s > 0"),
        (lambda: from_schedule(jnp.cos, jnp.sin, 1.0, 0.5), "expected 0 <= t_min < t_max"),
        (lambda: from_schedule(lambda t: 1.0, lambda t: (t - 0.5) ** 2 + 0.1, 0.0, 1.0), "increase at t = 0.0"),
    ],
)
def test_impossible_constants_are_refused(call, words):
    with pytest.raises(UserError, match=words):
        call()


@pytest.mark.parametrize("name", thinned(SDES, "vp", "edm", "flow"))
@pytest.mark.parametrize("kind", [float, np.float64, np.float32, np.array])
def test_functions_take_numbers_of_every_kind(name, kind):
    """At both ends too: where g is infinite it is inf, without a division of Python's."""
    sde = SDES[name]()
    for t in (0.0, sde.t_min, sde.t_max):
        for function in (sde.alpha, sde.sigma, sde.diffusion, lambda t, sde=sde: sde.drift(jnp.ones((1, 2)), t)):
            with np.errstate(all="raise"):
                np.testing.assert_allclose(function(kind(t)), function(jnp.float32(t)), rtol=1e-6)
    level = kind(2)  # an integer, of `np.array`
    np.testing.assert_allclose(sde.t_from_log_snr(level), t_from_log_snr(sde, 2.0), rtol=1e-6)
