"""The forward SDE against its defining identities, by automatic differentiation, and against float64 near t = 0."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.errors import UserError
from score_sde.sde import (
    SDES,
    lift,
    log_snr,
    perturb,
    prior_log_prob,
    prior_sample,
    probability_flow,
    probability_flow_epsilon,
    reverse_sde,
    reverse_sde_epsilon,
    vp,
)

TIMES = np.concatenate([[1e-7, 1e-5, 1e-3], np.linspace(0.01, 1.0, 100)])


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-10)])
def test_drift_and_diffusion_are_those_of_alpha_and_sigma(name, dtype, tolerance, x64):
    """f = (d log alpha / dt) x and g^2 = d sigma^2 / dt - 2 (d log alpha / dt) sigma^2, whatever the SDE."""
    sde = SDES[name]()
    t = jnp.asarray(TIMES, dtype)
    log_alpha_slope = jax.vmap(jax.grad(lambda t: jnp.log(sde.alpha(t))))(t)
    variance_slope = jax.vmap(jax.grad(lambda t: sde.sigma(t) ** 2))(t)
    x = jnp.linspace(-2.0, 2.0, len(t)).astype(dtype)
    np.testing.assert_allclose(sde.drift(x, t), log_alpha_slope * x, rtol=tolerance)
    np.testing.assert_allclose(
        sde.diffusion(t) ** 2, variance_slope - 2 * log_alpha_slope * sde.sigma(t) ** 2, rtol=tolerance
    )


def test_vp_near_the_data_keeps_its_digits_in_float32():
    """Against the closed form in float64; 1 - exp(-B) would be wrong by 100% at t = 1e-7."""
    t = np.geomspace(1e-7, 1.0, 200)
    integral = 0.1 * t + 0.5 * (20.0 - 0.1) * t**2
    sde = vp()
    np.testing.assert_allclose(sde.sigma(jnp.asarray(t, "float32")), np.sqrt(-np.expm1(-integral)), rtol=1e-6)
    # alpha = exp(-B/2): the rounding of B, half a unit in 1e-7 of at most 5, is alpha's relative error.
    np.testing.assert_allclose(sde.alpha(jnp.asarray(t, "float32")), np.exp(-integral / 2), rtol=1e-6)


def test_vp_preserves_variance():
    sde = vp()
    np.testing.assert_allclose(sde.alpha(TIMES) ** 2 + sde.sigma(TIMES) ** 2, 1.0, rtol=1e-6)


def test_perturb_and_prior_have_the_stated_moments():
    sde = vp()
    x0 = jnp.full((20_000, 2), 1.5)
    x_t, epsilon = perturb(sde, jax.random.key(0), x0, 0.3)
    np.testing.assert_allclose(x_t, sde.alpha(0.3) * x0 + sde.sigma(0.3) * epsilon, rtol=1e-6)
    standard_error = sde.sigma(0.3) / np.sqrt(x0.size)
    assert abs(x_t.mean() - sde.alpha(0.3) * 1.5) < 4 * standard_error
    prior = prior_sample(sde, jax.random.key(1), (20_000, 2))
    assert abs(prior.std() / sde.sigma(1.0) - 1) < 4 / np.sqrt(2 * prior.size)


def test_prior_log_prob_is_scipys():
    from scipy.stats import norm

    sde = vp(beta_max=3.0)  # a prior whose width is not 1 to float32
    x = jax.random.normal(jax.random.key(0), (5, 2, 3))
    expected = norm(0, float(sde.sigma(1.0))).logpdf(np.asarray(x)).sum((1, 2))
    np.testing.assert_allclose(prior_log_prob(sde, x), expected, rtol=1e-5)


def test_log_snr_is_the_ratio():
    sde = vp()
    np.testing.assert_allclose(log_snr(sde, TIMES), np.log(sde.alpha(TIMES) ** 2 / sde.sigma(TIMES) ** 2), rtol=1e-5)


def test_score_form_and_epsilon_form_agree():
    """With score = -epsilon / sigma; the flow is the reverse SDE's drift with half its score (Song et al., eq. 13)."""
    sde = vp()
    x, t = jax.random.normal(jax.random.key(0), (7, 3)), jnp.linspace(0.1, 1.0, 7)

    def epsilon(x, t):
        return jnp.tanh(x) * lift(1 + t, x)

    def score(x, t):
        return -epsilon(x, t) / lift(sde.sigma(t), x)

    squared = lift(sde.diffusion(t) ** 2, x)
    reverse = sde.drift(x, t) - squared * score(x, t)
    flow = sde.drift(x, t) - 0.5 * squared * score(x, t)
    for drift, diffusion in (reverse_sde(sde, score), reverse_sde_epsilon(sde, epsilon)):
        np.testing.assert_allclose(drift(x, t), reverse, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(diffusion(t), sde.diffusion(t))
    for drift in (probability_flow(sde, score), probability_flow_epsilon(sde, epsilon)):
        np.testing.assert_allclose(drift(x, t), flow, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bad", [{"beta_min": 2, "beta_max": 1}, {"beta_min": 0.0}, {"beta_min": -1.0}])
def test_impossible_constants_are_refused(bad):
    with pytest.raises(UserError, match="need 0 < beta_min < beta_max"):
        vp(**bad)
