"""The four objectives against each other and against closed forms on Gaussians, and the weightings' identities."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.errors import UserError
from score_sde.parameterization import Prediction, from_prediction, score_fn, to_prediction
from score_sde.score_matching import OBJECTIVES, denoising, explicit, implicit, sliced
from score_sde.sde import SDES, add_noise, flow, log_snr, t_from_log_snr, vp, vp_cosine
from score_sde.weightings import WEIGHTINGS, edm, epsilon_scales, likelihood, min_snr, score_scales, sigmoid, x0_scales
from tests import mixtures
from tests.thinned import thinned

SDE, S = vp(), 0.7
ALL = np.linspace(-12, 12, 25)


def exact_denoiser(x, t):
    """For data N(0, S^2): epsilon = sigma x / (alpha^2 S^2 + sigma^2)."""
    alpha, sigma = SDE.alpha(t)[:, None], SDE.sigma(t)[:, None]
    epsilon = sigma * x / (alpha**2 * S**2 + sigma**2)
    return Prediction((x - sigma * epsilon) / alpha, epsilon)


# A parametric score: rows of x through a small random perceptron, its parameters in one vector.
def parametric(theta, x):
    first, second = theta[:16].reshape(2, 8), theta[16:32].reshape(8, 2)
    return jnp.tanh(x @ first) @ second - theta[32] * x


THETA = jax.random.normal(jax.random.key(5), (33,))


@pytest.mark.slow
def test_the_gradients_of_all_four_objectives_agree():
    """On a mixture seen through noise: each differs from the mean of the explicit one's by its Monte-Carlo error.

    Per-example gradients are paired with the explicit one's on the same draws, so the error is that of the difference.
    """
    sde, t, n = vp(), 0.3, 60_000
    keys = jax.random.split(jax.random.key(0), 3)
    x0 = jnp.asarray(mixtures.draw(n, 0), "float32")
    epsilon = jax.random.normal(keys[0], x0.shape)
    times = jnp.full(n, t)
    x = add_noise(sde, x0, epsilon, times)

    def denoiser_of(theta):
        def denoiser(x, t):
            epsilon = -sde.sigma(t)[:, None] * parametric(theta, x)
            return Prediction((x - sde.sigma(t)[:, None] * epsilon) / sde.alpha(t)[:, None], epsilon)

        return denoiser

    def truth(x):
        return mixtures.score(sde)(x, jnp.full(x.shape[0], t))

    losses = {
        "explicit": lambda theta, x, x0, epsilon, key: explicit(lambda x: parametric(theta, x), truth, x),
        "implicit": lambda theta, x, x0, epsilon, key: implicit(lambda x: parametric(theta, x), x),
        "hutchinson": lambda theta, x, x0, epsilon, key: implicit(lambda x: parametric(theta, x), x, key),
        "sliced": lambda theta, x, x0, epsilon, key: sliced(lambda x: parametric(theta, x), x, key, 2, False),
        "sliced_vr": lambda theta, x, x0, epsilon, key: sliced(lambda x: parametric(theta, x), x, key, 2),
        # simple weighting = sigma^2 |score error|^2, which halves to the explicit objective's scale
        "denoising": lambda theta, x, x0, epsilon, key: (
            denoising(denoiser_of(theta), sde, x0, jnp.full(x.shape[0], t), epsilon) / (2 * sde.sigma(t) ** 2)
        ),
    }
    sample_keys = jax.random.split(keys[1], n)

    def one(loss):
        gradient = jax.grad(lambda theta, *rows: loss(theta, *(row[None] for row in rows))[0])
        return jax.jit(jax.vmap(gradient, in_axes=(None, 0, 0, 0, 0)))(THETA, x, x0, epsilon, sample_keys)

    gradients = {name: one(loss) for name, loss in losses.items()}
    spread = {}
    for name, gradient in gradients.items():
        difference = np.asarray(gradient - gradients["explicit"], np.float64)
        error = difference.std(0) / np.sqrt(n)
        # 33 parameters in 5 comparisons: 4.5 standard errors are exceeded by chance once in 900 runs.
        assert (np.abs(difference.mean(0)) <= 4.5 * error + 1e-7).all(), name
        spread[name] = np.asarray(gradient, np.float64).var(0).sum()
    assert spread["sliced_vr"] < spread["sliced"]  # what the variance-reduced form is for
    assert spread["implicit"] < spread["hutchinson"]


@pytest.mark.slow
def test_the_constants_are_those_of_a_gaussian(x64):
    """Data N(0, s^2) in d dimensions, score -a x: explicit - implicit = E|grad log p|^2 / 2 = d / (2 s^2).

    And all three means in closed form: explicit d s^2 (a - 1/s^2)^2 / 2; implicit -a d + a^2 s^2 d / 2; and denoising
    at level sigma, |s - grad log p(x_t | x0)|^2 / 2, more than explicit by d (1/sigma^2 - 1/(s^2 + sigma^2)) / 2.
    """
    n, d, s, a, sigma = 200_000, 3, 0.7, 1.3, 0.5
    keys = jax.random.split(jax.random.key(0), 3)
    x = s * jax.random.normal(keys[0], (n, d))

    def mean_is(values, expected):
        assert abs(values.mean() - expected) < 4 * values.std() / np.sqrt(n)

    def model(x):
        return -a * x

    mean_is(explicit(model, lambda x: -x / s**2, x), d * s**2 * (a - 1 / s**2) ** 2 / 2)
    mean_is(implicit(model, x), -a * d + a**2 * s**2 * d / 2)
    mean_is(implicit(model, x, keys[1], 2), -a * d + a**2 * s**2 * d / 2)
    mean_is(sliced(model, x, keys[1]), -a * d + a**2 * s**2 * d / 2)
    mean_is(sliced(model, x, keys[1], variance_reduced=False), -a * d + a**2 * s**2 * d / 2)
    mean_is(explicit(model, lambda x: -x / s**2, x) - implicit(model, x), d / (2 * s**2))
    z = jax.random.normal(keys[2], (n, d))
    noisy = x + sigma * z
    conditional = 0.5 * jnp.sum((model(noisy) + z / sigma) ** 2, axis=1)
    marginal_score = explicit(model, lambda x: -x / (s**2 + sigma**2), noisy)
    mean_is(conditional - marginal_score, d * (1 / sigma**2 - 1 / (s**2 + sigma**2)) / 2)


def test_the_exact_trace_is_the_jacobians():
    x = jax.random.normal(jax.random.key(0), (5, 2))
    jacobians = jax.vmap(jax.jacfwd(lambda row: parametric(THETA, row[None])[0]))(x)
    expected = jnp.trace(jacobians, axis1=1, axis2=2) + 0.5 * jnp.sum(parametric(THETA, x) ** 2, axis=1)
    np.testing.assert_allclose(implicit(lambda x: parametric(THETA, x), x), expected, rtol=1e-5)
    image = x.reshape(5, 1, 2, 1)  # of any event shape
    found = implicit(lambda x: parametric(THETA, x.reshape(5, 2)).reshape(x.shape), image)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_projection_does_not_depend_on_the_batch():
    x, keys = jax.random.normal(jax.random.key(0), (6, 2)), jax.random.split(jax.random.key(1), 6)
    whole = sliced(lambda x: parametric(THETA, x), x, keys, 3)
    np.testing.assert_allclose(sliced(lambda x: parametric(THETA, x), x[2:4], keys[2:4], 3), whole[2:4], rtol=1e-5)


def identities(level, s_data=0.5, gamma=5.0, bias=2.0):
    """Each weighting's factor of the eps error, as the design gives it; level is the log-SNR."""
    snr = np.exp(level)
    return {
        "simple": np.ones_like(level),
        "snr": np.ones_like(level),  # snr * x0 error = snr * e / snr
        "edm": (1 / snr + s_data**2)
        / (s_data**2 / snr)
        / snr,  # (s^2 + s_d^2) / (s s_d)^2 with s^2 = 1 / snr, on e / snr
        "min_snr": np.minimum(snr, gamma) / snr,
        "flow": (1 + snr**-0.5) ** 2,  # eps - x0: the errors' lengths add, |x0 error| = |eps error| / sqrt(snr)
    }


