"""Power-function EMAs and their post-hoc reconstruction."""

import numpy as np
import pytest

from score_sde.errors import UserError
from score_sde.training import snapshots
from score_sde.training.ema import (
    EMAConfig,
    check_choice,
    check_ema_config,
    gamma_from_length,
    post_hoc_weights,
    power_function_rate,
)


@pytest.mark.parametrize("length", [0.01, 0.05, 0.1, 0.25])
def test_a_length_is_the_standard_deviation_of_its_weights(length):
    gamma = gamma_from_length(length)
    u = (np.arange(200_000) + 0.5) / 200_000
    weights = u**gamma / (u**gamma).sum()
    mean = (weights * u).sum()
    np.testing.assert_allclose(np.sqrt((weights * (u - mean) ** 2).sum()), length, rtol=1e-3)


def walk(steps=2000, dimension=64):
    """Parameters that settle, with noise: what training does to them."""
    rng = np.random.default_rng(0)
    drift = 3 * np.exp(-np.arange(steps) / 400)[:, None] * rng.normal(size=dimension)
    return drift + 0.02 * np.cumsum(rng.normal(size=(steps, dimension)), 0) + rng.normal(size=(steps, dimension))


def tracked(path, length, stored_every=None):
    """The average after the last step, and those stored on the way."""
    average, stored, gamma = path[0], {}, gamma_from_length(length)
    for step, params in enumerate(path):
        share = float(power_function_rate(gamma, np.float64(step)))
        average = (1 - share) * average + share * params
        if stored_every and (step + 1) % stored_every == 0:
            stored[step + 1] = average
    return average, stored


@pytest.mark.parametrize("length", [0.06, 0.08, 0.12, 0.15, 0.2])
def test_a_reconstruction_is_the_average_that_would_have_been_tracked(length):
    path = walk()
    directly, _ = tracked(path, length)
    steps, lengths, arrays = [], [], []
    for each in (0.05, 0.1):
        for step, average in tracked(path, each, stored_every=50)[1].items():
            steps.append(step)
            lengths.append(each)
            arrays.append(average)
    weights = post_hoc_weights(steps, lengths, len(path), length)
    found = weights @ np.stack(arrays)
    assert np.linalg.norm(found - directly) < 0.01 * np.linalg.norm(directly)


@pytest.mark.parametrize(
    ("steps", "length"),
    [
        ([1000, 2000, 3000, 4000], 0.2),
        ([750, 1500], 0.15),
        ([1500], 0.15),
        ([1500], 0.03),
        (list(range(10_000, 130_001, 10_000)), 0.2),
    ],
)
def test_constant_parameters_are_their_own_average(steps, length):
    stored = [step for step in steps for _ in (0.05, 0.1)]
    weights = post_hoc_weights(stored, [0.05, 0.1] * len(steps), steps[-1], length)
    np.testing.assert_allclose(weights.sum(), 1.0, rtol=1e-12)


def test_snapshots_go_out_and_back(tmp_path):
    """Of a length that was stored, the reconstruction is what was stored last."""
    rng = np.random.default_rng(0)
    stored = {}
    for step in (100, 200, 300, 400):
        kernels = rng.normal(size=(2, 3, 2)).astype(np.float32)
        stored[step] = {f"length_{i}": {"a": {"kernel": kernel}} for i, kernel in enumerate(kernels)}
        snapshots.save(tmp_path, step, stored[step], (0.05, 0.1))
    found = snapshots.reconstruct_ema(tmp_path, 350, 0.1)  # the last one before the checkpoint
    np.testing.assert_allclose(found["a"]["kernel"], stored[300]["length_1"]["a"]["kernel"], atol=1e-4)
    with pytest.raises(UserError, match="ema_lengths"):
        snapshots.reconstruct_ema(tmp_path / "other", 350, 0.1)


def test_invalid_ema_settings_raise():
    with pytest.raises(UserError, match=r"0 <= ema_decays < 1, got 1\.0"):
        check_ema_config(EMAConfig(0.9, (1.0,)))
    with pytest.raises(UserError, match=r"0 < length <= 0.28, got 0.5.*ema_lengths"):
        check_ema_config(EMAConfig(0.9, (), (0.5,)))
    with pytest.raises(UserError, match=r"ema_decays has 0.99 .*ema_decay"):
        check_choice(EMAConfig(0.9, (0.99,)), 0.5, 0.0)
    with pytest.raises(UserError, match="one of"):
        check_choice(EMAConfig(0.9, (0.99,)), 0.99, 0.1)
