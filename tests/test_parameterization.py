"""A network's output becomes the pair (x0, epsilon)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.errors import UserError
from score_sde.parameterization import (
    PREDICTIONS,
    epsilon_from_score,
    make_denoiser,
    score_fn,
    score_from_epsilon,
)
from score_sde.sde import marginal, vp


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("t", [0.2, np.linspace(0.05, 0.6, 8)], ids=["scalar t", "t a sample"])
def test_a_perfect_network_gives_back_the_pair(prediction, t):
    sde = vp()
    keys = jax.random.split(jax.random.key(0))
    x0, epsilon = (jax.random.normal(key, (8, 3, 2)) for key in keys)
    truth = {"epsilon": epsilon, "x0": x0}
    denoiser = make_denoiser(lambda x, level: truth[prediction], sde, prediction)
    pair = denoiser(marginal(sde, x0, epsilon, jnp.asarray(t)), t)
    # Dividing by alpha or sigma, at least 0.16 here, loses less than a digit of float32's 6e-8.
    np.testing.assert_allclose(pair.x0, x0, atol=1e-5)
    np.testing.assert_allclose(pair.epsilon, epsilon, atol=1e-5)


def test_the_network_sees_x_and_999_t():
    seen = {}

    def network(x, level):
        seen.update(x=x, level=level)
        return x

    x = jnp.ones((4, 2))
    make_denoiser(network, vp())(x, 0.25)
    np.testing.assert_array_equal(seen["x"], x)
    np.testing.assert_allclose(seen["level"], jnp.full(4, 999 * 0.25))


def test_the_score_of_a_gaussian():
    """Data N(0, s^2): the exact denoiser's epsilon gives the score -x / (alpha^2 s^2 + sigma^2)."""
    sde, s = vp(), 0.7

    def network(x, level):
        t = level[0] / 999
        return sde.sigma(t) * x / (sde.alpha(t) ** 2 * s**2 + sde.sigma(t) ** 2)

    x = jnp.linspace(-2, 2, 10)[:, None]
    score = score_fn(make_denoiser(network, sde), sde)(x, 0.4)
    np.testing.assert_allclose(score, -x / (sde.alpha(0.4) ** 2 * s**2 + sde.sigma(0.4) ** 2), rtol=1e-5)
    np.testing.assert_allclose(epsilon_from_score(score_from_epsilon(x, 0.3), 0.3), x, rtol=1e-6)


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match=r"known: epsilon, x0.*Did you mean 'epsilon'"):
        make_denoiser(lambda x, level: x, vp(), "epsilom")
    with pytest.raises(UserError, match=r"--config\.model\.preconditioning"):
        make_denoiser(lambda x, level: x, vp(), "epsilon", "karras")
