"""A convolution whose gradient is fast inside a loop on the CPU.

XLA:CPU rewrites only the convolutions of a program's entry computation to the layout its fast kernels want. The
forward pass already has that layout (NHWC x HWIO), the two transposes that JAX derives from it have not: inside
`lax.scan` or `lax.while_loop` a reverse-mode gradient falls back to a naive kernel, many times slower
(`benchmarks/convolution.py` prints how many). Here both transposes are written as NHWC x HWIO convolutions in their own
right. A primitive, because nothing smaller has a jvp, a transpose and a batching rule: `jax.custom_vjp` has no
forward mode, `custom_derivatives.linear_call` no batching. GPUs and TPUs lower to the plain convolution and its plain
transposes.
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
CACHE_BYTES = 2**20  # of the second-level cache of a CPU core
MAX_PARTS = 8  # each is a convolution to compile


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int] = (1, 1),
    padding: str | Sequence[tuple[int, int]] = "SAME",
    input_dilation: Sequence[int] = (1, 1),
    kernel_dilation: Sequence[int] = (1, 1),
) -> jax.Array:
    """Cross-correlates images with a kernel; `lax.conv_general_dilated` with a gradient that is fast in CPU loops.

    Args:
      x: (batch, height, width, in_features).
      kernel: (kernel_height, kernel_width, in_features, out_features), of x's dtype.
      strides: the step between output positions.
      padding: "SAME", "VALID", or (low, high) for height and width.
      input_dilation: the spacing put between input positions (a transposed convolution).
      kernel_dilation: the spacing put between kernel taps (an atrous convolution).

    Returns:
      (batch, out_height, out_width, out_features).
    """
    if isinstance(padding, str):
        dilated_input = [_dilated(n, d) for n, d in zip(x.shape[1:3], input_dilation, strict=True)]
        dilated_kernel = [_dilated(n, d) for n, d in zip(kernel.shape[:2], kernel_dilation, strict=True)]
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


def _dilated(size: int, dilation: int) -> int:
    return 0 if size == 0 else (size - 1) * dilation + 1


def _sizes(cotangent, x, kernel, window):
    """For height and width: the dilated sizes of input, kernel and output, and the low padding."""
    return [
        (
            _dilated(x.shape[1 + i], window["lhs_dilation"][i]),
            _dilated(kernel.shape[i], window["rhs_dilation"][i]),
            _dilated(cotangent.shape[1 + i], window["window_strides"][i]),
            window["padding"][i][0],
        )
        for i in range(2)
    ]


def _input_gradient(cotangent, kernel, *, x, window):
    """Correlates the cotangent, dilated by the strides, with the kernel flipped in space and transposed to HWOI."""
    padding = []
    for input_size, kernel_size, output_size, low in _sizes(cotangent, x, kernel, window):
        before = kernel_size - low - 1
        padding.append((before, input_size + kernel_size - 1 - output_size - before))
    flipped = lax.optimization_barrier(jnp.flip(kernel, (0, 1)).swapaxes(2, 3))
    strides, dilation = window["lhs_dilation"], window["window_strides"]
    return convolve(cotangent, flipped, strides, padding, dilation, window["rhs_dilation"])


def _kernel_gradient(cotangent, x, *, kernel, window):
    """Correlates the input with the cotangent over batch and space; features of the input take the batch's place."""
    padding = []
    for input_size, kernel_size, output_size, low in _sizes(cotangent, x, kernel, window):
        padding.append((low, output_size + kernel_size - input_size - 1 - low))

    def of_examples(x, cotangent):
        # Without the barrier XLA folds the transposes back into the convolution's layout, and the slow kernel is back.
        lhs, rhs = lax.optimization_barrier((x.transpose(3, 1, 2, 0), cotangent.transpose(1, 2, 0, 3)))
        return convolve(lhs, rhs, window["rhs_dilation"], padding, window["lhs_dilation"], window["window_strides"])

    # A part of the batch at a time: here the cotangent is the kernel, and is fast while it stays in a core's cache.
    parts = math.ceil(cotangent.size * cotangent.dtype.itemsize / CACHE_BYTES)
    parts = max(1, min(parts, MAX_PARTS, len(x)))
    ends = [len(x) * i // parts for i in range(parts + 1)]
    gradient = sum(of_examples(x[a:b], cotangent[a:b]) for a, b in pairwise(ends))
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
    if kernel_axis is not None:  # one kernel an example: a grouped convolution, which JAX's own rule makes
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
