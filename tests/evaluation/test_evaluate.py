"""Killed evaluations resume with the same results; several checkpoints and EMAs give a curve."""

import json
import signal

import jax
import numpy as np
import pytest
from PIL import Image

from configs import mixture, toy2d
from score_sde.errors import UserError
from score_sde.evaluation import samples
from score_sde.evaluation.extractors import small_classifier
from score_sde.experiment import make_experiment
from score_sde.experiment.modes import evaluate
from tests.cli import finish, start
from tests.runs import train
from tests.training.test_resume import wait_for

MIXTURE = (
    "--config=configs/mixture.py",
    "--mode=evaluate",
    "--config.sampling.num_steps=20",
    "--config.evaluation.num_samples=6000",
    "--config.evaluation.num_repeats=2",
)


def made(config, **evaluation):
    config.evaluation.update(evaluation)
    return make_experiment(config, jax.devices())


@pytest.mark.slow
def test_a_killed_evaluation_ends_with_the_same_numbers(tmp_path):
    """Killed with -9 after some batches; it goes on with others of another size, and draws none of the first again."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start(killed, *MIXTURE, "--config.sampling.batch_size=10")
    parts = killed / samples.FOLDER
    wait_for(lambda: len(list(parts.glob("*/0*.npz"))) >= 3, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = {path: path.stat().st_mtime_ns for path in parts.glob("*/0*.npz")}
    assert 3 <= len(before) < 1200
    again = start(killed, *MIXTURE, "--config.sampling.batch_size=500")
    wait_for(lambda: len(list(parts.glob("*/0*.npz"))) > len(before), again)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items() if path.exists())
    finish(again)
    finish(start(whole, *MIXTURE, "--config.sampling.batch_size=500"))
    first, second = (json.loads((folder / "evaluation.json").read_text()) for folder in (whole, killed))
    np.testing.assert_allclose(first["sliced_wasserstein_ratio"], second["sliced_wasserstein_ratio"], rtol=1e-5)
    assert first.pop("sampling") == second.pop("sampling")
    assert first.keys() == second.keys()
    assert (first["solver"], first["nfe"], first["step"], first["seed"]) == ("ddim", 21.0, 0, 0)
    assert len(first["data"]["train"]["hash"]) == 16
    assert not parts.exists()  # the figures are whole: the samples are gone


def test_folder_of_samples_depends_on_their_settings(tmp_path):
    """Solver, steps, seed and parameters change the folder; batch size and numbers of samples do not."""

    def key(**changes):
        config = mixture.get_config()
        for name, value in changes.items():
            group, _, name = name.rpartition("__")
            (config[group] if group else config)[name] = value
        experiment = made(config)
        return samples._key(experiment.sampler, {"kernel": np.ones(3)}, experiment.config)

    usual = key()
    for changes in ({"sampling__batch_size": 7}, {"sampling__num_samples": 9}, {"evaluation__num_repeats": 2}):
        assert key(**changes) == usual
    for changes in ({"sampling__num_steps": 30}, {"seed": 1}, {"sampling__solver": "heun"}):
        assert key(**changes) != usual
    experiment = made(mixture.get_config())
    assert samples._key(experiment.sampler, {"kernel": np.zeros(3)}, experiment.config) != usual


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return a run with three checkpoints and several EMAs, and the function that builds it."""
    workdir = tmp_path_factory.mktemp("points")

    def experiment(**evaluation):
        config = toy2d.get_config()
        config.model.kwargs = {"features": (8,)}
        config.training.update(batch_size=8, num_steps=30, steps_per_call=1, log_every=10, checkpoint_every=10)
        config.training.update(sample_every=30, ema_decays=(0.5,), ema_lengths=(0.05, 0.1), snapshot_every=10)
        config.sampling.update(num_steps=4, num_samples=10, batch_size=50)
        return made(config, **{"num_samples": 50, "num_real": 200, **evaluation})

    train(experiment(), workdir, jax.devices())
    return workdir, experiment


