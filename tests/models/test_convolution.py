"""Comparison of `convolve` with `lax.conv_general_dilated`: values, gradients, jvp, vmap, second order, in a loop."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from score_sde.models import convolution
from score_sde.models.convolution import LAYOUT, convolve
from tests.thinned import thinned

CASES = {
    "same": ((1, 1), "SAME", (1, 1), (1, 1)),
    "valid": ((1, 1), "VALID", (1, 1), (1, 1)),
    "strided": ((2, 2), "SAME", (1, 1), (1, 1)),
    "strided past the end": ((3, 2), ((0, 1), (2, 0)), (1, 1), (1, 1)),
    "kernel dilated": ((1, 1), "SAME", (1, 1), (2, 1)),
    "transposed": ((1, 1), ((2, 1), (1, 2)), (2, 3), (1, 1)),
    "all at once": ((2, 1), ((1, 2), (0, 3)), (1, 2), (2, 1)),
    "negative padding": ((1, 1), ((-1, 1), (0, -1)), (1, 1), (1, 1)),
}


def plain(x, kernel, strides, padding, input_dilation, kernel_dilation):
    if isinstance(padding, str):
        effective = [(k - 1) * d + 1 for k, d in zip(kernel.shape[:2], kernel_dilation, strict=True)]
        padding = lax.padtype_to_pads(x.shape[1:3], effective, strides, padding)
    return lax.conv_general_dilated(x, kernel, strides, padding, input_dilation, kernel_dilation, LAYOUT)


def derivatives(conv, x, kernel):
    """Return the value, gradients, a jvp, gradients mapped over inputs and kernels, and a second-order gradient."""

    def loss(x, kernel):
        return jnp.sum(jnp.sin(conv(x, kernel)))

    def gradient_norm(x, kernel):
        return sum(jnp.sum(g**2) for g in jax.grad(loss, (0, 1))(x, kernel))

    examples, kernels = x[:, None], jnp.stack([kernel, 2 * kernel, -kernel])
    return {
        "value": conv(x, kernel),
        "gradients": jax.grad(loss, (0, 1))(x, kernel),
        "jvp": jax.jvp(conv, (x, kernel), (jnp.cos(x), jnp.cos(kernel)))[1],
        "vmap over inputs": jax.vmap(jax.grad(loss, (0, 1)), (0, None))(examples, kernel),
        "vmap over kernels": jax.vmap(jax.grad(loss, (0, 1)), (None, 0))(x, kernels),
        "vmap over both": jax.vmap(jax.grad(loss, (0, 1)))(examples, kernels),
        "second order": jax.grad(gradient_norm, (0, 1))(x, kernel),
        "in a loop": lax.map(lambda k: jax.grad(loss, (0, 1))(x, k), kernels),
    }


@pytest.mark.parametrize("cache_bytes", [convolution.CACHE_BYTES, 2000], ids=["whole batch", "in chunks"])
@pytest.mark.parametrize("case", thinned(CASES, "all at once"))
def test_derivatives_match_plain_convolution(case, cache_bytes, x64, monkeypatch):
    monkeypatch.setattr(convolution, "CACHE_BYTES", cache_bytes)
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (3, 7, 6, 3), "float64")
    kernel = jax.random.normal(keys[1], (3, 2, 3, 4), "float64")
    strides, padding, input_dilation, kernel_dilation = CASES[case]
    if case == "transposed":  # a kernel whose height and width differ
        kernel = kernel[:, :1]
    ours = partial(
        convolve, strides=strides, padding=padding, input_dilation=input_dilation, kernel_dilation=kernel_dilation
    )
    theirs = partial(
        plain, strides=strides, padding=padding, input_dilation=input_dilation, kernel_dilation=kernel_dilation
    )
    actual = jax.jit(partial(derivatives, ours))(x, kernel)
    expected = jax.jit(partial(derivatives, theirs))(x, kernel)
    # Sums of up to 10^4 terms of size 1 to 10^2 in float64.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-9), actual, expected)


def test_other_platforms_lower_to_plain_transposes():
    """On GPUs and TPUs the transposes have no barrier and no reversal that XLA would have to optimize."""

    def gradients(x, kernel):
        return jax.grad(lambda x, k: jnp.sum(convolve(x, k) ** 2), (0, 1))(x, kernel)

    arguments = (jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 4)))
    traced = jax.jit(gradients).trace(*arguments)
    assert "optimization_barrier" in traced.lower(lowering_platforms=("cpu",)).as_text()
    for platform in ("cuda", "tpu"):
        assert "optimization_barrier" not in traced.lower(lowering_platforms=(platform,)).as_text()
