"""`--mode=likelihood` against the known density of the data."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from configs import mixture, vp_digits_likelihood
from score_sde import ddpm
from score_sde.data import Dataset
from score_sde.data.examples import Arrays
from score_sde.errors import UserError
from score_sde.evaluation.likelihood import chain_epsilon, chain_through_vp, histogram_bits
from score_sde.evaluation.results import save_results
from score_sde.experiment import make_experiment
from score_sde.experiment.modes import likelihood
from score_sde.likelihood import log_likelihood
from score_sde.parameterization import Prediction
from score_sde.sde import edm, lift, vp
from tests import mixtures

MEAN, STD, LEVELS = 0.1, 0.3, 17
SUM = 5 * 4 * 2.0**-24  # five parts of at most 4 bits, each rounded to float32 before they are added


def one_device():
    import jax

    return jax.devices()[:1]


def pixels(n, seed):
    """(n, 2, 2, 1) integers: a normal rounded to 17 levels of [-1, 1]."""
    x = MEAN + STD * np.random.default_rng(seed).standard_normal((n, 2, 2, 1))
    return np.clip(np.rint((x + 1) * 8), 0, 16).astype(np.uint8)


def gaussian_experiment(**settings):
    """The exact network of the data that the pixels were rounded from, posing as a trained one."""
    config = mixture.get_config()
    config.data.image_size, config.data.channels = 2, 1
    parts = {"means": [[MEAN] * 4], "stds": (np.sqrt(STD**2 + (1 / 8) ** 2 / 12).item(),), "weights": ()}
    with config.unlocked(), config.ignore_type():
        config.data.kwargs, config.model.kwargs = dict(parts), dict(parts)
        config.likelihood.update({"divergence": "exact", "vlb_num_steps": 0, "batch_size": 64} | settings)
    experiment = make_experiment(config, one_device())
    source = {split: Dataset(Arrays(pixels(600, seed), np.zeros(600)), (2, 2, 1), LEVELS, 1) for seed, split in
              enumerate(("train", "test"))}  # fmt: skip
    return experiment._replace(load=source.__getitem__)


def true_bits():
    """The entropy of a pixel, by the probabilities of its levels."""
    from scipy import stats

    edges = np.concatenate([[-np.inf], (np.arange(1, 17) - 0.5) / 8 - 1, [np.inf]])
    probability = np.diff(stats.norm.cdf(edges, MEAN, STD))
    return probability, -np.sum(probability * np.log2(probability))


def test_bits_of_rounded_gaussian_pixels(tmp_path):
    """The bound exceeds the true bits by less than 1%, the cost of uniform dequantization."""
    likelihood(gaussian_experiment(), tmp_path)
    figures = json.loads((tmp_path / "evaluation.json").read_text())["likelihood"]
    probability, entropy = true_bits()
    test = pixels(600, 1).reshape(-1).astype(int)
    of_these = -np.log2(probability[test]).mean()  # of these very pixels, so that the sampling error cancels
    bits = figures["bits_per_dim"]
    assert of_these - 2 * bits["standard_error"] / 10 < bits["mean"] < 1.01 * of_these + bits["standard_error"] / 10
    assert abs(bits["mean"] - entropy) < 4 * bits["standard_error"]
    account = figures["bits_per_dim_account"]
    assert set(account) == {"dequantization", "prior", "divergence", "truncation"}
    np.testing.assert_allclose(sum(part["mean"] for part in account.values()), bits["mean"], rtol=0, atol=SUM)
    np.testing.assert_allclose(account["dequantization"]["mean"], 3.0, rtol=1e-6)  # -log2 of the width 1/8
    assert abs(figures["histograms_bits_per_dim"] - of_these) < 0.05
    assert figures["num_examples"] == 600
    assert figures["nfe"]["mean"] > 10


@pytest.mark.slow
def test_a_later_start_truncates_more(tmp_path):
    """The decoder N(x0_hat, (sigma / alpha)^2) is wider than the truth, the more so the more noise t_min leaves."""
    found = {}
    for t_min in (0.0, 1e-3, 0.1):
        likelihood(gaussian_experiment(t_min=t_min), tmp_path)
        found[t_min] = json.loads((tmp_path / "evaluation.json").read_text())["likelihood"]["bits_per_dim"]["mean"]
    assert found[0.0] == found[1e-3]  # vp's own
    # x | x_t is normal of variance v = 1 / (1 / s^2 + alpha^2 / sigma^2), narrower than the decoder's w = sigma^2 /
    # alpha^2: the bound loses KL(N(0, v) | N(0, w)) = (v / w - 1 - log (v / w)) / 2 nats, where the density is exact.
    b = 0.1 * 0.1 + 19.9 * 0.1**2 / 2
    share = 1 / (1 + np.expm1(b) / (STD**2 + (1 / 8) ** 2 / 12))  # v / w
    loss = (share - 1 - np.log(share)) / 2 / np.log(2)
    # Half a squared normal varies by 0.71 nats a dimension, of 2,400; what both starts share cancels.
    assert abs(found[0.1] - found[0.0] - loss) < 4 * 0.71 / np.sqrt(2400) / np.log(2) < loss / 2


@pytest.mark.slow
def test_the_importance_weighted_bound_is_tighter(tmp_path):
    settings = {"num_dequantizations": 8, "num_examples": 200, "rtol": 1e-3, "atol": 1e-3}
    means = []
    for importance in (False, True):
        folder = tmp_path / str(importance)
        likelihood(gaussian_experiment(importance_weighted=importance, **settings), folder)
        figures = json.loads((folder / "evaluation.json").read_text())["likelihood"]
        means.append(figures["bits_per_dim"]["mean"])
        parts = figures["bits_per_dim_account"]
        np.testing.assert_allclose(sum(part["mean"] for part in parts.values()), means[-1], rtol=0, atol=SUM)
    assert means[1] < means[0]  # the very same draws: log mean exp is never below the mean


@pytest.mark.slow
def test_real_numbers_get_nats_and_no_bits(tmp_path):
    """Against the exact density of the mixture at the points themselves."""
    config = mixture.get_config()
    config.likelihood.divergence, config.likelihood.num_examples = "exact", 300
    experiment = make_experiment(config, one_device())
    likelihood(experiment, tmp_path)
    text = (tmp_path / "evaluation.json").read_text()
    assert "bits" not in text
    figures = json.loads(text)["likelihood"]
    source = experiment.load("test")
    x = np.stack([source.examples[i]["image"] for i in range(300)])
    truth = np.mean(mixtures.log_density(jnp.asarray(x), 1.0, 0.0))
    # Apart from the draw of the noise at t_min: its term has the standard error that is reported.
    assert abs(figures["log_prob_nats"]["mean"] - truth) < 4 * figures["truncation_nats"]["standard_error"]


def test_a_chain_asks_any_process_at_the_same_noise_level():
    """edm's denoiser of N(0, 0): eps = x / sigma there is eps = x_n / sqrt(1 - abar) on the chain."""
    sde, chain = edm(), ddpm.linear_schedule(100)
    epsilon_fn = chain_epsilon(lambda x, t: Prediction(jnp.zeros_like(x), x / t[:, None]), sde, chain)
    x, n = jnp.ones((3, 2)), jnp.array([0, 50, 99])
    np.testing.assert_allclose(epsilon_fn(x, n)[:, 0], 1 / np.sqrt(1 - np.asarray(chain.alphas_cumprod)[n]), rtol=1e-4)


