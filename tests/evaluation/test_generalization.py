"""Losses and copies: of Gaussian and mixture data in closed form, of a network that memorizes, of copied samples."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import ddpm_digits, toy2d
from score_sde import models
from score_sde.data import Dataset
from score_sde.data.examples import Arrays
from score_sde.errors import UserError
from score_sde.evaluation.generalization import copies, loss_names, make_count_copies, make_losses, record_losses
from score_sde.evaluation.options import EvaluationOptions
from score_sde.evaluation.score_diagnostics import log_snr_levels
from score_sde.experiment import make_experiment
from score_sde.experiment.defaults import default
from score_sde.experiment.modes import evaluate, make_pictures
from score_sde.model import DiffusionModel
from score_sde.sde import SDES, prior_sample, t_from_log_snr
from score_sde.solvers import ddim, solve, time_grid
from score_sde.training.metrics import read_log
from tests.runs import train
from tests.thinned import thinned

MEANS, STDS = np.array([-0.6, 0.7]), np.array([0.2, 0.4])


def options(**changes):
    values = default().evaluation.to_dict() | changes
    return EvaluationOptions(**{name: values[name] for name in EvaluationOptions._fields})


def loader(train, test):
    sets = {"train": train, "test": test}

    def load(split):
        points = sets[split].astype(np.float32)
        return Dataset(Arrays(points, np.zeros(len(points), int)), points.shape[1:], None, 1)

    return load


def mixture(sde, means, stds):
    module = models.create("mixture", means=means, stds=stds)
    return DiffusionModel(module, sde, (len(means[0]),), "v", "log_snr")


def least_loss_of_a_mixture(sde, t):
    """E |eps_exact - eps|^2 = Var(eps | x), averaged over x by quadrature: the posterior of x0 is a mixture."""
    alpha, sigma = (float(f(jnp.float32(t))) for f in (sde.alpha, sde.sigma))
    x = np.linspace(alpha * -3 - 8 * sigma, alpha * 3 + 8 * sigma, 40001)[:, None]
    variance = alpha**2 * STDS**2 + sigma**2
    density = 0.5 * np.exp(-((x - alpha * MEANS) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)
    means = MEANS + alpha * STDS**2 * (x - alpha * MEANS) / variance
    second = means**2 + STDS**2 * sigma**2 / variance
    share = density / density.sum(1, keepdims=True)
    posterior = np.sum(share * second, 1) - np.sum(share * means, 1) ** 2
    return (alpha / sigma) ** 2 * np.trapezoid(density.sum(1) * posterior, x[:, 0])


@pytest.mark.parametrize("name", thinned(("vp", "edm", "flow"), "vp"))
def test_losses_of_exact_networks_are_those_of_the_closed_forms(name):
    sde, rng = SDES[name](), np.random.default_rng(0)
    times = np.array([t_from_log_snr(sde, jnp.float32(level)) for level in log_snr_levels(sde, 5)])
    alpha, sigma, std = sde.alpha(times), sde.sigma(times), 0.6
    components = rng.choice(2, (2, 4000, 1))
    normal = rng.standard_normal((2, 4000, 1))
    gaussian = (((0.0,),), (std,), std * normal, np.mean(alpha**2 * std**2 / (alpha**2 * std**2 + sigma**2)))
    points = MEANS[components] + STDS[components] * normal
    of_two = np.mean([least_loss_of_a_mixture(sde, t) for t in times])
    for means, stds, data, expected in (gaussian, (tuple((mean,) for mean in MEANS), tuple(STDS), points, of_two)):
        chosen = options(diagnostics_images=4000, diagnostics_levels=5, num_real=4000)
        found = make_losses(mixture(sde, means, stds), loader(*data), chosen, 0, False)({})
        for split in ("train", "test"):
            assert abs(found[split]["mean"] - expected) < 4 * found[split]["standard_error"]
        assert found["least_train"]["mean"] < found["train"]["mean"]


@pytest.mark.parametrize("name", thinned(("vp", "flow"), "vp"))
def test_a_network_that_memorizes_has_the_least_loss_and_draws_copies(name):
    sde, rng = SDES[name](), np.random.default_rng(0)
    train, test = rng.uniform(-1, 1, (2, 30, 4))
    model = mixture(sde, tuple(map(tuple, train)), (0.0,) * len(train))
    found = make_losses(model, loader(train, test), options(diagnostics_levels=6), 0, False)({})
    assert found["train"]["mean"] == pytest.approx(found["least_train"]["mean"], rel=1e-4)
    assert found["test"]["mean"] > 2 * found["train"]["mean"]

    @jax.jit
    def draw():
        x = prior_sample(sde, jax.random.key(0), (50, 4))
        return solve(ddim(), sde, model.denoiser({}), x, time_grid(sde, 30, "log_snr"), denoise=True).x

    samples = draw()
    assert make_count_copies(train, test)(np.asarray(samples))["copies"]["mean"] == 1.0


def test_a_network_that_memorizes_flipped_images_has_the_least_loss():
    sde, rng = SDES["vp"](), np.random.default_rng(0)
    images = rng.uniform(-1, 1, (2, 10, 2, 3, 1))
    both = np.concatenate([images[0], images[0][:, :, ::-1]]).reshape(20, -1)
    model = mixture(sde, tuple(map(tuple, both)), (0.0,) * 20)._replace(event_shape=(2, 3, 1))
    chosen = options(diagnostics_levels=6)
    found, without = (make_losses(model, loader(*images), chosen, 0, False, mirrored)({}) for mirrored in (True, False))
    assert found["train"]["mean"] == pytest.approx(found["least_train"]["mean"], rel=1e-4)
    assert without["least_train"]["mean"] < 0.99 * found["least_train"]["mean"]
    dequantized = make_losses(model, loader(*images), chosen, 0, True)({})
    assert set(dequantized) == {"train", "test"}


def test_copies_are_a_third_as_far_as_the_second_nearest():
    train = np.array([[0, 0], [12, 0], [100, 100]], np.uint8)
    samples = np.array([[0, 0], [2, 0], [3, 0], [4, 0], [6, 0], [99, 100]], np.uint8)
    # Distances to the nearest and the second nearest: 0 and 12, 2 and 10, 3 and 9, 4 and 8, 6 and 6, 1 and far.
    assert copies(samples, train).tolist() == [True, True, False, False, False, True]
    found = make_count_copies(train, train[:2] + np.uint8(6))(samples)
    assert found["copies"]["mean"] == 0.5 and found["copies_test_train"] == 0.0
    many = np.concatenate([np.full((3000, 2), 200, np.uint8) + np.arange(3000)[:, None] % 7, train]).astype(np.uint8)
    assert copies(samples[:3], many).tolist() == [True, True, False]  # in several parts
    assert copies(samples, np.concatenate([train, train])).tolist() == copies(samples, train).tolist()
    images = np.random.default_rng(0).integers(0, 256, (4, 2, 6, 1), np.uint8)
    for mirrored in (False, True):
        count = make_count_copies(images, images, mirrored)
        assert count(images[:, :, ::-1])["copies"]["mean"] == float(mirrored)


def test_a_large_training_set_has_no_least_loss():
    rng = np.random.default_rng(0)
    data = loader(rng.standard_normal((100, 2)), rng.standard_normal((50, 2)))
    model = mixture(SDES["vp"](), ((0.0, 0.0),), (1.0,))
    found = make_losses(model, data, options(num_real=99, diagnostics_levels=2), 0, False)({})
    assert set(found) == {"train", "test"} == set(loss_names(model, data("train"), options(num_real=99), False))
    assert set(loss_names(model, data("train"), options(), False)) == {"train", "test", "least_train"}
    assert "least_train" not in loss_names(model, data("train"), options(), True)
    assert loss_names(model._replace(timesteps=object()), data("train"), options(), False) == ()


@pytest.mark.slow
def test_losses_are_recorded_at_every_sample_grid(tmp_path):
    config = toy2d.get_config()
    config.model.kwargs = {"features": (8,)}
    config.training.update(batch_size=8, num_steps=20, steps_per_call=1, log_every=10, checkpoint_every=10)
    config.training.sample_every = 10
    config.sampling.update(num_steps=4, num_samples=10, batch_size=50)
    config.evaluation.update(losses_in_training=True, num_samples=50, diagnostics_images=40)
    experiment = make_experiment(config, jax.devices()[:1])
    train(experiment, tmp_path, jax.devices()[:1])
    rows, _ = read_log(tmp_path / "losses.jsonl")
    assert [set(row) for row in rows] == [{"step", "train", "test", "least_train"}] * 2
    assert rows[0]["train"]["mean"] > rows[1]["train"]["mean"] > rows[1]["least_train"]["mean"]
    assert (tmp_path / "losses.png").is_file()
    evaluate(experiment, tmp_path)
    losses = json.loads((tmp_path / "evaluation.json").read_text())["losses"]
    assert losses["test"]["mean"] == pytest.approx(rows[1]["test"]["mean"], rel=1e-5)
    record_losses(tmp_path, 10, losses)  # a run resumed from step 5 measures them again
    assert read_log(tmp_path / "losses.jsonl")[0] == [{"step": 10, **losses}]


def test_networks_of_discrete_time_record_no_losses(tmp_path):
    config = ddpm_digits.get_config()
    config.model.kwargs.update(channels=8, multipliers=(1,), num_res_blocks=1, attention_resolutions=())
    config.evaluation.losses_in_training = True
    with pytest.raises(UserError, match="expected a network of continuous time"):
        make_pictures(make_experiment(config, jax.devices()[:1]), tmp_path)
