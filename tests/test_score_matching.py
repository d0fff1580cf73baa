"""The denoising loss against its closed form on Gaussian data, and the randomness of a step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.parameterization import Prediction
from score_sde.score_matching import TIME_SAMPLERS, WEIGHTINGS, denoising, make_draw
from score_sde.sde import vp

SDE, S = vp(), 0.7


def exact_denoiser(x, t):
    """For data N(0, S^2): epsilon = sigma x / (alpha^2 S^2 + sigma^2)."""
    alpha, sigma = SDE.alpha(t)[:, None], SDE.sigma(t)[:, None]
    epsilon = sigma * x / (alpha**2 * S**2 + sigma**2)
    return Prediction((x - sigma * epsilon) / alpha, epsilon)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_the_exact_denoisers_loss_is_the_irreducible_one(weighting):
    """E|E[eps | x_t] - eps|^2 = alpha^2 S^2 / (alpha^2 S^2 + sigma^2) a dimension: not zero."""
    keys = jax.random.split(jax.random.key(0))
    n, t = 40_000, 0.3
    x0, epsilon = S * jax.random.normal(keys[0], (n, 2)), jax.random.normal(keys[1], (n, 2))
    losses = denoising(exact_denoiser, SDE, x0, jnp.full(n, t), epsilon, weighting)
    signal = SDE.alpha(t) ** 2 * S**2
    weight = {"simple": 1.0, "likelihood": SDE.diffusion(t) ** 2 / SDE.sigma(t) ** 2}[weighting]
    expected = 2 * weight * signal / (signal + SDE.sigma(t) ** 2)
    assert losses.shape == (n,)
    assert abs(losses.mean() - expected) < 4 * losses.std() / np.sqrt(n)


def test_weightings_are_those_of_the_score_error():
    """simple = sigma^2 |s - grad log p(x_t | x0)|^2, likelihood = g^2 |...|^2, for any denoiser."""
    keys = jax.random.split(jax.random.key(0), 3)
    x0, epsilon, wrong = (jax.random.normal(key, (9, 4)) for key in keys)
    t = jnp.linspace(0.1, 0.9, 9)
    sigma = SDE.sigma(t)
    score_error = jnp.sum((-wrong / sigma[:, None] + epsilon / sigma[:, None]) ** 2, axis=1)
    for weighting, factor in {"simple": sigma**2, "likelihood": SDE.diffusion(t) ** 2}.items():
        losses = denoising(lambda x, t: Prediction(x, wrong), SDE, x0, t, epsilon, weighting)
        np.testing.assert_allclose(losses, factor * score_error, rtol=1e-5)


def test_a_draw_does_not_depend_on_how_the_batch_is_split():
    whole = make_draw(jax.random.key(3), 17, jnp.arange(8), 8)
    for name in TIME_SAMPLERS:
        halves = [
            TIME_SAMPLERS[name](make_draw(jax.random.key(3), 17, jnp.arange(first, first + 4), 8)) for first in (0, 4)
        ]
        np.testing.assert_array_equal(np.concatenate(halves), TIME_SAMPLERS[name](whole))
    data = jax.random.key_data(jnp.concatenate([whole.time_keys, whole.noise_keys, whole.network_keys]))
    assert len({tuple(row) for row in np.asarray(data)}) == 24  # no key twice


@pytest.mark.parametrize("name", TIME_SAMPLERS)
def test_times_are_uniform(name):
    """The first example's fraction over many steps: mean 1/2 and variance 1/12, within 4 standard errors."""
    steps = jnp.arange(4000)
    fractions = jax.vmap(lambda n: TIME_SAMPLERS[name](make_draw(jax.random.key(0), n, jnp.arange(2), 16)))(steps)
    assert fractions.min() >= 0
    assert fractions.max() < 1
    for example in fractions.T:
        assert abs(example.mean() - 0.5) < 4 * np.sqrt(1 / 12 / 4000)
        assert abs(example.var() - 1 / 12) < 4 * np.sqrt(1 / 180 / 4000)


def test_stratified_times_put_one_in_each_stratum():
    fractions = TIME_SAMPLERS["stratified"](make_draw(jax.random.key(0), 5, jnp.arange(64), 64))
    np.testing.assert_array_equal(np.sort(np.floor(np.asarray(fractions) * 64)), np.arange(64))


def test_stratified_times_lower_the_variance_of_the_loss():
    """Of a batch's mean of a smooth f(t), here g^2 / sigma^2: from var(f) / B to (f(1) - f(0))^2 / (12 B^2).

    The latter is Euler and Maclaurin's first term: the mean over a grid shifted by u is off by (u - 1/2) times
    (f(1) - f(0)) / B.
    """
    batch, draws = 32, 4000

    def f(fraction):
        t = 0.05 + 0.95 * fraction
        return (SDE.diffusion(t) / SDE.sigma(t)) ** 2

    def batch_mean(name, n):
        return jnp.mean(f(TIME_SAMPLERS[name](make_draw(jax.random.key(0), n, jnp.arange(batch), batch))))

    means = {name: jax.vmap(lambda n, name=name: batch_mean(name, n))(jnp.arange(draws)) for name in TIME_SAMPLERS}
    expected = {
        "uniform": f(np.linspace(0, 1, 10_001)).var() / batch,
        "stratified": (f(1.0) - f(0.0)) ** 2 / 12 / batch**2,
    }
    for name in TIME_SAMPLERS:  # a variance of 4000 draws is known to 4 sqrt(2 / 4000) = 9%; the next term adds 1 / B
        assert abs(means[name].var() / expected[name] - 1) < 0.09 + 1 / batch
    assert expected["stratified"] < expected["uniform"] / 3