@pytest.mark.parametrize("name", thinned(SDES, "vp", "ve", "flow"))
def test_weightings_agree_through_the_identities(name, x64):
    """score error = e / sigma^2, x0 error = (sigma / alpha)^2 e: the same number in whatever error it is taken."""
    sde = {"ve": SDES["ve"](1e-3, 1e3), "edm": SDES["edm"](1e-3, 1e3)}.get(name, SDES[name]())
    t = t_from_log_snr(sde, jnp.asarray(ALL))
    level, alpha, sigma = log_snr(sde, t), sde.alpha(t), sde.sigma(t)
    expected = identities(ALL)
    expected["likelihood"] = (sde.diffusion(t) / sigma) ** 2  # g^2 on the score error
    expected["sigmoid"] = expected["likelihood"] / (1 + np.exp(ALL - 2.0))
    for weighting, make in WEIGHTINGS.items():
        in_epsilon = make()(epsilon_scales(sde, t, level))
        np.testing.assert_allclose(in_epsilon, expected[weighting], rtol=1e-5)
        np.testing.assert_allclose(make()(x0_scales(sde, t, level)), in_epsilon * (alpha / sigma) ** 2, rtol=1e-5)
        np.testing.assert_allclose(make()(score_scales(sde, t)), in_epsilon * sigma**2, rtol=1e-5)


