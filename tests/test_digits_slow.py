"""The demonstration's claim: the digits it draws pass for digits."""

import json
import os
import subprocess
import sys

import pytest

from tests.command import ROOT


@pytest.mark.slow
def test_the_demonstration_draws_digits(tmp_path):
    command = [sys.executable, "launch.py", "--config=configs/vp_digits.py", f"--workdir={tmp_path}"]
    environment = dict(os.environ, XLA_FLAGS="")
    for mode in ("--mode=train", "--mode=evaluate"):
        subprocess.run([*command, mode], cwd=ROOT, env=environment, check=True, timeout=1800)
    figures = json.loads((tmp_path / "evaluation.json").read_text())
    assert figures["num_samples"] == 1000
    assert figures["classifier"]["test_accuracy"] >= 0.97
    assert abs(figures["top_class_probability_samples"] - figures["top_class_probability_test"]) < 0.05
    assert all(0.04 <= share <= 0.20 for share in figures["class_shares"])
    assert figures["fd_pixels_ratio"] <= 1.2
