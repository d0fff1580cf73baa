"""Convolution with a gradient that is fast inside loops on the CPU.

XLA:CPU rewrites only the convolutions of a program's entry computation to the layout of its fast kernels. The forward
pass already has that layout (NHWC x HWIO), but the two transposes that JAX derives from it do not. Inside `lax.scan` or
`lax.while_loop` a reverse-mode gradient therefore falls back to a naive kernel, which is many times slower
(`benchmarks/convolution.py` measures it). Here both transposes are written as NHWC x HWIO convolutions.

This takes a primitive, because only a primitive has a jvp, a transpose and a batching rule: `jax.custom_vjp` has no
forward mode, and `custom_derivatives.linear_call` no batching. On GPUs and TPUs the primitive lowers to the plain
convolution and its plain transposes.
"""

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

LAYOUT = ("NHWC", "HWIO", "NHWC")
CACHE_BYTES = 2**20  # second-level cache of a CPU core
MAX_CHUNKS = 8  # each chunk is one more convolution to compile


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int] = (1, 1),
    padding: str | Sequence[tuple[int, int]] = "SAME",
    input_dilation: Sequence[int] = (1, 1),
    kernel_dilation: Sequence[int] = (1, 1),
) -> jax.Array:
    """Cross-correlate images with a kernel, like `lax.conv_general_dilated`, but with a gradient fast in CPU loops.

    Args:
      x: Images, (batch, height, width, in_features).
      kernel: Kernel, (kernel_height, kernel_width, in_features, out_features), of x's dtype.
      strides: Strides between output positions, for height and width.
      padding: "SAME", "VALID", or (low, high) for height and width.
      input_dilation: Spacing of input positions (transposed convolution).
      kernel_dilation: Spacing of kernel taps (atrous convolution).

    Returns:
      (batch, out_height, out_width, out_features).
    """
    if isinstance(padding, str):
        dilated_input = [_dilated_size(n, d) for n, d in zip(x.shape[1:3], input_dilation, strict=True)]
        dilated_kernel = [_dilated_size(n, d) for n, d in zip(kernel.shape[:2], kernel_dilation, strict=True)]
        padding = lax.padtype_to_pads(dilated_input, dilated_kernel, strides, padding)
    return _convolution_p.bind(
        x,
        kernel,
        window_strides=tuple(strides),
        padding=tuple(tuple(pair) for pair in padding),
        lhs_dilation=tuple(input_dilation),
        rhs_dilation=tuple(kernel_dilation),
    )


_plain = partial(lax.conv_general_dilated, dimension_numbers=LAYOUT)


def _dilated_size(size: int, dilation: int) -> int:
    return 0 if size == 0 else (size - 1) * dilation + 1


def _dilated_sizes(cotangent, x, kernel, window):
    """Return, for height and width, the dilated sizes of input, kernel and output, and the low padding."""
    return [
        (
            _dilated_size(x.shape[1 + i], window["lhs_dilation"][i]),
            _dilated_size(kernel.shape[i], window["rhs_dilation"][i]),
            _dilated_size(cotangent.shape[1 + i], window["window_strides"][i]),
            window["padding"][i][0],
        )
        for i in range(2)
    ]


def _input_gradient(cotangent, kernel, *, x, window):
    """Correlate the cotangent, dilated by the strides, with the kernel flipped in space and transposed to HWOI."""
    padding = []
    for input_size, kernel_size, output_size, low in _dilated_sizes(cotangent, x, kernel, window):
        before = kernel_size - low - 1
        padding.append((before, input_size + kernel_size - 1 - output_size - before))
    flipped = lax.optimization_barrier(jnp.flip(kernel, (0, 1)).swapaxes(2, 3))
    strides, dilation = window["lhs_dilation"], window["window_strides"]
    return convolve(cotangent, flipped, strides, padding, dilation, window["rhs_dilation"])


def _kernel_gradient(cotangent, x, *, kernel, window):
    """Correlate the input with the cotangent over batch and space, with the input's features as the batch axis."""
    padding = []
    for input_size, kernel_size, output_size, low in _dilated_sizes(cotangent, x, kernel, window):
        padding.append((low, output_size + kernel_size - input_size - 1 - low))

    def correlate(x, cotangent):
        # Without the barrier XLA folds the transposes into the convolution's layout, which selects the slow kernel.
        lhs, rhs = lax.optimization_barrier((x.transpose(3, 1, 2, 0), cotangent.transpose(1, 2, 0, 3)))
        return convolve(lhs, rhs, window["rhs_dilation"], padding, window["lhs_dilation"], window["window_strides"])

    # The cotangent acts as the kernel here. The batch is split into chunks, because kernels that fit a core's cache are
    # fast.
    chunks = math.ceil(cotangent.size * cotangent.dtype.itemsize / CACHE_BYTES)
    chunks = max(1, min(chunks, MAX_CHUNKS, len(x)))
    ends = [len(x) * i // chunks for i in range(chunks + 1)]
    gradient = sum(correlate(x[a:b], cotangent[a:b]) for a, b in pairwise(ends))
    return gradient.transpose(1, 2, 0, 3)


def _transpose_input(cotangent, x, kernel, **window):
    def plain(cotangent, kernel):
        like = jax.ShapeDtypeStruct(x.aval.shape, x.aval.dtype)
        return jax.linear_transpose(lambda x: _plain(x, kernel, **window), like)(cotangent)[0]

    return lax.platform_dependent(
        cotangent, kernel, cpu=partial(_input_gradient, x=x.aval, window=window), default=plain
    )


def _transpose_kernel(cotangent, x, kernel, **window):
    def plain(cotangent, x):
        like = jax.ShapeDtypeStruct(kernel.aval.shape, kernel.aval.dtype)
        return jax.linear_transpose(lambda kernel: _plain(x, kernel, **window), like)(cotangent)[0]

    return lax.platform_dependent(
        cotangent, x, cpu=partial(_kernel_gradient, kernel=kernel.aval, window=window), default=plain
    )


def _batch(arguments, axes, **window):
    x, kernel = arguments
    x_axis, kernel_axis = axes
    if kernel_axis is not None:  # JAX's own batching rule makes one kernel per example a grouped convolution
        return jax.vmap(partial(_plain, **window), in_axes=axes)(x, kernel), 0
    x = jnp.moveaxis(x, x_axis, 0)
    y = _convolution_p.bind(x.reshape(-1, *x.shape[2:]), kernel, **window)
    return y.reshape(*x.shape[:2], *y.shape[1:]), 0


_convolution_p = Primitive("nhwc_convolution")
_convolution_p.def_impl(jax.jit(_plain, static_argnames=("window_strides", "padding", "lhs_dilation", "rhs_dilation")))
_convolution_p.def_abstract_eval(
    lambda x, kernel, **window: jax.core.ShapedArray(
        (out := jax.eval_shape(partial(_plain, **window), x, kernel)).shape, out.dtype
    )
)
ad.defbilinear(_convolution_p, _transpose_input, _transpose_kernel)
batching.primitive_batchers[_convolution_p] = _batch
mlir.register_lowering(_convolution_p, mlir.lower_fun(_plain, multiple_results=False))
