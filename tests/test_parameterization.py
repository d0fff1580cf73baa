"""Conversions between predictions, preconditionings, and the exact denoiser they must agree with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.errors import UserError
from score_sde.parameterization import (
    PRECONDITIONINGS,
    PREDICTIONS,
    Prediction,
    check_parameterization,
    convert,
    epsilon_from_score,
    epsilon_from_v,
    epsilon_from_x0,
    from_prediction,
    make_denoiser,
    round_trip_prediction,
    score_fn,
    score_from_epsilon,
    score_from_v,
    score_from_x0,
    to_prediction,
    v_from,
    x0_from_epsilon,
    x0_from_v,
)
from score_sde.sde import SDES, add_noise, edm, flow, from_schedule, t_from_log_snr, time_derivative, ve, vp, vp_cosine
from tests import mixtures
from tests.thinned import thinned

LEVELS = np.linspace(-12, 12, 49)


def triple(sde, levels=LEVELS, dtype="float32", n=64):
    """x_t, t and the pair, (len(levels), n): each level's times, values of the size of data and of noise."""
    keys = jax.random.split(jax.random.key(0))
    t = jnp.asarray(t_from_log_snr(sde, jnp.asarray(levels, dtype)), dtype)
    x0 = jax.random.uniform(keys[0], (len(levels), n), dtype, -1, 1)
    epsilon = jax.random.normal(keys[1], (len(levels), n), dtype)
    return add_noise(sde, x0, epsilon, t), t, Prediction(x0, epsilon)


def unclipped(name):
    """The SDE with all log-SNRs from -12 to 12 within its range; ve and edm are widened."""
    return {"ve": lambda: ve(1e-3, 1e3), "edm": lambda: edm(1e-3, 1e3)}.get(name, SDES[name])()


@pytest.mark.parametrize("name", thinned(SDES, "vp", "flow"))
def test_all_25_conversions_round_trip_in_float32(name):
    """The relative error is at most 1e-5 (root mean square of 64 values), at log-SNR from -12 to 12.

    Some targets hardly depend on one half of the pair: eps (and the score, and with alpha = 1 the velocity) at low SNR,
    and x0 at high SNR. Through them a single rounding, 2^-24 = 6e-8, is amplified by e^(|log-SNR| / 2), up to 403, and
    by the ratio of the pair's sizes, sqrt(3) here. Each direction has a product, a difference and a quotient, and the
    tolerance allows five roundings.
    """
    sde = unclipped(name)
    x, t, pair = triple(sde)
    noise_like = ("epsilon", "score", "velocity") if name in ("ve", "edm") else ("epsilon", "score")
    five_roundings = 5 * np.sqrt(3) * 2.0**-24 * np.exp(np.abs(LEVELS) / 2)
    for source in PREDICTIONS:
        value = from_prediction(pair, t, sde, source)
        size = np.sqrt(np.mean(np.square(value), axis=1))
        for target in PREDICTIONS:
            back = convert(convert(value, x, t, sde, source, target), x, t, sde, target, source)
            error = np.sqrt(np.mean(np.square(back - value), axis=1)) / size
            amplified = np.where(LEVELS < 0, target in noise_like, target == "x0") & (source != target)
            allowed = np.where(amplified, np.maximum(1e-5, five_roundings), 1e-5)
            assert (error <= allowed).all(), (source, target, (error / allowed).max())


