"""`import score_sde` is enough for the mathematics, and loads nothing that only training needs."""

import subprocess
import sys

import pytest

from tests.cli import ROOT, environment

HEAVY = {"tensorflow_datasets", "tensorflow", "orbax.checkpoint", "grain", "sklearn", "ray", "matplotlib", "diffrax"}

SAMPLE_A_MIXTURE = """
import jax
import score_sde

module = score_sde.create("mixture", means=((-2.0, 0.0), (2.0, 0.0)), stds=(0.5, 0.5))
model = score_sde.DiffusionModel(module, score_sde.vp(), event_shape=(2,), prediction="v")
keys = jax.random.split(jax.random.key(0), 1000)
times = score_sde.time_grid(model.sde, 20, "log_snr")
solver = score_sde.SOLVERS["dpm_solver_pp"]()
x = score_sde.sample(model, {}, keys, solver=solver, times=times, denoise=True).x
assert x.shape == (1000, 2) and abs(abs(x[:, 0]).mean() - 2) < 0.1
"""


def run(code):
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_light_and_has_all_names():
    code = "import sys, score_sde; [getattr(score_sde, name) for name in score_sde.__all__]; print(*sys.modules)"
    assert not HEAVY & set(run(code).split())


@pytest.mark.slow
def test_fifteen_lines_sample_a_mixture():
    """The mean of |x| of a component at 2 with std 0.5 is 2.00; 0.1 is six standard errors."""
    run(SAMPLE_A_MIXTURE)