@pytest.mark.parametrize("num_steps", [1000, 4000])
def test_chain_through_vp_keeps_its_digits(num_steps):
    """Betas 1 - exp(B(t) - B(t')) of B(t) = 0.1 t + 9.95 t^2; noise levels sqrt(1 - exp(-B))."""
    t = np.arange(num_steps + 1) / num_steps
    integral = t * (0.1 + 9.95 * t)
    chain = chain_through_vp(num_steps)
    np.testing.assert_allclose(chain.betas, -np.expm1(-np.diff(integral)), rtol=1e-6)
    np.testing.assert_allclose(chain.alphas_cumprod, np.exp(-integral[1:]), rtol=1e-6)
    epsilon_fn = chain_epsilon(lambda x, t: Prediction(x, vp().sigma(t)[:, None] * jnp.ones_like(x)), vp(), chain)
    n = jnp.arange(num_steps)
    found = epsilon_fn(jnp.ones((num_steps, 1)), n)[:, 0]  # sigma at the time that belongs to the noise level
    np.testing.assert_allclose(found, np.sqrt(-np.expm1(-integral[1:])), rtol=1e-5)


@pytest.mark.slow
def test_default_tolerances_keep_likelihoods_near_the_truth():
    """Data N(0, 0.25 I) in 8 dimensions: five digits of log p at t_min, in nats; 1e-4 would be off by 1.1e-4."""
    sde, settings = vp(), mixture.get_config().likelihood
    alpha, sigma = float(sde.alpha(sde.t_min)), float(sde.sigma(sde.t_min))
    variance = alpha**2 * 0.25 + sigma**2
    x = np.sqrt(variance) * np.random.default_rng(0).standard_normal((64, 8))

    def denoiser(x, t):
        alpha, sigma = lift(sde.alpha(t), x), lift(sde.sigma(t), x)
        return Prediction(*(part * x / (alpha**2 * 0.25 + sigma**2) for part in (alpha * 0.25, sigma)))

    given = {"divergence": "exact", "rtol": settings.rtol, "atol": settings.atol}
    found = log_likelihood(sde, denoiser, jnp.asarray(x, "float32"), **given).log_prob
    truth = -0.5 * np.sum(x**2, axis=1) / variance - 4 * np.log(2 * np.pi * variance)
    assert abs(np.mean(np.asarray(found) - truth)) < 5e-5


def test_histograms():
    train = np.array([[0, 1], [0, 1], [1, 1]])
    # Counts with one added: pixel 0 (3, 2) / 5, pixel 1 (1, 4) / 5.
    expected = -np.log2([3 / 5, 4 / 5]).mean()
    np.testing.assert_allclose(histogram_bits(train, np.array([[0, 1]]), 2), expected)


def test_each_mode_keeps_the_others_figures(tmp_path):
    save_results(tmp_path, {"step": 1, "frechet": 2.0})
    save_results(tmp_path, {"likelihood": {"bits": 3.0}})
    save_results(tmp_path, {"step": 2})
    assert json.loads((tmp_path / "evaluation.json").read_text()) == {"step": 2, "likelihood": {"bits": 3.0}}


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("divergence", "exat", "Did you mean 'exact'"),
        ("method", "tsit", "Did you mean 'tsit5'"),
        ("num_probes", 0, "num_probes must be"),
        ("rtol", 0.0, "rtol > 0"),
        ("importance_weighted", True, "divergence=exact"),
        ("t_min", 1.0, "0 <= t_min < 1"),
    ],
)
def test_wrong_settings_are_refused_at_once(key, value, words):
    config = vp_digits_likelihood.get_config()
    config.likelihood[key] = value
    with pytest.raises(UserError, match=words):
        make_experiment(config, one_device())


@pytest.mark.slow
def test_example_that_exceeds_max_steps_raises(tmp_path):
    with pytest.raises(UserError, match="max_steps"):
        likelihood(gaussian_experiment(max_steps=2, num_examples=3), tmp_path)