@pytest.mark.slow
def test_checkpoints_and_averages_make_a_curve(run):
    workdir, experiment = run
    evaluate(experiment(every_checkpoint=True, ema_decays=(0.998, 0.5)), workdir)
    figures = json.loads((workdir / "evaluation.json").read_text())
    rows = figures["curve"]
    decays = [0.998, 0.5]
    assert [(row["step"], row["average"]) for row in rows] == [(n, {"decay": d}) for n in (10, 20, 30) for d in decays]
    assert {name: value for name, value in figures.items() if name != "curve"} == rows[-1]
    assert len({row["sliced_wasserstein_ratio"] for row in rows}) == 6  # other parameters, other samples
    assert Image.open(workdir / "evaluation_curve.png").size[1] == 400
    # One of them alone is the same number, and replaces the curve.
    evaluate(experiment(steps=(20,), ema_decays=(0.5,)), workdir)
    alone = json.loads((workdir / "evaluation.json").read_text())
    assert "curve" not in alone
    assert alone["sliced_wasserstein_ratio"] == rows[3]["sliced_wasserstein_ratio"]
    # Lengths of EDM2's averages, chosen afterwards.
    evaluate(experiment(ema_lengths=(0.06, 0.09)), workdir)
    rows = json.loads((workdir / "evaluation.json").read_text())["curve"]
    assert [row["average"] for row in rows] == [{"length": 0.06}, {"length": 0.09}]
    assert rows[0]["sliced_wasserstein_ratio"] != rows[1]["sliced_wasserstein_ratio"]


def test_what_is_not_there_is_refused_before_anything_is_drawn(run):
    workdir, experiment = run
    with pytest.raises(UserError, match="checkpoints of the steps 10, 20, 30, not of 25"):
        evaluate(experiment(steps=(20, 25)), workdir)
    with pytest.raises(UserError, match=r"no average of decay 0\.9 is kept.*set ema_decays"):
        evaluate(experiment(ema_decays=(0.9,)), workdir)
    with pytest.raises(UserError, match="can be chosen"):
        experiment(steps=(20,), every_checkpoint=True)
    with pytest.raises(UserError, match="diagnostics_levels must be an integer of at least 2, got 1"):
        experiment(diagnostics_levels=1)
    assert not (workdir / samples.FOLDER).exists()


def test_health_of_a_network_of_points(run):
    workdir, experiment = run
    evaluate(experiment(score_diagnostics=True, diagnostics_levels=3, diagnostics_images=40, num_real=10_000), workdir)
    figures = json.loads((workdir / "evaluation.json").read_text())["health"]
    assert (figures["step"], figures["num_images"], len(figures["levels"])) == (30, 40, 3)
    for row in figures["levels"]:
        assert {"loss", "loss_train", "stein", "curl", "fokker_planck", "memorization", "memorization_test"} <= set(row)
        assert all(np.isfinite(value["mean"]) for value in row.values() if isinstance(value, dict))
    assert "excess" not in figures["levels"][0]  # the truth isn't known
    assert figures["levels"][0]["log_snr"] > figures["levels"][2]["log_snr"]
    assert Image.open(workdir / "health.png").size[1] == 400


@pytest.mark.slow
def test_images_are_compared_with_another_run(tmp_path, monkeypatch):
    """Two evaluations of one network do not differ, and other data raise an error."""
    from configs import vp_digits

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(small_classifier, "STEPS", 10)

    def experiment(**evaluation):
        config = vp_digits.get_config()
        config.model.name, config.model.kwargs = "mixture", {"means": ((0.0,) * 64, (0.5,) * 64), "stds": (0.5, 0.3)}
        config.sampling.update(num_steps=3, batch_size=40)
        return made(config, **{"num_samples": 40, "num_real": 100, **evaluation})

    first, second = tmp_path / "first", tmp_path / "second"
    evaluate(experiment(), first)
    evaluate(experiment(baseline=str(first)), second)
    figures = json.loads((second / "evaluation.json").read_text())
    assert figures["against"].pop("whose") == str(first)
    assert set(figures["against"]) == {"fd_classifier_40", "kid_classifier_40", "fd_pixels_40", "kid_pixels_40"}
    assert all(value == 0 for value in figures["against"].values())
    assert set(figures["features"]) == {"classifier", "pixels"}
    assert figures["data"]["train"]["number"] == 100
    for changes in ({"num_real": 90}, {"num_samples": 41}, {"features": ("pixels",)}):
        with pytest.raises(UserError, match="not comparable with these"):
            evaluate(experiment(baseline=str(first), **changes), tmp_path / "third")
    with pytest.raises(UserError, match="there is no evaluation at"):
        evaluate(experiment(baseline=str(tmp_path / "nowhere")), tmp_path / "third")
    assert not list((tmp_path / "third").glob("evaluation*"))