@pytest.mark.parametrize("name", thinned(SDES, "vp", "flow"))
def test_each_prediction_is_its_definition(name, x64):
    """Against the formulas written out, with the velocity as the derivative of the path alpha x0 + sigma eps."""
    sde = unclipped(name)
    x, t, (x0, epsilon) = triple(sde, np.linspace(-8, 8, 9), "float64")
    alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
    expected = {
        "x0": x0,
        "epsilon": epsilon,
        "v": alpha * epsilon - sigma * x0,
        "score": -epsilon / sigma,
        "velocity": jax.jvp(lambda t: add_noise(sde, x0, epsilon, t), (t,), (jnp.ones_like(t),))[1],
    }
    for source in PREDICTIONS:
        for target in PREDICTIONS:
            found = convert(expected[source], x, t, sde, source, target)
            np.testing.assert_allclose(found, expected[target], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(to_prediction(expected[source], x, t, sde, source).x0, x0, rtol=1e-9, atol=1e-9)


def test_the_named_functions_are_the_solve(x64):
    sde = vp()
    x, t, (x0, epsilon) = triple(sde, np.linspace(-8, 8, 9), "float64")
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    v, score = (from_prediction(Prediction(x0, epsilon), t, sde, name) for name in ("v", "score"))
    for found, expected in (
        (score_from_epsilon(epsilon, sigma), score),
        (epsilon_from_score(score, sigma), epsilon),
        (x0_from_epsilon(x, epsilon, alpha, sigma), x0),
        (epsilon_from_x0(x, x0, alpha, sigma), epsilon),
        (v_from(x0, epsilon, alpha, sigma), v),
        (x0_from_v(x, v, alpha, sigma), x0),
        (epsilon_from_v(x, v, alpha, sigma), epsilon),
        (score_from_x0(x, x0, alpha, sigma), score),
        (score_from_v(x, v, alpha, sigma), score),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["vp", "vp_cosine"])
def test_v_is_x_turned_by_90_degrees(name):
    """With x = cos(phi) x0 + sin(phi) eps, v = dx/dphi = x(phi + 90 degrees) (Salimans and Ho 2022, Appendix D)."""
    sde = SDES[name]()
    x, t, (x0, epsilon) = triple(sde, np.linspace(-8, 8, 9))
    phi = np.arctan2(sde.sigma(t), sde.alpha(t))[:, None] + np.pi / 2
    v = convert(x0, x, t, sde, "x0", "v")
    np.testing.assert_allclose(v, np.cos(phi) * x0 + np.sin(phi) * epsilon, atol=2e-4)  # eps of x0: e^4 * 1e-6
    turned = np.cos(phi) * x0 + np.sin(phi) * epsilon
    np.testing.assert_allclose(v_from(x0, epsilon, sde.alpha(t), sde.sigma(t)), turned, atol=1e-6)


@pytest.mark.parametrize("sde", [vp_cosine(), flow()], ids=["vp_cosine", "flow"])
def test_the_ends_where_the_limit_is_finite(sde):
    """At alpha = 0, x = eps: x0, v and velocity give the pair; at sigma = 0, x = x0: epsilon, v and velocity do."""
    x0, epsilon = jnp.array([[0.3, -0.7]]), jnp.array([[1.2, 0.4]])
    noise_end, data_end = jnp.ones(1), jnp.zeros(1)
    for source in ("x0", "v", "velocity"):
        output = from_prediction(Prediction(x0, epsilon), noise_end, sde, source)
        pair = to_prediction(output, epsilon, noise_end, sde, source)
        np.testing.assert_allclose(pair.x0, x0, rtol=1e-6)
        np.testing.assert_allclose(pair.epsilon, epsilon, rtol=1e-6)
    for source in ("epsilon", "v", *(["velocity"] if sde.diffusion(0.0) == 0 else [])):
        output = from_prediction(Prediction(x0, epsilon), data_end, sde, source)
        pair = to_prediction(output, x0, data_end, sde, source)
        np.testing.assert_allclose(pair.x0, x0, rtol=1e-6)
        np.testing.assert_allclose(pair.epsilon, epsilon, rtol=1e-6)


def test_singular_conversions_leave_the_other_half_and_its_gradient_alone():
    """x0 of eps at alpha = 0, eps of x0 at sigma = 0: infinite, and nothing of it reaches what doesn't use it."""
    sde, x, end = flow(), jnp.array([[0.5, -0.2]]), {"epsilon": jnp.ones(1), "x0": jnp.zeros(1)}
    for source, other in (("epsilon", "x0"), ("x0", "epsilon")):
        output, t = 0.7 * x, end[source]
        pair = to_prediction(output, x, t, sde, source)
        assert not np.isfinite(getattr(pair, other)).any()
        np.testing.assert_array_equal(getattr(pair, source), output)

        def used(output, source=source, t=t):
            chosen = getattr(to_prediction(output, x, t, sde, source), source)
            return jnp.sum(jnp.where(t[:, None] >= 0, chosen, 0.0) ** 2)

        np.testing.assert_allclose(jax.grad(used)(output), 2 * output)
        # The score, of epsilon alone, doesn't pass through x0.
        if source == "epsilon":
            np.testing.assert_allclose(convert(output, x, t, sde, source, "score"), -output)


def test_the_score_is_the_mean_of_the_conditional_scores_and_epsilon_the_mean_of_eps(x64):
    """score = E[grad log p(x_t | x0) | x_t] = -E[eps | x_t] / sigma, the mean taken over the posterior by quadrature.

    On a mixture in one dimension. E[eps | x_t] is not the eps that was drawn: its mean square is smaller by the
    variance of eps given x_t, which the last lines compare with the exact error of the best denoiser.
    """
    sde, t = vp(), 0.25
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    means, stds, weights = np.array([-0.8, 0.5]), np.array([0.15, 0.3]), np.array([0.4, 0.6])

    def normal(x, mean, std):
        return jnp.exp(-0.5 * ((x - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi))

    def density(x, alpha=1.0, sigma=0.0):
        return sum(
            weight * normal(x, alpha * mean, np.sqrt(alpha**2 * std**2 + sigma**2))
            for weight, mean, std in zip(weights, means, stds, strict=True)
        )

    x0 = jnp.linspace(-4, 4, 2001)
    step = x0[1] - x0[0]
    x = jnp.linspace(-2, 2, 9)
    score = jax.vmap(jax.grad(lambda x: jnp.log(density(x, alpha, sigma))))(x)
    joint = density(x0)[None] * normal(x[:, None], alpha * x0[None], sigma)
    posterior = joint / jnp.sum(joint, axis=1, keepdims=True)
    conditional_score = -(x[:, None] - alpha * x0[None]) / sigma**2
    epsilon = (x[:, None] - alpha * x0[None]) / sigma
    np.testing.assert_allclose(jnp.sum(posterior * conditional_score, axis=1), score, rtol=1e-8, atol=1e-10)
    mean_epsilon = jnp.sum(posterior * epsilon, axis=1)
    np.testing.assert_allclose(score_from_epsilon(mean_epsilon, sigma), score, rtol=1e-8, atol=1e-10)

    grid = jnp.linspace(-5, 5, 1001)
    joint = density(x0)[None] * normal(grid[:, None], alpha * x0[None], sigma) * step * (grid[1] - grid[0])
    epsilon = (grid[:, None] - alpha * x0[None]) / sigma
    mean = jnp.sum(joint * epsilon, axis=1) / jnp.sum(joint, axis=1)
    size, mean_size = jnp.sum(joint * epsilon**2), jnp.sum(joint * mean[:, None] ** 2)
    error = jnp.sum(joint * (epsilon - mean[:, None]) ** 2)
    np.testing.assert_allclose(size, 1.0, rtol=1e-6)  # eps is N(0, 1) ...
    np.testing.assert_allclose(
        mean_size + error, size, rtol=1e-10
    )  # ... and splits into its mean and the rest (Pythagoras)
    assert 0.2 < error < 0.5  # here a third: a denoiser that returned eps itself would be wrong by that much


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("t", [0.2, np.linspace(0.05, 0.6, 8)], ids=["scalar t", "t a sample"])
def test_a_perfect_network_gives_back_the_pair(prediction, t):
    sde = vp()
    keys = jax.random.split(jax.random.key(0))
    x0, epsilon = (jax.random.normal(key, (8, 3, 2)) for key in keys)
    times = jnp.broadcast_to(jnp.asarray(t, "float32"), 8)
    truth = from_prediction(Prediction(x0, epsilon), times, sde, prediction)
    denoiser = make_denoiser(lambda x, level: truth, sde, prediction)
    pair = denoiser(add_noise(sde, x0, epsilon, jnp.asarray(t)), t)
    # Dividing by alpha or sigma, at least 0.16 here, loses less than a digit of float32's 6e-8.
    np.testing.assert_allclose(pair.x0, x0, atol=1e-5)
    np.testing.assert_allclose(pair.epsilon, epsilon, atol=1e-5)
    np.testing.assert_allclose(
        round_trip_prediction(denoiser, sde, "v")(add_noise(sde, x0, epsilon, times), t).x0, x0, atol=1e-5
    )


def seen_by(preconditioning, sde, t, x, output):
    """Return the network inputs, and the pair from its output."""
    seen = {}

    def network(x, level):
        seen.update(x=x, level=level)
        return output

    pair = make_denoiser(network, sde, preconditioning=preconditioning)(x, t)
    return seen["x"], seen["level"], pair


def test_without_preconditioning_the_network_sees_x_and_999_t():
    x = jnp.ones((4, 2))
    shown, level, _ = seen_by("none", vp(), 0.25, x, x)
    np.testing.assert_array_equal(shown, x)
    np.testing.assert_allclose(level, jnp.full(4, 999 * 0.25))
    _, level, _ = seen_by("none", edm(), 40.0, x, x)  # which ends at 80
    np.testing.assert_allclose(level, jnp.full(4, 999 * 0.5))


@pytest.mark.parametrize("name", thinned(("edm", "vp", "sub_vp"), "edm"))
def test_preconditionings_are_karras_table_1(name, x64):
    """D(x; s) = c_skip x + c_out F(c_in x; c_noise) on x = x_t / alpha, s = sigma / alpha, from the table."""
    sde = SDES[name]()
    levels = jnp.linspace(-7, 7, 15)
    t = t_from_log_snr(sde, levels)
    s, data = jnp.exp(-0.5 * levels), 0.5
    beta_min, rise = 0.1, 19.9
    sigma_inverse = (np.sqrt(beta_min**2 + 2 * rise * np.log(1 + s**2)) - beta_min) / rise
    table = {
        "vp": (jnp.ones_like(s), -s, 1 / np.sqrt(s**2 + 1), 999 * sigma_inverse),
        "ve": (jnp.ones_like(s), s, jnp.ones_like(s), np.log(s / 2)),
        "edm": (
            data**2 / (s**2 + data**2),
            s * data / np.sqrt(s**2 + data**2),
            1 / np.sqrt(s**2 + data**2),
            np.log(s) / 4,
        ),
        "angle": (1 / (1 + s**2), -s / np.sqrt(1 + s**2), 1 / np.sqrt(1 + s**2), 10 * np.arctan(s)),
    }
    x_t, output = jax.random.normal(jax.random.key(0), (2, 15, 3))
    x = x_t / sde.alpha(t)[:, None]
    for preconditioning, (c_skip, c_out, c_in, c_noise) in table.items():
        shown, level, pair = seen_by(preconditioning, sde, t, x_t, output)
        np.testing.assert_allclose(shown, c_in[:, None] * x, rtol=1e-9)
        np.testing.assert_allclose(level, c_noise, rtol=1e-8, atol=1e-12)
        named = PRECONDITIONINGS[preconditioning]
        np.testing.assert_allclose(named.c_skip(sde, t, data) * jnp.ones_like(s), c_skip, rtol=1e-8)
        np.testing.assert_allclose(named.c_out(sde, t, data), c_out, rtol=1e-8)
        denoised = c_skip[:, None] * x + c_out[:, None] * output
        np.testing.assert_allclose(pair.x0, denoised, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(pair.epsilon, (x - denoised) / s[:, None], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("preconditioning", ["edm", "log_snr", "angle"])
def test_rotations_are_finite_at_both_ends(preconditioning):
    """Their pair is a rotation of x and the output, so that no division by alpha or sigma remains."""
    sde, x, output = flow(), jnp.array([[0.5, -0.2]]), jnp.array([[0.3, 0.8]])
    _, _, pair = seen_by(preconditioning, sde, 1.0, x, output)
    np.testing.assert_allclose(pair.epsilon, x, rtol=1e-6)  # sigma = 1, alpha = 0
    assert np.isfinite(pair.x0).all()
    _, _, pair = seen_by(preconditioning, sde, 0.0, x, output)
    np.testing.assert_allclose(pair.x0, x, rtol=1e-6)
    assert np.isfinite(pair.epsilon).all()


def test_the_score_of_a_denoiser_is_that_of_the_mixture():
    sde = flow()
    x = jax.random.normal(jax.random.key(0), (9, 2))
    t = jnp.linspace(0.1, 0.9, 9)
    np.testing.assert_allclose(score_fn(mixtures.denoiser(sde), sde)(x, t), mixtures.score(sde)(x, t), rtol=1e-5)


def test_invalid_combinations_raise():
    check_parameterization(vp(), "epsilon", "edm")
    check_parameterization(flow(), "velocity", "none")
    zero_end = from_schedule(lambda t: 1 - t**2, lambda t: t, 1e-3, 1.0)
    for sde in (flow(), vp_cosine(), zero_end):
        for prediction in ("epsilon", "score"):
            with pytest.raises(UserError, match=r"zero terminal SNR.*set prediction to v, x0 or velocity"):
                check_parameterization(sde, prediction, "none")
        for preconditioning in ("vp", "ve", "edm"):
            with pytest.raises(UserError, match=r"infinite at t = 1\.0"):
                check_parameterization(sde, "epsilon", preconditioning)
        check_parameterization(sde, "epsilon", "angle")
    with pytest.raises(UserError, match="has no effect"):
        check_parameterization(vp(), "v", "edm")


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match=r"Did you mean 'epsilon'.*Known: epsilon, score, v, velocity, x0"):
        make_denoiser(lambda x, level: x, vp(), "epsilom")
    with pytest.raises(UserError, match=r"\(set preconditioning\)"):
        make_denoiser(lambda x, level: x, vp(), "epsilon", "karras")
    with pytest.raises(UserError, match="unknown prediction 'noise'"):
        convert(jnp.ones((1, 1)), jnp.ones((1, 1)), 0.5, vp(), "noise", "x0")


@pytest.mark.parametrize("sde", [ve(), vp(), flow()], ids=["ve", "vp", "flow"])
def test_log_sigma_shows_x_and_the_logarithm_of_its_noise(sde):
    """With log sigma as input, -x / sigma^2 is the score of N(0, 0)."""
    x, t = jax.random.normal(jax.random.key(0), (3, 2)), jnp.array([0.1, 0.5, 0.9])
    network = lambda x, level: -x / jnp.exp(level)[:, None] ** 2  # noqa: E731
    pair = make_denoiser(network, sde, "score", "log_sigma")(x, t)
    np.testing.assert_allclose(pair.epsilon, x / sde.sigma(t)[:, None], rtol=1e-5)
    np.testing.assert_allclose(pair.x0, jnp.zeros_like(x), atol=1e-5 * float(jnp.max(1 / sde.alpha(t))) * 4)


def test_every_preconditioning_is_tested_above():
    assert set(PRECONDITIONINGS) == {"none", "log_sigma", "vp", "ve", "edm", "log_snr", "angle"}
    assert time_derivative(jnp.sin, 0.0) == 1.0
