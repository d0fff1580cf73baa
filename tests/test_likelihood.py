"""log p against closed forms: Gaussians and mixtures, whose density is known at every time."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from score_sde.errors import UserError
from score_sde.likelihood import (
    bits_per_dim,
    centered_range,
    check_continuous,
    decode,
    dequantize,
    encode,
    interpolate,
    log_likelihood,
    truncation,
)
from score_sde.models import create
from score_sde.parameterization import make_denoiser
from score_sde.sde import SDES, edm, log_snr, prior_log_prob, vp
from tests.solvers import gaussian
from tests.thinned import thinned

KEY = jax.random.key(0)
NAMES = ("vp", "sub_vp", "ve", "edm", "flow")


def mixture(dimension):
    rng = np.random.default_rng(dimension)
    means = rng.uniform(-1, 1, (3, dimension)) / np.sqrt(dimension) * 2
    return create("mixture", means=means.tolist(), stds=(0.2, 0.3, 0.5), weights=(0.5, 0.3, 0.2))


def exact_denoiser(model, sde):
    return make_denoiser(partial(model.apply, {}), sde, preconditioning="log_snr")


def exact_log_prob(model, sde, x, t):
    """log p_t(x); the network knows it of c = x / radius, radius^2 = alpha^2 + sigma^2."""

    @jax.jit
    def log_prob(x, t):
        radius = jnp.sqrt(sde.alpha(t) ** 2 + sde.sigma(t) ** 2)
        known = model.apply({}, x / radius[:, None], log_snr(sde, t), method="log_prob")
        return known - x.shape[1] * jnp.log(radius)

    return log_prob(x, np.full(len(x), t))


def data(model, sde, n):
    """Draws of x at t_min."""
    rng = np.random.default_rng(0)
    component = rng.choice(3, n, p=np.array(model.weights))
    x0 = np.array(model.means)[component]
    x0 = x0 + np.array(model.stds)[component, None] * rng.standard_normal(x0.shape)
    alpha, sigma = sde.alpha(sde.t_min), sde.sigma(sde.t_min)
    return jnp.asarray(alpha * x0 + sigma * rng.standard_normal(x0.shape))


@pytest.mark.parametrize("name", thinned(NAMES, "vp"))
@pytest.mark.parametrize("dimension", thinned((2, 16), 2))
def test_the_change_of_variables_is_exact(name, dimension, x64):
    """With the exact marginal in the prior's place log p is right to 1e-3 nats; the prior's mismatch is the rest."""
    sde, model = SDES[name](), mixture(dimension)
    x = data(model, sde, 16)
    run = jax.jit(lambda x: log_likelihood(sde, exact_denoiser(model, sde), x, None, "exact", rtol=1e-6, atol=1e-6))
    result = run(x)
    truth = exact_log_prob(model, sde, x, sde.t_min)
    # At t_max of flow alpha = 0 and the marginal is the prior itself.
    at_prior = exact_log_prob(model, sde, result.latent, min(sde.t_max, 1 - 1e-9) if name == "flow" else sde.t_max)
    np.testing.assert_allclose(at_prior + result.divergence, truth, atol=1e-3)
    np.testing.assert_allclose(result.prior, prior_log_prob(sde, result.latent), rtol=1e-12)
    np.testing.assert_allclose(result.log_prob, result.prior + result.divergence, rtol=1e-12)
    assert (result.standard_error == 0).all()


@pytest.mark.slow
def test_the_priors_mismatch_is_what_its_closed_form_says(x64):
    """Of N(0, s^2) in d dimensions: E log N(z; 0, alpha^2 s^2 + sigma^2) - E log N(z; 0, sigma^2)."""
    sde, d = vp(), 2
    model = create("mixture", means=[[0.0] * d], stds=(2.0,))
    rng = np.random.default_rng(0)
    wide = 4.0 * sde.alpha(sde.t_min) ** 2 + sde.sigma(sde.t_min) ** 2
    x = jnp.asarray(np.sqrt(wide) * rng.standard_normal((64, d)))
    result = jax.jit(lambda x: log_likelihood(sde, exact_denoiser(model, sde), x, None, "exact", rtol=1e-6, atol=1e-6))(
        x
    )
    at_prior = exact_log_prob(model, sde, result.latent, sde.t_max)
    mismatch = at_prior - result.prior
    ratio = (4.0 * sde.alpha(1.0) ** 2 + sde.sigma(1.0) ** 2) / sde.sigma(1.0) ** 2
    squares = jnp.sum(result.latent**2, axis=1) / sde.sigma(1.0) ** 2
    np.testing.assert_allclose(mismatch, -0.5 * d * np.log(ratio) + 0.5 * squares * (1 - 1 / ratio), atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_hutchinson_is_unbiased(probe):
    sde, model = vp(), mixture(16)
    x = data(model, sde, 1).astype(jnp.float32)
    many = jnp.broadcast_to(x, (4000, 16))
    denoiser = exact_denoiser(model, sde)
    exact = jax.jit(lambda x: log_likelihood(sde, denoiser, x, None, "exact", rtol=1e-4, atol=1e-4))(x).log_prob[0]
    run = jax.jit(lambda x, key: log_likelihood(sde, denoiser, x, key, rtol=1e-3, atol=1e-3, probe=probe))
    estimates = run(many, jax.random.key(0)).log_prob
    assert len(np.unique(np.asarray(estimates))) > 3000  # each with its own probe
    assert abs(estimates.mean() - exact) < 3 * estimates.std() / np.sqrt(4000) + 5e-3  # and the tolerance of the steps


@pytest.mark.slow
def test_the_reported_standard_error_is_that_of_the_probes():
    sde, model = vp(), mixture(16)
    x = data(model, sde, 1).astype(jnp.float32)
    denoiser = exact_denoiser(model, sde)
    many = jnp.broadcast_to(x, (300, 16))
    result = jax.jit(lambda x, key: log_likelihood(sde, denoiser, x, key, num_probes=8, rtol=1e-3, atol=1e-3))(
        many, jax.random.key(0)
    )
    spread = float(result.divergence.std())
    assert abs(float(jnp.sqrt(jnp.mean(result.standard_error**2))) / spread - 1) < 4 / np.sqrt(2 * 300)
    single = jax.jit(lambda x, key: log_likelihood(sde, denoiser, x, key, rtol=1e-2, atol=1e-2))(x, jax.random.key(0))
    assert np.isnan(single.standard_error).all()


@pytest.mark.slow
def test_probes_are_fixed_along_the_way():
    """Evaluations grow like tolerance^(-1/5), not without end: 100 times finer takes less than 4 times as many."""
    sde, model = vp(), mixture(16)
    x = data(model, sde, 4).astype(jnp.float32)
    denoiser = exact_denoiser(model, sde)

    def count(tolerance):
        run = jax.jit(lambda x, key: log_likelihood(sde, denoiser, x, key, rtol=tolerance, atol=tolerance).nfe)
        return int(run(x, jax.random.key(0)).max())

    counts = [count(tolerance) for tolerance in (1e-3, 1e-5)]
    assert counts[1] < 4 * counts[0] < 4 * 200


@pytest.mark.slow
def test_an_example_keeps_its_probe_in_another_batch(x64):
    sde, model = vp(), mixture(2)
    x = data(model, sde, 4)
    keys = jax.random.split(jax.random.key(0), 4)
    run = jax.jit(lambda x, key: log_likelihood(sde, exact_denoiser(model, sde), x, key, rtol=1e-3, atol=1e-3).log_prob)
    np.testing.assert_allclose(run(x[1:3], keys[1:3]), run(x, keys)[1:3], rtol=1e-9)


def test_truncation_is_a_bound_that_is_tight_for_what_the_decoder_describes(x64):
    """log p(x0) - E[log p(x) + term] is KL(q(x | x0) || p(x | x0)) with the decoder's p: small, never negative."""
    sde, d = vp(), 2
    model = create("mixture", means=[[0.3, -0.2]], stds=(0.5,))
    rng = np.random.default_rng(0)
    x0 = jnp.asarray(np.array([0.3, -0.2]) + 0.5 * rng.standard_normal((20_000, d)))
    run = jax.jit(lambda x0, key: truncation(sde, exact_denoiser(model, sde), x0, key))
    x, term = run(x0, jax.random.key(0))
    bound = exact_log_prob(model, sde, x, sde.t_min) + term
    truth = stats.norm.logpdf(x0, [0.3, -0.2], 0.5).sum(1)
    gap, error = np.mean(truth - bound), np.std(truth - bound) / np.sqrt(len(x0))
    sigma = float(sde.sigma(sde.t_min) / sde.alpha(sde.t_min))
    # The decoder N(x0_hat, sigma^2) is wider than p(x0 | x), of variance sigma^2 s^2 / (s^2 + sigma^2), s = 1/2.
    ratio = 0.25 / (0.25 + sigma**2)
    expected = 0.5 * d * (ratio - 1 - np.log(ratio))
    assert abs(gap - expected) < 4 * error
    assert expected < 1e-6


