"""The demonstration's claim: the digits it draws pass for digits."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.svm import fit_svm, top_class
from score_sde.data import load, load_examples, to_unit_range
from tests.cli import ROOT


@pytest.mark.slow
def test_the_demonstration_draws_digits(tmp_path):
    command = [sys.executable, "launch.py", "--config=configs/demo.py", f"--workdir={tmp_path}"]
    environment = dict(os.environ, XLA_FLAGS="", XDG_CACHE_HOME=str(ROOT / ".pytest_cache"))
    for flags in (("--mode=train",), ("--mode=evaluate",), ("--mode=sample", "--config.sampling.num_samples=500")):
        subprocess.run([*command, *flags], cwd=ROOT, env=environment, check=True, timeout=1800)
    figures = json.loads((tmp_path / "evaluation.json").read_text())
    assert figures["num_samples"] == 1000
    assert figures["classifier"]["test_accuracy"] >= 0.97
    assert figures["fd_pixels_ratio"] <= 1.2

    # Of a support vector machine, which reads digits by other means than the network that is a part of `evaluate`.
    train, test = (load("digits", split, 8, 1) for split in ("train", "test"))
    images, labels = load_examples(train)
    machine = fit_svm(to_unit_range(images, 17), labels)
    images, labels = load_examples(test)
    classes, sure = top_class(machine, to_unit_range(images, 17))
    assert np.mean(classes == labels) >= 0.97
    drawn = np.load(tmp_path / "samples" / "step_00000800.npz")["images"]
    found, seen = top_class(machine, to_unit_range(drawn, 256))
    assert abs(seen.mean() - sure.mean()) < 0.05
    shares = np.bincount(found, minlength=10) / len(found)
    assert all(0.04 <= share <= 0.20 for share in shares)
