"""Closed forms against each other, quadrature and automatic differentiation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde import analytic
from score_sde.sde import SDES
from tests.thinned import thinned

TIMES = {"edm": (0.01, 1.0, 40.0)}


@pytest.mark.parametrize("name", thinned(SDES, "vp", "edm"))
def test_gaussian_and_mixture_agree(name, x64):
    """A mixture of one component is the Gaussian; the score of each log-density is -eps / sigma."""
    sde = SDES[name]()
    one = analytic.gaussian_denoiser(sde, 0.3, 0.7)
    mixed = analytic.mixture_denoiser(sde, [[0.3, 0.3]], [0.7])
    full = analytic.correlated_gaussian_denoiser(sde, np.full(2, 0.3), 0.49 * np.eye(2))
    x = jnp.array([[0.1, -2.0], [1.5, 0.4]])
    for t in TIMES.get(name, (0.01, 0.4, 0.9)):
        for denoiser in (mixed, full):
            np.testing.assert_allclose(denoiser(x, t).x0, one(x, t).x0, rtol=1e-9, atol=1e-10)
            np.testing.assert_allclose(denoiser(x, t).epsilon, one(x, t).epsilon, rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(mixed.log_prob(x, t), one.log_prob(x, t), rtol=1e-9)
        for exact in (one, mixed):
            score = jax.grad(lambda x, exact=exact, t=t: exact.log_prob(x, t).sum())(x)
            np.testing.assert_allclose(score, -exact(x, t).epsilon / sde.sigma(t), rtol=1e-8, atol=1e-9)


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