@pytest.mark.parametrize("levels", [17, 256])
def test_bits_per_dim_of_known_data(levels):
    """Pixels even over their levels have log2(levels) bits; the density of dequantized ones is 1 / width."""
    for data_range in ((-1.0, 1.0), (0.0, 1.0), centered_range(levels)):
        width = data_range[1] - data_range[0]
        log_prob = jnp.full(3, -64 * np.log(width))
        np.testing.assert_allclose(bits_per_dim(log_prob, (8, 8, 1), levels, data_range), np.log2(levels), rtol=1e-6)


def test_dequantized_pixels_fill_their_levels():
    images = jnp.arange(17, dtype=jnp.uint8)[:, None] * jnp.ones((1, 4000), jnp.uint8)
    for data_range in ((-1.0, 1.0), centered_range(17)):
        low, high = data_range
        x = dequantize(jax.random.key(0), images, 17, data_range)
        level = (np.asarray(x, np.float64) - low) / (high - low) * 17
        np.testing.assert_array_equal(np.floor(np.clip(level, 0, 16.999)), images)
        assert stats.kstest((level - np.asarray(images)).ravel(), "uniform").pvalue > 1e-3
    middle = np.mean(np.asarray(dequantize(jax.random.key(0), images, 17, centered_range(17))), axis=1)
    np.testing.assert_allclose(middle, np.arange(17) / 8 - 1, atol=4 * 0.118 / np.sqrt(12 * 4000))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vp", "edm", "flow"])
