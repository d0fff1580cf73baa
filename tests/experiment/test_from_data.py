"""Values of a config that follow from the data: classes, mean and standard deviation."""

import jax
import numpy as np
import pytest
from PIL import Image

from configs import toy2d, vp_digits_conditional
from score_sde.errors import UserError
from score_sde.evaluation.likelihood import likelihood
from score_sde.experiment import make_experiment
from score_sde.models import pretrained
from score_sde.training.checkpoints import restore_newest
from score_sde.training.load import export, write_weights
from score_sde.training.setup import check_data
from tests.runs import train


def table(tmp_path, mean=(50_000.0, 0.0), std=(1000.0, 10.0)):
    """Return a config on features of these means and standard deviations."""
    rng = np.random.default_rng(0)
    path = tmp_path / "table.npz"
    np.savez(path, images=rng.normal(size=(400, 2)) * std + mean)
    config = toy2d.get_config()
    config.data.name, config.data.path, config.data.kwargs = "npz", str(path), {}
    config.model.kwargs = {"features": (8,)}
    config.training.update({"batch_size": 8, "num_steps": 10, "steps_per_call": 1, "log_every": 10})
    config.training.update({"checkpoint_every": 10, "sample_every": 10})
    config.sampling.update({"num_samples": 8, "batch_size": 8, "num_steps": 2})
    return config


def folder_of_classes(tmp_path, names):
    for name in names:
        (tmp_path / name).mkdir()
        for i in range(4):
            Image.fromarray(np.full((8, 8), 60 * i, np.uint8)).save(tmp_path / name / f"{i}.png")
    config = vp_digits_conditional.get_config()
    config.data.name, config.data.path = "image_folder", str(tmp_path)
    return config


def build(config, **kwargs):
    return make_experiment(config, jax.devices()[:1], **kwargs)


def test_classes_come_from_data(tmp_path):
    config = folder_of_classes(tmp_path, ("cat", "dog", "eel"))
    experiment = build(config)
    assert experiment.config["model"]["kwargs"]["num_classes"] == experiment.training.num_classes == 3
    np.testing.assert_array_equal(experiment.sampler.labels(np.arange(4)), [0, 1, 2, 0])
    saved = {**experiment.config, "model": {"kwargs": {"num_classes": 5}}}
    assert build(config, saved=saved).training.num_classes == 5  # the data may be elsewhere
    config.model.kwargs.num_classes = 10
    other = build(config)
    with pytest.raises(UserError, match="the network has 10 classes, the data have 3"):
        check_data(other.training, other.load("train"), 1)
    config.sampling.label = 10
    with pytest.raises(UserError, match="label 10: the network has the classes 0 to 9"):
        build(config)


def test_classes_without_examples_are_not_sampled(tmp_path):
    labels = np.arange(40) % 2 * 2
    np.savez(tmp_path / "data.npz", images=np.zeros((40, 8, 8), np.uint8), labels=labels)
    config = vp_digits_conditional.get_config()
    config.data.name, config.data.path = "npz", str(tmp_path / "data.npz")
    experiment = build(config)
    assert experiment.training.num_classes == 3
    np.testing.assert_array_equal(experiment.sampler.labels(np.arange(4)), [0, 2, 0, 2])
    config.sampling.label = 1
    with pytest.raises(UserError, match="label 1: this class has no training example"):
        build(config).sampler.labels(np.arange(2))


@pytest.mark.parametrize(
    ("mean", "std", "words"),
    [
        ((50_000.0, 0.0), (1000.0, 1.0), r"got mean 49\d{3}.* and standard deviation .* of feature 0"),
        ((0.0, 0.0), (1.0, 1e-4), "of feature 1"),
    ],
)
def test_features_of_other_scale_raise(tmp_path, mean, std, words):
    experiment = build(table(tmp_path, mean, std))
    with pytest.raises(UserError, match=words):
        check_data(experiment.training, experiment.load("train"), 1)


def test_standardization_is_stored_inverted_and_counted(tmp_path):
    config = table(tmp_path)
    config.data.standardize = True
    experiment = build(config)
    source = experiment.load("train")
    examples = np.stack([source.examples[i]["image"] for i in range(len(source.examples))])
    np.testing.assert_allclose(examples.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(examples.std(axis=0), 1, atol=1e-5)
    mean, std = (np.array(experiment.config["data"][name]) for name in ("mean", "std"))
    np.testing.assert_allclose(mean, [50_000, 0], atol=4 * 1000 / np.sqrt(360))

    run = tmp_path / "run"
    train(experiment, run, jax.devices()[:1])
    samples = np.load(run / "samples" / "step_00000010.npz")["samples"]
    params = restore_newest(run)["ema_params"]
    (batch,) = experiment.sampler.batches(params)
    np.testing.assert_allclose(samples, mean + std * batch.x, rtol=1e-5)

    (tmp_path / "table.npz").rename(tmp_path / "moved.npz")  # the run has what it needs
    again = build(config, saved=experiment.config)
    assert again.config == experiment.config
    assert pretrained.load_model(str(export(again.training, again.config, run))).scaling == (
        mean.tolist(),
        std.tolist(),
    )
    (tmp_path / "moved.npz").rename(tmp_path / "table.npz")

    options = experiment.likelihood._replace(num_examples=4, batch_size=8, divergence="exact", rtol=1e-3, atol=1e-3)
    results = likelihood(experiment.model, params, experiment.load, options, 0)
    assert results["standardization_nats"]["mean"] == pytest.approx(-np.log(std).sum(), rel=1e-5)
    parts = sum(value["mean"] for name, value in results.items() if name.endswith("_nats") and name != "log_prob_nats")
    assert results["log_prob_nats"]["mean"] == pytest.approx(parts, rel=1e-4)


def test_standardized_export_is_adopted(tmp_path):
    config = table(tmp_path)
    config.data.standardize = True
    experiment = build(config)
    write_weights(tmp_path / "w.safetensors", experiment.training.init_params(), experiment.config, ["a", "b"])
    plain = table(tmp_path)
    plain.model.pretrained = str(tmp_path / "w.safetensors")
    assert build(plain).config["data"]["mean"] == experiment.config["data"]["mean"]


def test_standardization_of_pixels_raises():
    config = vp_digits_conditional.get_config()
    config.data.standardize = True
    with pytest.raises(UserError, match="expects real numbers, got pixels"):
        build(config)
    config.data.standardize, config.data.std = False, (1.0,)
    with pytest.raises(UserError, match="only used with standardize"):
        build(config)


def test_infinite_number_raises():
    config = vp_digits_conditional.get_config()
    config.training.ema_decay = float("inf")
    with pytest.raises(UserError, match=r"training\.ema_decay: expected a finite number"):
        build(config)


def test_warmup_beyond_training_is_noted():
    config = vp_digits_conditional.get_config()
    config.optimizer.warmup_steps = 5000
    assert "the learning rate ends at 0.6 of 0.001" in build(config).training.notes[0]
