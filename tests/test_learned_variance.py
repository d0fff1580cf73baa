"""The learned reverse variance: sampled with, bounded with, and kept by guidance; exact on Gaussian data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import ddpm_digits
from score_sde import ddpm
from score_sde.evaluation.likelihood import _chain_bound, chain_epsilon
from score_sde.experiment import make_experiment
from score_sde.guidance import classifier_free, classifier_guided
from score_sde.parameterization import Prediction, VariancePrediction, make_denoiser
from score_sde.sde import edm, flow, lift, vp
from score_sde.solvers import SOLVERS, ancestral, solve
from score_sde.thresholding import clip_x0
from score_sde.training.load import write_weights
from tests.thinned import WITH_DENOISERS, thinned

STD = 0.5  # of the data, N(0, STD^2)


def exact_v(sde, s, t):
    """v at which the interpolated variance is that of q(x_s | x_t) for the Gaussian data."""
    alpha_s, alpha_t, sigma_s, sigma_t = sde.alpha(s), sde.alpha(t), sde.sigma(s), sde.sigma(t)
    forward = sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2
    exact = 1 / (1 / ((alpha_s * STD) ** 2 + sigma_s**2) + (alpha_t / alpha_s) ** 2 / forward)
    smallest, largest = jnp.log(forward * (sigma_s / sigma_t) ** 2), jnp.log(forward)
    return 2 * (jnp.log(exact) - smallest) / (largest - smallest) - 1


def gaussian(sde, v_at):
    def denoiser(x, t):
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        variance = (alpha * STD) ** 2 + sigma**2
        pair = lift(alpha * STD**2 / variance, x) * x, lift(sigma / variance, x) * x
        return Prediction(*pair) if v_at is None else VariancePrediction(*pair, lift(v_at(t), x) * jnp.ones_like(x))

    return denoiser


@pytest.mark.parametrize("make", thinned((vp, edm, flow), vp))
def test_exact_variance_samples_the_gaussian(make):
    """With the exact mean and variance six coarse steps end exactly at N(0, alpha^2 STD^2 + sigma^2)."""
    sde, n = make(), 40_000
    times = np.linspace(0.9, 0.3, 7) * sde.t_max
    width = times[0] - times[1]

    def spread_at_end(v_at):
        start = jnp.sqrt((sde.alpha(times[0]) * STD) ** 2 + sde.sigma(times[0]) ** 2)
        x = start * jax.random.normal(jax.random.key(0), (n, 1))
        end = solve(ancestral(), sde, gaussian(sde, v_at), x, times, jax.random.key(1)).x
        return float(jnp.std(end) / jnp.sqrt((sde.alpha(times[-1]) * STD) ** 2 + sde.sigma(times[-1]) ** 2))

    error = 4 / np.sqrt(2 * n)  # four standard errors of a standard deviation
    assert abs(spread_at_end(lambda t: exact_v(sde, t - width, t)) - 1) < error
    assert spread_at_end(lambda t: -jnp.ones_like(t)) == pytest.approx(
        spread_at_end(None), abs=1e-6
    )  # q(x_s | x_t, x0)
    assert spread_at_end(lambda t: jnp.ones_like(t)) > spread_at_end(None)


@pytest.mark.slow
def test_exact_variance_gives_the_least_bound():
    chain = ddpm.linear_schedule(50)
    sde = ddpm.to_sde(chain)
    x0 = STD * jax.random.normal(jax.random.key(0), (512, 2))
    steps = np.arange(50) / 49

    def transitions(v_at):
        epsilon_fn = chain_epsilon(gaussian(sde, v_at), sde, chain)
        return ddpm.variational_bound(epsilon_fn, chain, x0, jax.random.key(1)).transitions.sum(1).mean().item()

    exact, smallest, largest, fixed = (
        transitions(v)
        for v in (
            lambda t: exact_v(sde, jnp.maximum(t - steps[1], 0.0), t),
            lambda t: -jnp.ones_like(t),
            lambda t: jnp.ones_like(t),
            None,
        )
    )
    assert fixed == pytest.approx(largest, rel=1e-5)
    assert exact < smallest and exact < largest


def test_second_output_is_v():
    sde, x, t = vp(), jnp.ones((3, 2)), jnp.array([0.2, 0.5, 0.9])
    network = lambda x, level: jnp.concatenate([0.5 * x, 3 * x], axis=-1)  # noqa: E731
    pair = make_denoiser(network, sde, learned_variance=True)(x, t)
    np.testing.assert_array_equal(pair.v, 3 * x)
    np.testing.assert_allclose(pair.epsilon, make_denoiser(lambda x, level: 0.5 * x, sde)(x, t).epsilon)


def test_guidance_and_thresholds_keep_v():
    sde, x, t = vp(), jnp.ones((2, 1)), jnp.float32(0.5)
    strong, weak = gaussian(sde, lambda t: 0.5 * jnp.ones_like(t)), gaussian(sde, None)
    for denoiser in (
        classifier_free(strong, weak, 2.0, rescale=0.5, sde=sde),
        classifier_free(strong, weak, 2.0, interval=(0.1, 0.6)),
        classifier_guided(strong, lambda x, t: -jnp.sum(x**2, axis=1), sde, 2.0),
        clip_x0()(strong, sde),
    ):
        np.testing.assert_array_equal(denoiser(x, t).v, 0.5)


@pytest.mark.slow
def test_learned_variance_from_config_to_export(tmp_path):
    """v changes samples and the discrete bound; an export says that it knows a chain's steps only."""
    config = ddpm_digits.get_config()
    config.model.name = "mlp"
    with config.unlocked(), config.ignore_type():
        config.model.kwargs = {"features": (8,), "embedding": 4, "outputs": 2}
        config.loss.objective, config.loss.objective_kwargs = "ddpm_hybrid", {}
    config.sampling.solver, config.sampling.num_steps, config.sampling.batch_size = "ancestral", 4, 2
    config.sampling.kwargs = {}
    trained = make_experiment(config, jax.devices()[:1])
    params = trained.training.init_params()
    (perceptron,) = params.values()
    out = perceptron["out"]
    perceptron["out"] = {"kernel": out["kernel"].at[:, 1::2].set(0.0), "bias": out["bias"].at[1::2].set(-1.0)}
    shifted = jax.tree.map(jnp.copy, params)
    next(iter(shifted.values()))["out"]["bias"] = out["bias"].at[1::2].set(2.0)
    write_weights(tmp_path / "hybrid.safetensors", shifted, trained.config)
    config.loss.objective = "denoising"
    config.model.pretrained, config.model.kwargs = str(tmp_path / "hybrid.safetensors"), {}
    loaded = make_experiment(config, jax.devices()[:1])
    assert loaded.model.timesteps is not None and loaded.config["loss"]["objective"] == "ddpm_hybrid"
    before, after = (next(trained.sampler.batches(each, 2)).x for each in (params, shifted))
    assert np.abs(before - after).max() > 0.1
    np.testing.assert_array_equal(next(loaded.sampler.batches(loaded.training.init_params(), 2)).x, after)
    images, labels, keys = jnp.zeros((2, 8, 8, 1), jnp.uint8), jnp.zeros(2, int), jax.random.split(jax.random.key(0), 2)
    bounds = [
        _chain_bound(trained.model, trained.schedule, 17)(each, images, labels, keys)["bits"]
        for each in (params, shifted)
    ]
    assert np.all(np.abs(bounds[0] - bounds[1]) > 0.01)


def test_every_solver_takes_a_learned_variance():
    sde, x, times = vp(), jnp.ones((2, 1)), np.array([1.0, 0.5])
    denoiser = gaussian(sde, lambda t: jnp.zeros_like(t))
    for name in WITH_DENOISERS:
        make = SOLVERS[name]
        shape = jax.eval_shape(lambda x, make=make: solve(make(), sde, denoiser, x, times, jax.random.key(0)).x, x)
        assert shape.shape == x.shape, name