def test_encoding_and_decoding(name):
    """Round trip to 1e-3; a temperature scales the latent; in float32.

    Tolerances bound the estimate of a step's error, not the error: at 1e-5 a rare round trip is off by more than
    1e-3, which one is a matter of rounding, so there it is the 95th percentile.
    """
    sde, model = SDES[name](), mixture(2)
    denoiser = exact_denoiser(model, sde)
    x = data(model, sde, 64).astype(jnp.float32)

    def there(x, tolerance):
        return jax.jit(lambda x: encode(sde, denoiser, x, rtol=tolerance, atol=tolerance))(x)

    @partial(jax.jit, static_argnums=2)
    def back(z, temperature, tolerance=1e-5):
        return decode(sde, denoiser, z, temperature, rtol=tolerance, atol=tolerance)

    errors = [np.abs(back(there(x, tolerance), 1.0, tolerance) - x).max(1) for tolerance in (1e-5, 1e-6)]
    assert np.quantile(errors[0], 0.95) < 1e-3 and errors[1].max() < 1e-3
    z = there(x[:8], 1e-5)
    np.testing.assert_allclose(back(z, 0.5), back(0.5 * z, 1.0), atol=1e-4)


def test_interpolation():
    z0, z1 = jax.random.normal(jax.random.key(0), (2, 3, 1000))
    for kind in ("spherical", "linear"):
        path = interpolate(z0, z1, jnp.array([0.0, 0.3, 1.0]), kind)
        np.testing.assert_allclose(path[0], z0, atol=1e-5)
        np.testing.assert_allclose(path[2], z1, atol=1e-5)
    np.testing.assert_allclose(interpolate(z0, z1, jnp.array([0.3]), "linear")[0], 0.7 * z0 + 0.3 * z1, rtol=1e-5)
    a, b = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]])
    half = interpolate(a, b, jnp.array([0.5]))[0, 0]
    np.testing.assert_allclose(half, [np.sqrt(0.5), np.sqrt(0.5)], rtol=1e-6)  # on the circle
    np.testing.assert_allclose(interpolate(a, a, jnp.array([0.5]))[0], a, rtol=1e-6)  # no angle at all


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda run: run(jnp.ones((2, 2), jnp.uint8)), "dequantize"),
        (lambda run: run(jnp.round(jax.random.uniform(jax.random.key(0), (20, 64)) * 16) / 8 - 1), "got 17 values"),
        (lambda run: run(jnp.ones((2, 2)), key=None), "needs a key"),
        (lambda run: run(jnp.ones((2, 2)), num_probes=0), "num_probes >= 1"),
        (lambda run: run(jnp.ones((2, 2)), divergence="exat"), "Did you mean 'exact'"),
        (lambda run: run(jnp.ones((2, 2)), probe="gauss"), "Did you mean 'gaussian'"),
        (lambda run: run(jnp.ones((2, 2)), method="tsit"), "Did you mean 'tsit5'"),
        (lambda run: dequantize(jax.random.key(0), jnp.ones((2, 2)), 17), "dequantize: expected integers"),
        (lambda run: interpolate(jnp.ones((1, 2)), jnp.ones((1, 2)), jnp.ones(1), "sphere"), "unknown interpolation"),
    ],
)
def test_wrong_arguments_are_refused(call, words):
    def run(x, key=KEY, **kwargs):
        return log_likelihood(edm(), exact_denoiser(mixture(2), edm()), x, key, **kwargs)

    with pytest.raises(UserError, match=words):
        call(run)


def test_what_does_not_arrive_has_no_likelihood():
    sde = vp()
    x = jax.random.normal(jax.random.key(0), (2, 2))
    with pytest.raises(UserError, match="exceeded max_steps=2"):
        log_likelihood(sde, gaussian.denoiser(sde), x, divergence="exact", key=None, max_steps=2)


def test_few_images_are_seen_to_be_discrete_too():
    pixels = np.random.default_rng(0).integers(0, 17, (2, 8, 8, 1))
    with pytest.raises(UserError, match="scaled but not"):
        check_continuous(pixels / 8.0 - 1.0)
    check_continuous(np.random.default_rng(0).normal(size=(2, 8, 8, 1)))


def test_levels_that_are_none_are_refused():
    with pytest.raises(UserError, match=r"integers 0 \.\. 16, got 0 \.\. 200"):
        dequantize(jax.random.key(0), np.array([[0, 200]], np.uint8), levels=17)
    assert dequantize(jax.random.key(0), jnp.array([[0, 255]], jnp.uint8)).shape == (1, 2)  # JAX's, of all 256 levels