@pytest.mark.parametrize("name", thinned(SDES, "vp", "flow"))
def test_half_the_likelihood_weighting_integrates_to_the_bound(name, x64):
    """The exact denoiser of N(0, 0.25) attains the bound, log(2 pi e 0.25) / 2 = 0.7258 nats.

    It is half the integral of the weighted eps error, E e = snr s^2 / (snr s^2 + 1), and the entropy of x0 that is left
    at the integral's lower end (Kingma et al. 2021, eq. 11).
    """
    sde = {"ve": SDES["ve"](1e-3, 1e3), "edm": SDES["edm"](1e-3, 1e3)}.get(name, SDES[name]())
    level = jnp.linspace(12.0, -12.0, 4001)
    t = t_from_log_snr(sde, level)
    informative = 0.25 * jnp.exp(level)
    integrand = 0.5 * likelihood()(epsilon_scales(sde, t, level)) * informative / (informative + 1)
    left = 0.5 * np.log(2 * np.pi * np.e * 0.25 / (informative[0] + 1))
    np.testing.assert_allclose(jnp.trapezoid(integrand, t) + left, 0.7258, atol=1e-4)


def test_weightings_take_their_constants():
    units = epsilon_scales(SDE, jnp.float32(0.5), log_snr(SDE, jnp.float32(0.5)))
    np.testing.assert_allclose(edm(1.0)(units), 1 + units.x0)
    np.testing.assert_allclose(min_snr(0.01)(units), 0.01 * units.x0)
    np.testing.assert_allclose(sigmoid(3.0)(units), jax.nn.sigmoid(3.0 - units.log_snr) * units.bound)


