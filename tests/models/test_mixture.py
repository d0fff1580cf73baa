"""Exact mixture network: comparison with closed forms for every SDE, at both ends of time, and per component."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.errors import UserError
from score_sde.models import create
from score_sde.parameterization import PREDICTIONS, make_denoiser, round_trip_prediction, score_fn
from score_sde.sde import SDES, flow, log_snr, vp
from tests import mixtures
from tests.thinned import thinned

MIXTURE = create(
    "mixture",
    means=tuple(map(tuple, mixtures.MEANS.tolist())),
    stds=tuple(mixtures.STDS.tolist()),
    weights=tuple((10 * mixtures.WEIGHTS).tolist()),
)


def network(labels=None):
    return lambda x, level: MIXTURE.apply({}, x, level, labels)


@pytest.mark.parametrize("name", thinned(SDES, "vp", "flow"))
def test_denoiser_is_exact_for_every_sde_and_prediction(name, x64):
    sde = SDES[name]()
    denoiser = make_denoiser(network(), sde, preconditioning="log_snr")
    t = jnp.linspace(0.05, 0.9, 12) * sde.t_max
    x = sde.sigma(t)[:, None] * jax.random.normal(jax.random.key(0), (12, 2))

    @jax.jit
    def evaluate(x, t):
        round_trips = [round_trip_prediction(denoiser, sde, prediction)(x, t) for prediction in PREDICTIONS]
        scores = score_fn(denoiser, sde)(x, t), mixtures.score(sde)(x, t)
        return scores, mixtures.denoiser(sde)(x, t), round_trips

    scores, expected, round_trips = evaluate(x, t)
    np.testing.assert_allclose(*scores, rtol=1e-8, atol=1e-10)
    for found in round_trips:
        np.testing.assert_allclose(found.x0, expected.x0, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(found.epsilon, expected.epsilon, rtol=1e-6, atol=1e-7)


def test_log_prob_matches_mixture_density(x64):
    sde = vp()
    t, x = jnp.full(5, 0.3), jax.random.normal(jax.random.key(0), (5, 2))
    log_prob = jax.jit(lambda level: MIXTURE.apply({}, x, level, method="log_prob"))
    density = jax.jit(partial(mixtures.log_density, x))
    np.testing.assert_allclose(log_prob(log_snr(sde, t)), density(sde.alpha(t), sde.sigma(t)), rtol=1e-10)
    np.testing.assert_allclose(log_prob(jnp.full(5, jnp.inf)), density(1.0, 0.0), rtol=1e-10)


def test_both_ends_of_time():
    """At alpha = 0, x is independent of x0, which has the mixture's mean. At sigma = 0, x is x0 and E[eps] = 0."""
    sde, x = flow(), jnp.array([[0.3, -0.4]])
    denoiser = jax.jit(make_denoiser(network(), sde, preconditioning="log_snr"))
    np.testing.assert_allclose(denoiser(x, 1.0).x0, mixtures.WEIGHTS[None] @ mixtures.MEANS, rtol=1e-5)
    np.testing.assert_allclose(denoiser(x, 1.0).epsilon, x, rtol=1e-6)
    np.testing.assert_allclose(denoiser(x, 0.0).x0, x, rtol=1e-6)
    np.testing.assert_allclose(denoiser(x, 0.0).epsilon, 0.0, atol=1e-6)


def test_labels_are_components():
    """One component is a Gaussian with x0 = mean + alpha std^2 (x - alpha mean) / variance; -1 is the mixture."""
    sde, t = vp(), jnp.full(4, 0.3)
    x = jax.random.normal(jax.random.key(0), (4, 2))
    labels = jnp.array([0, 1, 2, -1])
    denoisers = [make_denoiser(network(given), sde, preconditioning="log_snr") for given in (labels, None)]
    found, whole = jax.device_get(jax.jit(lambda: [denoiser(x, t).x0 for denoiser in denoisers])())
    alpha, sigma = sde.alpha(0.3), sde.sigma(0.3)
    for k in range(3):
        gain = alpha * mixtures.STDS[k] ** 2 / (alpha**2 * mixtures.STDS[k] ** 2 + sigma**2)
        np.testing.assert_allclose(
            found[k], mixtures.MEANS[k] + gain * (np.asarray(x[k]) - alpha * mixtures.MEANS[k]), rtol=1e-4, atol=1e-6
        )
    np.testing.assert_allclose(found[3], whole[3], rtol=1e-6)


def test_point_masses_are_allowed():
    """A mixture with std 0 has the softmax over its points as denoiser (the denoiser of empirical data)."""
    points = create("mixture", means=((-1.0,), (1.0,)), stds=(0.0, 0.0))
    x, level = jnp.array([[0.2]]), jnp.zeros(1)
    v = jax.jit(points.apply)({}, x, level)
    x0 = (x - v) / np.sqrt(2)
    np.testing.assert_allclose(x0, jnp.tanh(x * np.sqrt(0.5) / 0.5), rtol=1e-5)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"means": ((0.0,),)}, "expected means of 2 numbers, .* got .1."),
        ({"stds": (1.0, 2.0)}, "1 means, 2 stds and 0 weights"),
        ({"stds": (-1.0,)}, "expected stds >= 0"),
        ({"weights": (0.0,)}, "weights > 0"),
    ],
)
def test_invalid_parameters_raise(kwargs, words):
    with pytest.raises(UserError, match=words):
        create("mixture", **kwargs).apply({}, jnp.ones((3, 2)), jnp.zeros(3))
