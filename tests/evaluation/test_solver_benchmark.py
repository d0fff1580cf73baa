"""`--mode=certify` on an exact network, where distances have orders."""

import json

import jax
import numpy as np
import pytest

from configs import ddpm_digits, mixture
from score_sde.errors import UserError
from score_sde.evaluation.solver_benchmark import brownian_noise, make_runner
from score_sde.experiment import make_experiment
from score_sde.experiment.modes import certify
from score_sde.sde import vp
from score_sde.solvers import ancestral, solve, time_grid
from tests.solvers.gaussian import denoiser


def experiment(**settings):
    config = mixture.get_config()
    config.certify.num_samples = 8
    config.certify.update(settings)
    return make_experiment(config, jax.devices()[:1])


@pytest.mark.slow
def test_the_table_of_an_exact_network(tmp_path):
    settings = {"nfe": (24, 96), "spacings": ("karras", "log_snr"), "reference_steps": 200}
    text = certify(experiment(sde_num_steps=(128, 256, 512, 2048), **settings), tmp_path)
    figures = json.loads((tmp_path / "evaluation.json").read_text())["certify"]
    distance = {
        (row["solver"], row["nfe"]): row["distance"] for row in figures["deterministic"] if row["spacing"] == "log_snr"
    }
    # Four times the evaluations: at least half of 4^order nearer, where the float32 of the reference lets it be seen.
    for solver, order in (("ddim", 1), ("heun", 2), ("dpm_solver_pp 2M", 2), ("dpm_solver_pp 3S", 3), ("rk4", 4)):
        assert distance[solver, 96] < max(2 * distance[solver, 24] / 4**order, 3e-5)
    assert figures["reference_own_error"] < 1e-4
    cheapest = figures["cheapest_within_1_percent"]
    assert cheapest["distance"] < 0.01
    assert cheapest["nfe"] == min(row["nfe"] for row in figures["deterministic"] if row["distance"] < 0.01)
    assert f"the cheapest within 1% is {cheapest['solver']}" in text
    # Additive noise: strong order 1, less a fifth.
    for row in figures["stochastic"]:
        assert row["strong_order"] > 0.8, row
        assert row["distances"][0] > row["distances"][-1]
    assert (tmp_path / "certify.png").read_bytes().startswith(b"\x89PNG")


def test_finer_grids_fill_in_the_same_path():
    """The increments of a coarse grid are the sums of a finer one's."""
    x = np.zeros((2, 3), np.float32)
    keys = jax.random.split(jax.random.key(0), 2)
    fine = np.linspace(1.0, 0.2, 9)
    parts = brownian_noise(keys, x, fine, fine) * np.sqrt(-np.diff(fine))[:, None, None]
    whole = brownian_noise(keys, x, fine[::4], fine) * np.sqrt(-np.diff(fine[::4]))[:, None, None]
    np.testing.assert_allclose(np.asarray(parts).reshape(2, 4, 2, 3).sum(1), whole, atol=1e-5)


def test_one_program_serves_grids_of_all_lengths(compilations):
    sde, x = vp(), np.ones((2, 3), np.float32)
    run = make_runner(ancestral(), sde, lambda params: denoiser(sde), 20)
    noise = jax.random.normal(jax.random.key(0), (20, 2, 3))
    run(None, x, time_grid(sde, 20), noise)
    compilations.clear()
    for steps in (1, 7, 20):
        result = run(None, x, time_grid(sde, steps), noise[:steps])
        expected = solve(ancestral(), sde, denoiser(sde), x, time_grid(sde, steps), noise=noise[:steps]).x
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"spacings": ("karas",)}, "Did you mean 'karras'"),
        ({"nfe": ()}, "some nfe"),
        ({"sde_num_steps": (16, 16, 32)}, "three different sde_num_steps"),
        ({"num_samples": 0}, "num_samples must be"),
    ],
)
def test_wrong_settings_are_refused_at_once(settings, words):
    with pytest.raises(UserError, match=words):
        experiment(**settings)


@pytest.mark.slow
def test_a_chains_network_is_not_asked_between_its_steps(tmp_path):
    with pytest.raises(UserError, match="allow_off_grid_times=True"):
        certify(make_experiment(ddpm_digits.get_config(), jax.devices()[:1]), tmp_path)
