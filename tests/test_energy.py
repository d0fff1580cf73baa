"""Energies and Langevin dynamics against their stationary laws."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from score_sde.energy import annealed_langevin, langevin, mala, score_from_energy
from score_sde.models import create
from score_sde.parameterization import make_denoiser
from score_sde.randomness import noise, sample_keys
from score_sde.score_matching import denoising
from score_sde.sde import vp
from tests.thinned import thinned

S = 0.7


def gaussian_energy(x):
    return 0.5 * jnp.sum(x**2, axis=1) / S**2


def test_the_normalizing_constant_drops_out():
    """E and E + log Z have the score of the normalized density, for a constant Z and for Z(t)."""
    x, t = jax.random.normal(jax.random.key(0), (5, 3)), jnp.linspace(0.1, 1, 5)

    def energy(x, t):
        return gaussian_energy(x) * t

    def shifted(x, t):
        return energy(x, t) + 7.0 + 1.5 * jnp.log(2 * jnp.pi * S**2 / t)

    def log_density(x, t):
        return jnp.sum(jax.scipy.stats.norm.logpdf(x, scale=(S / jnp.sqrt(t))[:, None]))

    score = score_from_energy(energy)(x, t)
    np.testing.assert_array_equal(score_from_energy(shifted)(x, t), score)
    np.testing.assert_allclose(jax.grad(log_density)(x, t), score, rtol=1e-5)


@pytest.mark.parametrize("h", thinned((0.1, 0.5, 1.0), 1.0))
def test_langevin_has_the_variance_of_its_discretization(h):
    """x + (h/2) score + sqrt(h) z on N(0, s^2): v = (1 - h/(2 s^2))^2 v + h, so v = s^2 / (1 - h / (4 s^2)).

    20,000 chains of 2 dimensions after 200 steps, which forget their start to (1 - h/(2 s^2))^400 < 1e-18.
    """
    n = 20_000
    end = langevin(score_from_energy(gaussian_energy), jnp.zeros((n, 2)), jax.random.key(0), h, 400)
    expected = S**2 / (1 - h / (4 * S**2))
    assert abs(end.var() / expected - 1) < 4 * np.sqrt(2 / (2 * n))


@pytest.mark.parametrize("h", thinned((0.5, 1.0), 1.0))
def test_mala_removes_the_bias(h):
    """The same step sizes, whose Langevin variance is 34% and 104% too large at h = 0.5 and 1."""
    n = 20_000
    end = mala(gaussian_energy, jnp.zeros((n, 2)), jax.random.key(0), h, 400)
    assert abs(end.x.var() / S**2 - 1) < 4 * np.sqrt(2 / (2 * n))
    kurtosis = np.mean(np.asarray(end.x, np.float64) ** 4) / np.var(end.x) ** 2
    assert abs(kurtosis - 3) < 4 * np.sqrt(24 / (2 * n))
    assert 0.3 < end.acceptance.mean() < 0.99
    assert ((end.acceptance >= 0) & (end.acceptance <= 1)).all()


def test_a_small_step_is_nearly_always_accepted_and_a_wild_one_hardly():
    x = S * jax.random.normal(jax.random.key(0), (500, 2))
    assert mala(gaussian_energy, x, jax.random.key(1), 1e-3, 50).acceptance.mean() > 0.99
    wild = mala(gaussian_energy, x, jax.random.key(1), 30.0, 50)
    assert wild.acceptance.mean() < 0.1
    assert np.isfinite(wild.x).all()


def test_a_chain_does_not_depend_on_its_batch():
    x, keys = jax.random.normal(jax.random.key(0), (6, 2)), jax.random.split(jax.random.key(1), 6)
    score = score_from_energy(gaussian_energy)
    for run in (
        lambda x, keys: langevin(score, x, keys, 0.1, 20),
        lambda x, keys: mala(gaussian_energy, x, keys, 0.5, 20).x,
        lambda x, keys: annealed_langevin(lambda x, sigma: score(x), x, keys, [1.0, 0.1], 1e-3, 10),
    ):
        compiled = jax.jit(run)
        np.testing.assert_allclose(compiled(x[2:5], keys[2:5]), compiled(x, keys)[2:5], rtol=1e-5, atol=1e-6)


MODES, WEIGHTS = np.array([[-4.0, 0.0], [4.0, 0.0]]), np.array([0.2, 0.8])


def two_modes(x, sigma, std=0.5):
    """log p of two far modes, 20% and 80%, with noise sigma."""
    variance = std**2 + sigma**2
    squares = jnp.sum((x[:, None] - MODES[None]) ** 2, axis=-1)
    return jax.nn.logsumexp(jnp.log(WEIGHTS)[None] - 0.5 * squares / variance - jnp.log(variance), axis=1)


@pytest.mark.slow
def test_annealing_finds_the_proportions_that_langevin_alone_does_not():
    """From a wide start Langevin leaves half of the chains on either side; annealed, each mode has its share.

    Annealed over 20 levels from 10 to 0.1 with 300 steps each; 4 standard errors of a share of 2,000 chains, and 0.05
    for the levels, which move on before they have settled.
    """

    def score(x, sigma):
        return jax.grad(lambda x: jnp.sum(two_modes(x, sigma)))(x)

    n = 2000
    start = 10 * jax.random.normal(jax.random.key(0), (n, 2))
    sigmas = np.geomspace(10, 0.1, 20)
    stuck = langevin(lambda x: score(x, 0.1), start, jax.random.key(1), 0.05, 6000)
    annealed = annealed_langevin(score, start, jax.random.key(1), sigmas, 0.002, 300)
    assert abs(np.mean(stuck[:, 0] > 0) - 0.5) < 4 * 0.5 / np.sqrt(n)
    assert abs(np.mean(annealed[:, 0] > 0) - 0.8) < 4 * 0.4 / np.sqrt(n) + 0.05
    right = annealed[annealed[:, 0] > 0]
    assert abs(right.std(0) / np.sqrt(0.25 + 0.01) - 1).max() < 0.1


@pytest.mark.slow
def test_an_energy_trained_by_denoising_recovers_the_ratio_between_modes():
    """Two modes of 30% and 70% in two dimensions: log p(right) - log p(left) = log(7/3) within 0.3 nats.

    At level t = 0.25, where sigma = 0.6 and the modes, 3 apart, still touch; log p is the network's energy over sigma.
    The truth is the log-density of the noised mixture.
    """
    modes, weights, std = np.array([[-1.2, 0.0], [1.2, 0.0]]), np.array([0.3, 0.7]), 0.25
    sde, model = vp(), create("energy_mlp", features=(64, 64), embedding=16)
    rng = np.random.default_rng(0)
    data = modes[rng.choice(2, 20_000, p=weights)] + std * rng.standard_normal((20_000, 2))
    data = jnp.asarray(data, "float32")
    variables = jax.jit(model.init)(jax.random.key(0), data[:1], jnp.zeros(1))
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, 3000))

    def loss(variables, key):
        keys = jax.random.split(key, 3)
        x0 = data[jax.random.randint(keys[0], (256,), 0, len(data))]
        t = jax.random.uniform(keys[1], (256,), minval=0.05, maxval=1.0)
        denoiser = make_denoiser(lambda x, level: model.apply(variables, x, level), sde)
        return jnp.mean(denoising(denoiser, sde, x0, t, noise(sample_keys(keys[2], 256), x0)))

    def step(carry, key):
        variables, state = carry
        updates, state = optimizer.update(jax.grad(loss)(variables, key), state)
        return (optax.apply_updates(variables, updates), state), None

    keys = jax.random.split(jax.random.key(1), 3000)
    (variables, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, keys))((variables, optimizer.init(variables)))

    t = jnp.float32(0.25)
    alpha, sigma = sde.alpha(t), sde.sigma(t)

    def log_density(x):
        squares = jnp.sum((x[:, None] - alpha * modes[None]) ** 2, axis=-1)
        return jax.nn.logsumexp(jnp.log(weights)[None] - 0.5 * squares / (alpha**2 * std**2 + sigma**2), axis=1)

    ends = jnp.asarray(alpha * modes, "float32")
    # epsilon = -grad_x E_net = -sigma score, so log p = E_net / sigma + constant
    energy = model.apply(variables, ends, jnp.full(2, 999 * t), method="energy") / sigma
    truth = log_density(ends)
    assert abs((energy[1] - energy[0]) - (truth[1] - truth[0])) < 0.3
    assert abs(truth[1] - truth[0]) > 0.5  # there is a difference to find
