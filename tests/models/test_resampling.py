"""Comparison of resampling with its definition: insertion of zeros, two-dimensional correlation, subsampling."""

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


def insert_zeros(image):
    wide = np.zeros((2 * image.shape[0], 2 * image.shape[1]), image.dtype)
    wide[::2, ::2] = image
    return wide


@pytest.mark.parametrize("taps", TAPS)
def test_downsampling_filters_and_subsamples(taps):
    margin = len(taps) // 2 - 1
    expected = correlate2d(np.pad(IMAGE, margin), outer(taps), "valid")[::2, ::2]
    np.testing.assert_allclose(downsample(IMAGE[None, :, :, None], taps)[0, :, :, 0], expected, atol=1e-6)


@pytest.mark.parametrize("taps", TAPS)
def test_upsampling_inserts_zeros_and_filters(taps):
    half = len(taps) // 2
    expected = correlate2d(np.pad(insert_zeros(IMAGE), (half, half - 1)), 4 * outer(taps), "valid")
    np.testing.assert_allclose(upsample(IMAGE[None, :, :, None], taps)[0, :, :, 0], expected, atol=1e-6)


def layer(direction, taps):
    module = Resample(direction, 1, taps)
    params = {"conv": {"kernel": KERNEL[:, :, None, None], "bias": jnp.zeros(1)}}
    return module.apply({"params": params}, IMAGE[None, :, :, None])[0, :, :, 0]


def test_fused_filter_and_convolution_share_one_padding():
    """The filter and the convolution act on an image padded with zeros once, as in score_sde's and EDM's layers."""
    taps = TAPS[1]
    both = correlate2d(np.pad(IMAGE, 5), outer(taps), "full")  # padding with zeros keeps all of the result
    both = correlate2d(both, KERNEL, "full")
    middle = both[5 + 3 :, 5 + 3 :]  # the joint kernel is 6 wide and starts 2 pixels to the left
    np.testing.assert_allclose(layer("down", taps), middle[: 2 * 3 : 2, : 2 * 4 : 2], atol=1e-5)

    both = correlate2d(np.pad(insert_zeros(IMAGE), 5), 4 * outer(taps), "full")
    both = correlate2d(both, KERNEL, "full")
    np.testing.assert_allclose(layer("up", taps), both[5 + 2 :, 5 + 2 :][:12, :16], atol=1e-5)


def test_ddpm_layers_stride_and_repeat_pixels():
    expected = correlate2d(np.pad(IMAGE, ((0, 1), (0, 1))), KERNEL, "valid")[::2, ::2]
    np.testing.assert_allclose(layer("down", ()), expected, atol=1e-5)
    repeated = IMAGE.repeat(2, 0).repeat(2, 1)
    np.testing.assert_allclose(layer("up", ()), correlate2d(repeated, KERNEL, "same"), atol=1e-5)


def test_output_shapes():
    for module, shape in ((Resample("down", 5), (2, 4, 4, 5)), (Resample("up", 5, TAPS[1]), (2, 16, 16, 5))):
        output = jax.eval_shape(module.init_with_output, jax.random.key(0), jnp.zeros((2, 8, 8, 3)))[0]
        assert output.shape == shape
