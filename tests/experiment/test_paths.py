"""Paths with `~` and colons, and relative paths of config files."""

import json
import os
from pathlib import Path

import jax
import pytest

from score_sde import __main__ as program
from score_sde.errors import UserError
from score_sde.experiment import make_experiment
from score_sde.experiment.flags import get
from score_sde.experiment.overrides import load, override
from score_sde.experiment.paths import PATHS, look_up, split_variant
from score_sde.sweeps.trials import make_trials
from score_sde.training.workdir import check_config, prepare
from tests.cli import ROOT
from tests.experiment.test_config_combinations import small

CONFIG = """
from score_sde.experiment.defaults import default
def get_config(variant=""):
    config = default()
    config.data.path = "pictures/train"
    config.model.pretrained = "~/w"
    config.model.name = variant or "mlp"
    return config
"""
SWEEP = """
from score_sde.sweeps import sweep
def get_config():
    return sweep("configs/base.py:dit", [{}], ("train.loss",), {"data.path": "pictures/train"})
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A project in a folder with a colon, seen from another folder."""
    project = tmp_path / "a:b"
    (project / "configs" / "sweeps").mkdir(parents=True)
    (project / "pictures" / "train").mkdir(parents=True)
    (project / "configs" / "base.py").write_text(CONFIG)
    (project / "configs" / "sweeps" / "sweep.py").write_text(SWEEP)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("HOME", str(tmp_path))
    return project


def test_variant_follows_the_longest_file(folder):
    path = f"{folder}/configs/base.py"
    assert split_variant(path) == (path, "")
    assert split_variant(f"{path}:x:y") == (path, "x:y")
    assert split_variant("~/a:b/configs/base.py:x") == (path, "x")
    Path(f"{path}:x").touch()
    assert split_variant(f"{path}:x") == (f"{path}:x", "")
    assert split_variant("a:b/none.py:x") == ("a:b/none.py", "x")


def test_config_paths_are_found_from_its_folder(folder):
    config = load(f"{folder}/configs/base.py:dit")
    assert (config.model.name, config.model.pretrained) == ("dit", "~/w")
    assert config.data.path == str(folder / "pictures" / "train")
    assert look_up("pictures", folder / "configs") == "pictures"  # a single word may be anything


def test_sweep_finds_its_base_from_its_folder(folder):
    settings = load(f"{folder}/configs/sweeps/sweep.py")
    assert settings.base == f"{folder}/configs/base.py:dit"
    assert settings.fixed[0] == {"data.path": str(folder / "pictures" / "train")}
    (folder / "configs" / "base.py").unlink()
    with pytest.raises(UserError, match=f"in {Path.cwd()}, or in {folder}/configs/sweeps and the folders above it"):
        load(f"{folder}/configs/sweeps/sweep.py")


def test_command_line_expands_paths(folder):
    flags = ["--workdir=~/run:1", "--config=~/a:b/configs/base.py:dit", "--config.data.path=~/data"]
    program.parse_flags(["launch.py", *flags])
    assert program.FLAGS.workdir == f"{folder.parent}/run:1"
    assert program.FLAGS.config.data.path == "~/data"  # until the experiment is made
    program.parse_flags(["launch.py", flags[1]])


def test_sweep_runs_from_another_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    settings = load(str(ROOT / "configs" / "sweeps" / "solvers_digits.py"))
    settings = override(settings, {"fixed.training.num_steps": 20, "fixed.model.kwargs.channels": 8})
    assert settings.base == str(ROOT / "configs" / "vp_digits.py")
    (trial, *_) = make_trials(settings, tmp_path)
    assert (trial.config.training.num_steps, trial.config.model.kwargs.channels) == (20, 8)


def test_every_path_is_expanded_and_recorded_as_given(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = small()
    texts = {key: "~/x" for key in PATHS if key.startswith("evaluation") or key == "data.path"}
    experiment = make_experiment(override(config, texts), jax.devices()[:1])
    assert experiment.evaluation.inception == experiment.evaluation.baseline == f"{tmp_path}/x"
    assert {key: get(override(small(), experiment.config), key) for key in texts} == texts
    with pytest.raises(UserError, match=f"{tmp_path}/x"):
        experiment.load("train")
    for key in ("model.pretrained", "sampling.guidance_weights"):
        with pytest.raises(UserError, match=f"no weights at {tmp_path}/x"):
            make_experiment(override(config, {key: "~/x"}), jax.devices()[:1])


def test_resume_accepts_the_expanded_path(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    prepare(tmp_path / "run", {"model": {"pretrained": "~/x"}})
    assert json.loads((tmp_path / "run" / "config.json").read_text())["model"]["pretrained"] == "~/x"
    for same in ("~/x", f"{tmp_path}/x", os.path.relpath(tmp_path / "x")):
        check_config(tmp_path / "run", {"model": {"pretrained": same}})
    with pytest.raises(UserError, match=r"model\.pretrained was '~/x', is '/x'"):
        check_config(tmp_path / "run", {"model": {"pretrained": "/x"}})
