"""Closed forms against each other, quadrature and automatic differentiation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde import analytic
from score_sde.data.toys import random_basis
from score_sde.sde import SDES
from tests.thinned import thinned

TIMES = {"edm": (0.01, 1.0, 40.0)}


@pytest.mark.parametrize("name", thinned(SDES, "edm"))
def test_gaussian_and_mixture_agree(name, x64):
    """A mixture of one component is the Gaussian; the score of each log-density is -eps / sigma."""
    sde = SDES[name]()
    one = analytic.gaussian_denoiser(sde, 0.3, 0.7)
    mixed = analytic.mixture_denoiser(sde, [[0.3, 0.3]], [0.7])
    full = analytic.correlated_gaussian_denoiser(sde, np.full(2, 0.3), 0.49 * np.eye(2))
    x = jnp.array([[0.1, -2.0], [1.5, 0.4]])

    @jax.jit
    def evaluate(t):
        log_probs = [denoiser.log_prob(x, t) for denoiser in (one, mixed)]
        scores = [jax.grad(lambda x, of=of: of.log_prob(x, t).sum())(x) for of in (one, mixed)]
        return [denoiser(x, t) for denoiser in (one, mixed, full)], log_probs, scores

    for t in TIMES.get(name, (0.01, 0.4, 0.9)):
        (expected, *others), log_probs, scores = evaluate(t)
        for found in others:
            np.testing.assert_allclose(found.x0, expected.x0, rtol=1e-9, atol=1e-10)
            np.testing.assert_allclose(found.epsilon, expected.epsilon, rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(log_probs[1], log_probs[0], rtol=1e-9)
        for score in scores:
            np.testing.assert_allclose(score, -expected.epsilon / sde.sigma(t), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", thinned(SDES, "vp"))
def test_the_denoiser_in_a_subspace_is_the_gradient_of_its_density(name, x64):
    """A component with mean m and variance s^2 is N(alpha B m, (alpha s)^2 B B^T + sigma^2 I) at t."""
    sde, basis = SDES[name](), random_basis(5, 2)
    means, stds, weights = ((-0.8, -0.5), (0.7, -0.2)), (0.1, 0.3), (0.25, 0.75)
    denoiser = analytic.subspace_denoiser(sde, analytic.mixture_denoiser(sde, means, stds, weights), basis)
    t = 0.3 * sde.t_max
    alpha, sigma = sde.alpha(t), sde.sigma(t)

    def log_prob(x):
        components = [
            jnp.log(weight)
            + jax.scipy.stats.multivariate_normal.logpdf(
                x, alpha * basis @ np.array(mean), (alpha * std) ** 2 * basis @ basis.T + sigma**2 * np.eye(5)
            )
            for mean, std, weight in zip(means, stds, weights, strict=True)
        ]
        return jax.nn.logsumexp(jnp.stack(components))

    x = sigma * jax.random.normal(jax.random.key(0), (7, 5))
    found, score = jax.jit(lambda x: (denoiser(x, jnp.full(7, t)), jax.vmap(jax.grad(log_prob))(x)))(x)
    np.testing.assert_allclose(-found.epsilon / sigma, score, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(alpha * found.x0 + sigma * found.epsilon, x, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found.x0, found.x0 @ basis @ basis.T, atol=1e-12)
    clean = jnp.array([[0.3, -0.2]]) @ basis.T
    at_data = analytic.subspace_denoiser(SDES["flow"](), analytic.mixture_denoiser(SDES["flow"](), means, stds), basis)
    np.testing.assert_allclose(at_data(clean, jnp.zeros(1)).x0, clean, rtol=1e-12)
    assert np.isfinite(at_data(clean, jnp.zeros(1)).epsilon).all()


def test_mixture_density_integrates_to_one(x64):
    """On a grid, by the rectangle rule, which is exact to rounding for such smooth functions."""
    sde = SDES["vp"]()
    mixed = analytic.mixture_denoiser(sde, [[-1.0], [2.0]], [0.2, 0.5], [1.0, 3.0])
    x = np.linspace(-12.0, 12.0, 4001)[:, None]
    for t in (0.05, 0.5, 1.0):
        density = np.exp(mixed.log_prob(jnp.asarray(x), t))
        assert abs(density.sum() * (x[1, 0] - x[0, 0]) - 1) < 1e-10


def test_posterior_is_the_limit_of_no_and_exact_measurements(x64):
    mean, covariance = np.array([1.0, -1.0]), np.array([[1.0, 0.5], [0.5, 2.0]])
    operator, y = np.array([[1.0, 0.0]]), np.array([3.0])
    wide = analytic.gaussian_posterior(mean, covariance, operator, y, 1e6)
    np.testing.assert_allclose(wide[0], mean, atol=1e-10)
    np.testing.assert_allclose(wide[1], covariance, atol=1e-10)
    exact = analytic.gaussian_posterior(mean, covariance, operator, y, 0.0)
    np.testing.assert_allclose(exact[0], [3.0, -1.0 + 0.5 * 2.0])  # regression of the second on the first
    np.testing.assert_allclose(exact[1], [[0.0, 0.0], [0.0, 2.0 - 0.25]], atol=1e-12)
