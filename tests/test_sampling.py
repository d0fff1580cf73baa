"""Samples are a function of (seed, index), on any number of devices and in batches of any size; compiled once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.parameterization import make_denoiser
from score_sde.sampling import make_sampler
from score_sde.sde import vp
from score_sde.solvers import SOLVERS, time_grid

PARAMS = {"weight": np.float32(0.8)}


def sampler(name, batch_size, num_devices):
    sde = vp()

    def denoiser(params):
        return make_denoiser(lambda x, level: params["weight"] * jnp.tanh(x), sde)

    return make_sampler(
        sde,
        denoiser,
        SOLVERS[name](),
        time_grid(sde, 20),
        (4, 4, 1),
        jax.random.key(3),
        batch_size,
        True,
        jax.devices()[:num_devices],
    )


@pytest.mark.parametrize("name", SOLVERS)
def test_neither_the_batch_nor_the_devices_change_a_sample(name):
    """To the rounding of float32 over 20 steps of elementwise work, whose fusion may differ with the shape."""
    whole = np.concatenate(list(sampler(name, 11, 1)(PARAMS, 11)))
    assert whole.shape == (11, 4, 4, 1)
    assert np.std(whole, axis=0).min() > 0.1  # no two are the same
    for batch_size, num_devices in ((4, 1), (8, 8), (5, 3)):  # the last is rounded up to 6
        parts = list(sampler(name, batch_size, num_devices)(PARAMS, 11))
        assert max(len(part) for part in parts) <= batch_size + num_devices
        np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-4)


def test_a_second_call_compiles_nothing(compilations):
    draw = sampler("euler_maruyama", 8, 8)
    list(draw(PARAMS, 16))
    assert compilations
    compilations.clear()
    list(draw({"weight": np.float32(0.5)}, 20))
    assert not compilations
