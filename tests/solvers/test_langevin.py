"""Langevin steps: what they leave of a Gaussian, and what sets their size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.errors import UserError
from score_sde.parameterization import Prediction
from score_sde.sde import flow, ve, vp
from score_sde.solvers import (
    ancestral,
    annealed_langevin,
    euler,
    langevin,
    predictor_corrector,
    reverse_diffusion,
    solve,
    time_grid,
)
from tests import mixtures
from tests.solvers import gaussian


def noise_only(sde):
    """Data N(0, 0): x_t = sigma eps, score = -x / sigma^2."""
    return lambda x, t: Prediction(jnp.zeros_like(x), x / sde.sigma(t))


@pytest.mark.parametrize("sde", [vp(), ve()], ids=["vp", "ve"])
@pytest.mark.parametrize("corrector", [langevin, annealed_langevin])
def test_a_gaussian_is_stationary_but_for_the_widening_by_the_step(sde, corrector):
    """x <- (1 - u) x + sqrt(2 u) sigma z ends with the variance s^2 = sigma^2 / (1 - u / 2).

    With e = 2 a snr^2 that is u = e for `annealed_langevin`; for `langevin` u = e sigma^2 / s^2, so s^2 = sigma^2 (1 +
    e / 2), but for the norms in 1024 dimensions: wider by 4 / d. The steps are so long that a = 1 for vp, or any other
    length, would give another variance: 1 + e / 2 from 1.17 to 1.25, many times the tolerance.
    """
    snr, t, t_next = 0.5, 0.55, 0.5
    kept = float(sde.alpha(t) / sde.alpha(t_next)) ** 2
    e = 2 * kept * snr**2
    assert (kept < 0.8) == (float(sde.alpha(0.5)) < 0.9)  # vp's grid matters, ve's does not
    solver = corrector(snr=snr, num_steps=5)
    x = 2 * sde.sigma(t_next) * jax.random.normal(jax.random.key(0), (100, 1024))  # twice too wide
    run = jax.jit(lambda x, key: solve(solver, sde, noise_only(sde), x, np.array([t, t_next]), key).x)
    for n in range(10):  # 50 steps: (1 - e)^100, less than 1e-15, is left of the start
        x = run(x, jax.random.key(n + 1))
    variance = x.var() / sde.sigma(t_next) ** 2
    expected = 1 + e / 2 if corrector is langevin else 1 / (1 - e / 2)
    sampling = 4 * np.sqrt(2 / (100 * 1024))
    assert abs(variance / expected - 1) < sampling + 4 / 1024


def test_in_few_dimensions_norms_widen_the_law_as_derived():
    """With e = c |z|^2 / |x|^2, E|x'|^2 = E|x|^2 asks for E|z|^2 = E|z|^4 E[1 / |x|^2], so E[1 / |x|^2] = 1 / (d + 2).

    To first order in c = 2 snr^2 = 0.02; the mean of n draws of 1 / |x|^2 is known to 0.4 / sqrt(n) of itself.
    """
    sde, n, d = ve(), 5000, 16
    x = sde.sigma(0.5) * jax.random.normal(jax.random.key(0), (n, d))
    run = jax.jit(
        lambda x, key: solve(langevin(snr=0.1, num_steps=5), sde, noise_only(sde), x, np.array([0.6, 0.5]), key).x
    )
    for k in range(60):  # 300 steps: (1 - c)^600 of the start is left
        x = run(x, jax.random.key(k + 1))
    inverse = jnp.mean(sde.sigma(0.5) ** 2 / jnp.sum(x**2, axis=1))
    assert abs(inverse * (d + 2) - 1) < 0.02 + 4 * 0.4 / np.sqrt(n)


def test_the_published_size_by_norms_is_met():
    """Song et al. 2021, Algorithm 4: step = 2 (r |z| / |g|)^2, one step written out; batch norms are means."""
    sde, x = ve(), jax.random.normal(jax.random.key(0), (3, 5))
    t_next, z = 0.5, jax.random.normal(jax.random.key(1), (1, 3, 5))
    score = -x / sde.sigma(t_next) ** 2
    norms = [np.linalg.norm(np.asarray(v), axis=1) for v in (z[0], score)]
    for kind in ("example", "batch"):
        ratio = norms[0] / norms[1] if kind == "example" else norms[0].mean() / norms[1].mean() * np.ones(3)
        step = 2 * (0.16 * ratio[:, None]) ** 2
        expected = x + step * score + np.sqrt(2 * step) * z[0]
        result = solve(langevin(norms=kind), sde, noise_only(sde), x, np.array([0.6, t_next]), noise=z).x
        np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_a_corrector_mends_a_predictor_that_is_too_coarse():
    """Few steps of reverse diffusion leave a wrong variance; Langevin steps at each level bring it nearer."""
    sde, times = vp(), time_grid(vp(), 30)
    x = jax.random.normal(jax.random.key(0), (2000, 16))
    errors = []
    for solver in (
        reverse_diffusion(),
        predictor_corrector("reverse_diffusion", "annealed_langevin", corrector_kwargs={"num_steps": 3}),
    ):
        result = solve(solver, sde, gaussian.denoiser(sde), x, times, jax.random.key(1)).x
        errors.append(abs(float(result.std()) / gaussian.marginal(sde, sde.t_min)[1] - 1))
    sampling = 1 / np.sqrt(2 * 2000 * 16)  # of a standard deviation
    assert errors[1] < errors[0] - 4 * sampling


def test_predictor_corrector_composes_any_two():
    sde, times, x = vp(), time_grid(vp(), 3), jnp.ones((2, 4))
    composed = predictor_corrector(ancestral(), annealed_langevin(num_steps=2))
    assert (composed.nfe_per_step, composed.stochastic, composed.requires_nonzero_alpha) == (3, True, False)
    named = predictor_corrector("ancestral", "annealed_langevin", corrector_kwargs={"num_steps": 2})
    key = jax.random.key(0)
    data = gaussian.denoiser(sde)
    np.testing.assert_array_equal(solve(composed, sde, data, x, times, key).x, solve(named, sde, data, x, times, key).x)
    assert predictor_corrector(reverse_diffusion(), langevin()).requires_nonzero_alpha
    # A corrector of vanishing size is no corrector.
    still = predictor_corrector(euler(), annealed_langevin(snr=1e-6))
    np.testing.assert_allclose(
        solve(still, sde, data, x, times, key).x, solve(euler(), sde, data, x, times).x, atol=1e-4
    )


def test_at_zero_terminal_snr_the_first_correction_is_none():
    sde = flow()
    x, z = jnp.ones((2, 3)), jnp.ones((1, 2, 3))
    result = solve(langevin(), sde, gaussian.denoiser(sde), x, np.array([1.0, 0.9]), noise=z).x
    np.testing.assert_array_equal(result, x)


@pytest.mark.slow
def test_annealed_langevin_alone_samples_a_mixture():
    """As in Song and Ermon 2019: levels down, several steps at each; the sliced distance of two draws of data is 1."""
    sde = ve(sigma_max=5.0)
    n = 4000
    x = sde.sigma(1.0) * jax.random.normal(jax.random.key(0), (n, 2))
    solver = annealed_langevin(snr=0.3, num_steps=10)
    run = jax.jit(lambda x, key: solve(solver, sde, mixtures.denoiser(sde), x, time_grid(sde, 200, "log_snr"), key).x)
    samples = run(x, jax.random.key(1))
    data = mixtures.draw(n, 1)
    between = mixtures.sliced_wasserstein(data, mixtures.draw(n, 2))
    assert mixtures.sliced_wasserstein(samples, data) < 3 * between


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: langevin(snr=0.0), "snr > 0"),
        (lambda: langevin(num_steps=0), "num_steps >= 1"),
        (lambda: langevin(norms="bath"), "Did you mean 'batch'"),
        (lambda: annealed_langevin(snr=-1.0), "snr > 0"),
    ],
)
def test_wrong_arguments_are_refused(call, words):
    with pytest.raises(UserError, match=words):
        call()
