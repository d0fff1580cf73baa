"""Halving and doubling against their definition: zeros put in, a correlation in two dimensions, pixels left out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate2d

from score_sde.models.resampling import Resample, downsample, upsample

TAPS = [(1, 1), (1, 3, 3, 1)]
IMAGE = np.random.default_rng(0).normal(size=(6, 8)).astype("float32")
KERNEL = np.random.default_rng(1).normal(size=(3, 3)).astype("float32")


def outer(taps):
    return np.outer(taps, taps) / np.sum(taps) ** 2


def zeros_between(image):
    wide = np.zeros((2 * image.shape[0], 2 * image.shape[1]), image.dtype)
    wide[::2, ::2] = image
    return wide


def padded(image, before, after):
    return np.pad(image, (before, after))


@pytest.mark.parametrize("taps", TAPS)
def test_halving_filters_and_leaves_out(taps):
    margin = len(taps) // 2 - 1
    expected = correlate2d(padded(IMAGE, margin, margin), outer(taps), "valid")[::2, ::2]
    np.testing.assert_allclose(downsample(IMAGE[None, :, :, None], taps)[0, :, :, 0], expected, atol=1e-6)


@pytest.mark.parametrize("taps", TAPS)
def test_doubling_puts_zeros_in_and_filters(taps):
    half = len(taps) // 2
    expected = correlate2d(padded(zeros_between(IMAGE), half, half - 1), 4 * outer(taps), "valid")
    np.testing.assert_allclose(upsample(IMAGE[None, :, :, None], taps)[0, :, :, 0], expected, atol=1e-6)


def layer(direction, taps):
    module = Resample(direction, 1, taps)
    params = {"conv": {"kernel": KERNEL[:, :, None, None], "bias": jnp.zeros(1)}}
    return module.apply({"params": params}, IMAGE[None, :, :, None])[0, :, :, 0]


def test_a_convolution_after_the_filter_sees_no_border_that_the_filter_made():
    """Both in one: the image goes on with zeros, the result is cut; as score_sde's and EDM's fused layers have it."""
    taps = TAPS[1]
    both = correlate2d(padded(IMAGE, 5, 5), outer(taps), "full")  # zeros all around, so that nothing is cut off
    both = correlate2d(both, KERNEL, "full")
    middle = both[5 + 3 :, 5 + 3 :]  # the joint kernel, 6 wide, begins 2 to the left
    np.testing.assert_allclose(layer("down", taps), middle[: 2 * 3 : 2, : 2 * 4 : 2], atol=1e-5)

    both = correlate2d(padded(zeros_between(IMAGE), 5, 5), 4 * outer(taps), "full")
    both = correlate2d(both, KERNEL, "full")
    np.testing.assert_allclose(layer("up", taps), both[5 + 2 :, 5 + 2 :][:12, :16], atol=1e-5)


def test_ddpms_layers_are_a_strided_convolution_and_repeated_pixels():
    expected = correlate2d(np.pad(IMAGE, ((0, 1), (0, 1))), KERNEL, "valid")[::2, ::2]
    np.testing.assert_allclose(layer("down", ()), expected, atol=1e-5)
    repeated = IMAGE.repeat(2, 0).repeat(2, 1)
    np.testing.assert_allclose(layer("up", ()), correlate2d(repeated, KERNEL, "same"), atol=1e-5)


def test_sizes():
    for module, shape in ((Resample("down", 5), (2, 4, 4, 5)), (Resample("up", 5, TAPS[1]), (2, 16, 16, 5))):
        output = jax.eval_shape(module.init_with_output, jax.random.key(0), jnp.zeros((2, 8, 8, 3)))[0]
        assert output.shape == shape
