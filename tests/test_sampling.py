"""Samples are a function of (seed, index), on any number of devices and in batches of any size; compiled once."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.errors import UserError
from score_sde.parameterization import Prediction, make_denoiser
from score_sde.sampling import make_label_of, make_sampler
from score_sde.sde import vp
from score_sde.solvers import SOLVERS, solve, time_grid

PARAMS = {"weight": np.float32(0.8)}


def sampler(name, batch_size, num_devices):
    sde = vp()

    times, solver = time_grid(sde, 20), SOLVERS[name]()

    def run(params, beside, indices, x, keys, trajectory=False):
        denoiser = make_denoiser(lambda x, level: params["weight"] * jnp.tanh(x), sde)
        return solve(solver, sde, denoiser, x, times, keys, trajectory=trajectory, denoise=True)

    return make_sampler(
        sde,
        run,
        (4, 4, 1),
        jax.random.key(3),
        batch_size,
        jax.devices()[:num_devices],
        partial(run, trajectory=True),
    )


def draw(sampler, params, n):
    return [batch.x for batch in sampler.draw(params, n)]


@pytest.mark.parametrize("name", ["ddim", "unipc", "euler_maruyama", "predictor_corrector"])
def test_neither_the_batch_nor_the_devices_change_a_sample(name):
    """To the rounding of float32 over 20 steps of elementwise work, whose fusion may differ with the shape."""
    whole = np.concatenate(draw(sampler(name, 11, 1), PARAMS, 11))
    assert whole.shape == (11, 4, 4, 1)
    assert np.std(whole, axis=0).min() > 0.1  # no two are the same
    for batch_size, num_devices in ((4, 1), (8, 8), (5, 3)):  # the last is rounded up to 6
        parts = draw(sampler(name, batch_size, num_devices), PARAMS, 11)
        assert max(len(part) for part in parts) <= batch_size + num_devices
        np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-5, atol=1e-4)


def test_a_second_call_compiles_nothing(compilations):
    whole = sampler("euler_maruyama", 8, 8)
    draw(whole, PARAMS, 16)
    assert compilations
    compilations.clear()
    draw(whole, {"weight": np.float32(0.5)}, 20)
    assert not compilations


def test_the_trajectory_ends_in_the_samples():
    whole = sampler("euler_maruyama", 4, 1)
    path = whole.trajectory(PARAMS, 4)
    assert path.shape == (21, 4, 4, 4, 1)
    (batch,) = whole.draw(PARAMS, 4)
    np.testing.assert_allclose(path[-1], batch.x, atol=1e-4)
    assert batch.nfe.tolist() == [21] * 4


def test_each_sample_is_told_its_class_whatever_the_batch():
    sde = vp()

    def told(label, batch_size):
        def run(params, beside, indices, x, keys):
            labels = beside["more"] + make_label_of(3, label)(indices)
            denoiser = lambda x, t: Prediction(jnp.zeros_like(x) + labels[:, None], x)  # noqa: E731
            return solve(SOLVERS["ddim"](), sde, denoiser, x, time_grid(sde, 1), keys, denoise=True)

        key, devices = jax.random.key(0), jax.devices()[:2]
        made = make_sampler(sde, run, (1,), key, batch_size, devices, beside=lambda: {"more": np.int32(10)})
        return [value - 10 for value in np.concatenate(draw(made, {}, 7))[:, 0].tolist()]

    assert told(-1, 4) == told(-1, 8) == [0, 1, 2, 0, 1, 2, 0]
    assert told(2, 4) == [2] * 7


def test_nan_from_the_network_is_refused():
    with pytest.raises(UserError, match="NaN or infinity"):
        draw(sampler("ddim", 8, 8), {"weight": np.float32(np.nan)}, 8)