@pytest.mark.parametrize("weighting", thinned(WEIGHTINGS, "simple", "likelihood"))
def test_the_loss_is_the_weighted_epsilon_error_at_every_log_snr(weighting):
    """denoising() changes over to the x0 error at low SNR: the same value on both sides, for every prediction."""
    for sde in (vp(), flow()):
        t = t_from_log_snr(sde, jnp.asarray(np.linspace(-9.5, 9.5, 39), "float32"))
        keys = jax.random.split(jax.random.key(0), 3)
        x0, epsilon, output = (0.5 * jax.random.normal(key, (39, 16)) for key in keys)
        alpha, sigma = (np.asarray(f(t), np.float64)[:, None] for f in (sde.alpha, sde.sigma))
        weight = np.asarray(WEIGHTINGS[weighting]()(epsilon_scales(sde, t, log_snr(sde, t))))
        for prediction in ("x0", "epsilon", "v", "velocity"):
            pair = to_prediction(output, add_noise(sde, x0, epsilon, t), t, sde, prediction)
            loss = denoising(lambda x, t, pair=pair: pair, sde, x0, t, epsilon, weighting)
            truth = from_prediction(Prediction(x0, epsilon), t, sde, prediction)
            # the prediction's error as an eps error: an output d away from p is off by d / |scale of p in eps|
            error = np.asarray(output - truth, np.float64)
            slope = {
                "x0": alpha / sigma,
                "epsilon": 1.0,
                "v": alpha / (alpha**2 + sigma**2),
                "velocity": alpha / np.abs(velocity_determinant(sde, t)),
            }[prediction]
            np.testing.assert_allclose(loss, weight * np.sum((slope * error) ** 2, axis=1), rtol=1e-4)


def test_the_flow_weighting_is_flow_matching():
    """|v_hat - (eps - x0)|^2 for a network of the straight path's velocity (Lipman et al. 2023)."""
    keys = jax.random.split(jax.random.key(0), 3)
    x0, epsilon, output = (jax.random.normal(key, (9, 4)) for key in keys)
    t = jnp.linspace(0.01, 1.0, 9)
    losses = denoising(lambda x, t: to_prediction(output, x, t, flow(), "velocity"), flow(), x0, t, epsilon, "flow")
    np.testing.assert_allclose(losses, jnp.sum((output - (epsilon - x0)) ** 2, axis=1), rtol=2e-5)


def test_the_floor_of_the_flow_weighting_is_that_of_jit():
    """|x0_hat - x0|^2 / max(t, 0.05)^2 (Li and He 2025), whose loss divides by max(1 - t, 0.05) with time reversed."""
    keys = jax.random.split(jax.random.key(0), 3)
    x0, epsilon, output = (jax.random.normal(key, (9, 4)) for key in keys)
    t = jnp.array([1e-3, 0.01, 0.04, 0.06, 0.1, 0.3, 0.7, 0.99, 1.0])
    weighting = WEIGHTINGS["flow"](floor=0.05)
    losses = denoising(lambda x, t: to_prediction(output, x, t, flow(), "x0"), flow(), x0, t, epsilon, weighting)
    expected = jnp.sum((output - x0) ** 2, axis=1) / jnp.maximum(t, 0.05) ** 2
    np.testing.assert_allclose(losses, expected, rtol=2e-5)
    with pytest.raises(UserError, match="floor >= 0, got -1"):
        WEIGHTINGS["flow"](floor=-1)


