"""Score diagnostics are 0 for exact scores, and match closed forms for wrong ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.analytic import mixture_denoiser
from score_sde.evaluation import score_diagnostics as diagnostics
from score_sde.evaluation.score_diagnostics import PANELS, empirical_denoiser, measure, save_health
from score_sde.parameterization import Prediction
from score_sde.sde import SDES, add_noise, log_snr, time_derivative
from tests import mixtures
from tests.thinned import thinned

N = 400
TURN = jnp.array([[0.0, -1.0], [1.0, 0.0]])


def gaussian(sde, std, factor=1.0):
    """The denoiser of N(0, std^2 I), its score times a factor."""

    def denoise(x, t):
        variance = sde.alpha(t) ** 2 * std**2 + sde.sigma(t) ** 2
        epsilon = factor * sde.sigma(t) * x / variance
        return Prediction((x - sde.sigma(t) * epsilon) / sde.alpha(t), epsilon)

    return denoise


def turned(denoiser, rate):
    """A denoiser whose eps is turned about the origin: a field that is no gradient."""

    def denoise(x, t):
        prediction = denoiser(x, t)
        return prediction._replace(epsilon=prediction.epsilon + rate * x @ TURN)

    return denoise


def of_points(sde, points):
    """The exact denoiser of a few points."""

    def denoise(x, t):
        apart = jnp.sum((x[:, None] - sde.alpha(t) * points[None]) ** 2, axis=2)
        x0 = jax.nn.softmax(-apart / (2 * sde.sigma(t) ** 2), axis=1) @ points
        return Prediction(x0, (x - sde.alpha(t) * x0) / sde.sigma(t))

    return denoise


@pytest.fixture(scope="module")
def keys():
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(0), jnp.arange(N))


@pytest.mark.parametrize("name", thinned(("vp", "ve", "flow"), "vp"))
def test_residuals_of_exact_and_rotated_scores(name, keys, tmp_path, x64):
    sde = SDES[name]()
    sets = {split: (mixtures.draw(N, seed), np.zeros(N, int)) for seed, split in enumerate(("train", "test"))}
    exact = mixtures.denoiser(sde)
    rows = measure(sde, lambda labels: exact, sets, keys, 6, truth=exact)
    rate = 0.1
    empirical = empirical_denoiser(sde, sets["train"][0])
    wrong = measure(sde, lambda labels: turned(exact, rate), sets, keys, 6, truth=exact, empirical=empirical)
    for row, other in zip(rows, wrong, strict=True):
        assert row["excess"]["mean"] == 0
        assert row["loss"] == row["irreducible"]
        assert row["curl"]["mean"] < 1e-20
        assert abs(row["fokker_planck"]["mean"]) < 1e-12
        assert abs(row["stein"]["mean"]) < 4 * row["stein"]["standard_error"]
        expected = (rate * float(sde.sigma(row["t"]))) ** 2
        assert other["curl"]["mean"] == pytest.approx(expected, rel=1e-6)
        assert other["curl"]["standard_error"] < 1e-6 * expected
        assert other["excess"]["mean"] > 0
    # The parts of the loss: |eps_hat - eps|^2 is on average the irreducible part and the excess.
    apart = [row["loss"]["mean"] - row["irreducible"]["mean"] - row["excess"]["mean"] for row in wrong]
    errors = [4 * (row["loss"]["standard_error"] + row["excess"]["standard_error"]) for row in wrong]
    assert np.all(np.abs(apart) < errors)
    save_health(tmp_path / "health.png", wrong)
    assert (tmp_path / "health.png").stat().st_size > 10_000
    assert set(PANELS) <= set(wrong[0])
    # A network that memorizes gives what the training set's own denoiser gives, where that set was noised.
    memorizing = measure(sde, lambda labels: of_points(sde, sets["train"][0]), sets, keys, 6, empirical=empirical)
    assert max(row["memorization"]["mean"] for row in memorizing) < 1e-9
    assert max(row["memorization"]["mean"] for row in wrong) > 0.1


@pytest.mark.parametrize("dimensions", [3, 20])
@pytest.mark.parametrize("name", thinned(("vp", "edm", "flow"), "vp"))
def test_fokker_planck_of_a_scaled_gaussian_score_is_known(name, dimensions, keys, x64):
    """(1 + c) score leaves g^2 c (1 + c) x / V^2 of the equation, V being the marginal's variance."""
    sde, std, c = SDES[name](), 0.6, 0.2
    x0 = std * jax.random.normal(jax.random.key(1), (32, dimensions))

    @jax.jit
    def compute(t):
        x = add_noise(sde, x0, jax.random.normal(jax.random.key(2), x0.shape), t)
        variance = sde.alpha(t) ** 2 * std**2 + sde.sigma(t) ** 2
        left = sde.diffusion(t) ** 2 * c * (1 + c) * x / variance**2
        scale = sde.sigma(t) / time_derivative(lambda t: log_snr(sde, t), t)
        expected = jnp.mean((scale * left) ** 2, axis=1)
        found, zero = (
            diagnostics.fokker_planck(sde, gaussian(sde, std, factor), x, t, keys[:32]) for factor in (1 + c, 1)
        )
        return expected, found, zero

    for t in (0.3, 0.8):
        expected, found, zero = compute(jnp.float64(t))
        np.testing.assert_allclose(found, expected, rtol=1e-8)
        assert np.abs(zero).max() < 1e-9 * expected.max()