def velocity_determinant(sde, t):
    slopes = [jax.vmap(jax.grad(f))(t) for f in (sde.alpha, sde.sigma)]
    return np.asarray(sde.alpha(t) * slopes[1] - sde.sigma(t) * slopes[0], np.float64)[:, None]


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("sde", [flow(), pytest.param(vp_cosine(), marks=pytest.mark.slow)], ids=["flow", "vp_cosine"])
def test_the_limit_at_zero_snr(sde, weighting):
    """At alpha = 0 every weighting is finite: 0, but for edm's 1/s_d^2 and flow's 1, on the x0 error."""
    x0, epsilon, output = jax.random.normal(jax.random.key(0), (3, 1, 4))
    limit = {"edm": 4.0, "flow": 1.0}.get(weighting, 0.0)
    for prediction in ("x0", "v", "velocity"):

        def loss(output, t, prediction=prediction):
            return denoising(lambda x, t: to_prediction(output, x, t, sde, prediction), sde, x0, t, epsilon, weighting)[
                0
            ]

        x0_hat = to_prediction(output, epsilon, jnp.ones(1), sde, prediction).x0
        expected = limit * np.sum((x0_hat - x0) ** 2)
        np.testing.assert_allclose(loss(output, jnp.ones(1)), expected, rtol=1e-4, atol=1e-9)
        nearby = loss(output, jnp.float32([0.9999]))
        np.testing.assert_allclose(nearby, expected, rtol=0.01, atol=0.05)
        assert np.isfinite(jax.grad(loss)(output, jnp.ones(1))).all()


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_the_limit_at_the_data(weighting):
    """On the eps error of v, as t -> 0: 1 for simple, snr and edm, 0 for min_snr, and for vp sigmoid is e^2 beta_min.

    likelihood is g^2 / sigma^2, which grows as 1/t; g^2, its factor of the score error, stays.
    """
    t = jnp.float32([1e-7, 1e-6])
    factor = np.asarray(WEIGHTINGS[weighting]()(epsilon_scales(SDE, t, log_snr(SDE, t))))
    if weighting == "likelihood":
        np.testing.assert_allclose(factor * np.float32([1e-7, 1e-6]), 1.0, rtol=1e-3)
        np.testing.assert_allclose(WEIGHTINGS[weighting]()(score_scales(SDE, t)), 0.1, rtol=1e-3)
    else:
        limit = {"min_snr": 0.0, "sigmoid": np.exp(2.0) * 0.1}.get(weighting, 1.0)
        np.testing.assert_allclose(factor, limit, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("weighting", thinned(WEIGHTINGS, "simple", "edm"))
def test_the_exact_denoisers_loss_is_the_irreducible_one(weighting):
    """E|E[eps | x_t] - eps|^2 = alpha^2 S^2 / (alpha^2 S^2 + sigma^2) a dimension: not zero."""
    keys = jax.random.split(jax.random.key(0))
    n, t = 40_000, jnp.float32(0.3)
    x0, epsilon = S * jax.random.normal(keys[0], (n, 2)), jax.random.normal(keys[1], (n, 2))
    losses = denoising(exact_denoiser, SDE, x0, jnp.full(n, t), epsilon, weighting)
    signal = SDE.alpha(t) ** 2 * S**2
    weight = WEIGHTINGS[weighting]()(epsilon_scales(SDE, t, log_snr(SDE, t)))
    expected = 2 * weight * signal / (signal + SDE.sigma(t) ** 2)
    assert losses.shape == (n,)
    assert abs(losses.mean() - expected) < 4 * losses.std() / np.sqrt(n)


@pytest.mark.slow
def test_the_trainable_objectives_differ_from_denoising_by_a_constant():
    """As a step uses them: E[objective(theta) - denoising(theta)] is one for two theta, within 4.5 standard errors."""
    sde, n = vp(), 60_000
    x0 = jnp.asarray(mixtures.draw(n, 0), "float32")
    keys = jax.random.split(jax.random.key(0), 2)
    epsilon, t = jax.random.normal(keys[0], x0.shape), jnp.linspace(0.2, 0.9, n)
    sample_keys = jax.random.split(keys[1], n)
    truth = mixtures.denoiser(sde)

    def denoiser_of(theta):
        return lambda x, t: to_prediction(parametric(theta, x), x, t, sde, "score")

    @partial(jax.jit, static_argnums=0)
    def compute(objective, theta):
        arguments = (denoiser_of(theta), sde, x0, t, epsilon, sample_keys)
        return objective(*arguments, "simple") - denoising(*arguments[:5], "simple")

    for name, make in OBJECTIVES.items():
        objective = make(truth) if name == "explicit" else make()
        difference = []
        for theta in (THETA, -0.5 * THETA):
            difference.append(compute(objective, theta))
        change = np.asarray(difference[0] - difference[1], np.float64)
        assert abs(change.mean()) <= 4.5 * change.std() / np.sqrt(n), name


def test_the_exact_denoiser_minimises_explicit():
    x = jax.random.normal(jax.random.key(0), (9, 2))
    score = score_fn(mixtures.denoiser(SDE), SDE)
    losses = explicit(lambda x: score(x, 0.3), lambda x: mixtures.score(SDE)(x, jnp.full(9, 0.3)), x)
    np.testing.assert_allclose(losses, 0.0, atol=1e-9)