@pytest.mark.slow
def test_an_estimated_divergence_adds_noise_but_no_bias(keys, x64):
    """In 20 dimensions, of a Gaussian mixture along a diagonal: 0 within sampling error, though no example is 0."""
    sde, diagonal = SDES["vp"](), np.ones(20) / np.sqrt(20)

    def denoise(x, t):
        def log_density(x):
            spread = sde.alpha(t) ** 2 * 0.04 + sde.sigma(t) ** 2
            centres = jnp.stack([x + sign * sde.alpha(t) * diagonal[None] for sign in (-1, 1)])
            return jnp.sum(jax.nn.logsumexp(-jnp.sum(centres**2, axis=2) / (2 * spread), axis=0))

        epsilon = -sde.sigma(t) * jax.grad(log_density)(x)
        return Prediction((x - sde.sigma(t) * epsilon) / sde.alpha(t), epsilon)

    rng = np.random.default_rng(0)
    x0 = 0.2 * rng.standard_normal((N, 20)) + rng.choice([-1, 1], (N, 1)) * diagonal
    t = jnp.float64(0.3)
    x = add_noise(sde, x0, rng.standard_normal(x0.shape), t)
    found = np.asarray(diagnostics.fokker_planck(sde, denoise, x, t, keys))
    assert found.std() > 1e-9
    assert abs(found.mean()) < 4 * found.std() / np.sqrt(N)


def test_the_training_sets_own_denoiser():
    sde, rng = SDES["vp"](), np.random.default_rng(0)
    images, labels = rng.uniform(-1, 1, (7, 2, 2, 1)), np.array([0, 1, 0, 1, 0, 1, 1])
    x, t = rng.standard_normal((5, 2, 2, 1)), 0.4
    alpha, sigma = float(sde.alpha(jnp.float32(t))), float(sde.sigma(jnp.float32(t)))
    classes_of_x = np.array([0, 1, 1, 0, 0])
    for classes in (None, labels):
        found = diagnostics.empirical_denoiser(sde, images, classes)(x, t, classes_of_x)
        for one, own, label in zip(x, found, classes_of_x, strict=True):
            weights = np.array([np.exp(-np.sum((one - alpha * image) ** 2) / (2 * sigma**2)) for image in images])
            weights *= 1.0 if classes is None else classes == label
            expected = np.tensordot(weights / weights.sum(), images, 1)
            np.testing.assert_allclose(own, expected, rtol=1e-12, atol=1e-14)
    # With hardly any noise it is the image itself: what is memorized is given back.
    noisy = float(sde.alpha(jnp.float32(1e-3))) * images
    np.testing.assert_allclose(diagnostics.empirical_denoiser(sde, images)(noisy, 1e-3), images, atol=1e-12)


def test_jacobian_has_no_lower_bound():
    """Halfway between two points: 1 - (distance / 2 sigma)^2."""
    sde = SDES["edm"]()
    denoiser = mixture_denoiser(sde, [[-10.0], [10.0]], [0.0, 0.0])
    slope = jax.grad(lambda x: denoiser(x, 1.0).epsilon.sum())(jnp.zeros((1, 1)))
    np.testing.assert_allclose(slope, [[-99.0]], rtol=1e-4)
