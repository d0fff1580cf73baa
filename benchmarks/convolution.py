"""Time a 3x3 convolution and its two gradients: JAX's, `score_sde.models.convolution`'s and PyTorch's.

python benchmarks/convolution.py [--rounds=5] [--shapes=32x8x128,64x32x16]

The first table has the rates of each pass alone, in GFLOP/s, at the shapes of the networks. A shape is channels x side
x batch. The title has the rate of a matrix product. On a CPU the table also has PyTorch's rates, with channels last, if
torch is installed. The second table has the milliseconds per gradient of two convolutions of 32 channels on 64 images
of 8x8, outside a loop ("alone") and as the body of a `lax.scan`, where JAX's own gradient is slow.
"""

import importlib.util
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs as a file, too

from functools import partial

import jax
import jax.numpy as jnp
from absl import app, flags
from jax import lax

from benchmarks.report import interleaved, matmul_rate, median, show
from score_sde.models.convolution import LAYOUT, convolve

SHAPES = ["32x8x128", "64x8x128", "32x32x16", "64x32x16", "128x32x4", "256x16x4"]
FLAGS = flags.FLAGS
flags.DEFINE_integer("rounds", 5, "timed rounds")
flags.DEFINE_list("shapes", SHAPES, "shapes of the first table, channels x side x batch")

LENGTH = 10
CONVOLUTIONS = {
    "JAX": partial(lax.conv_general_dilated, window_strides=(1, 1), padding="SAME", dimension_numbers=LAYOUT),
    "ours": convolve,
}


def passes(conv, x, kernel):
    """Return the passes of a convolution as functions that wait for their result."""
    forward = jax.jit(conv)
    # A convolution is linear in each argument, so XLA drops the forward pass from its gradients.
    input_gradient = jax.jit(lambda x, kernel, y: jax.vjp(lambda x: conv(x, kernel), x)[1](y))
    kernel_gradient = jax.jit(lambda x, kernel, y: jax.vjp(lambda kernel: conv(x, kernel), kernel)[1](y))
    return {
        "forward": lambda: jax.block_until_ready(forward(x, kernel)),
        "input gradient": lambda: jax.block_until_ready(input_gradient(x, kernel, x)),
        "kernel gradient": lambda: jax.block_until_ready(kernel_gradient(x, kernel, x)),
    }


def torch_passes(channels, side, batch):
    """Return the same passes of PyTorch's convolution."""
    import torch

    x = torch.randn(batch, channels, side, side).to(memory_format=torch.channels_last)
    kernel = torch.randn(channels, channels, 3, 3).to(memory_format=torch.channels_last)
    window = (None, (1, 1), (1, 1), (1, 1), False, (0, 0), 1)  # biases, strides, padding, dilation, ...

    def gradient(of_input, of_kernel):
        return torch.ops.aten.convolution_backward(x, x, kernel, *window, (of_input, of_kernel, False))

    return {
        "forward": lambda: torch.nn.functional.conv2d(x, kernel, padding=1),
        "input gradient": lambda: gradient(True, False),
        "kernel gradient": lambda: gradient(False, True),
    }


def rates(shape):
    """Return a row of GFLOP/s."""
    channels, side, batch = map(int, shape.split("x"))
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (batch, side, side, channels))
    kernel = 0.1 * jax.random.normal(keys[1], (3, 3, channels, channels))
    found = {name: passes(conv, x, kernel) for name, conv in CONVOLUTIONS.items()}
    if jax.default_backend() == "cpu" and importlib.util.find_spec("torch"):
        found["PyTorch"] = torch_passes(channels, side, batch)
    runs = {(of, name): run for name, parts in found.items() for of, run in parts.items()}
    repeated = {key: lambda run=run: [run() for _ in range(LENGTH)] for key, run in runs.items()}
    seconds = interleaved(repeated, FLAGS.rounds)
    flops = 2 * 9 * channels**2 * side**2 * batch * LENGTH
    return {"channels": channels, "side": side, "batch": batch} | {
        f"{of}, {name}": flops / median(seconds[of, name]) / 1e9 for of in found["ours"] for name in found
    }


def make_loops():
    """Return the functions of the second table."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (64, 8, 8, 32))
    kernels = [0.1 * jax.random.normal(key, (3, 3, 32, 32)) for key in keys[1:]]
    runs = {}
    for name, conv in CONVOLUTIONS.items():

        def step(kernels, _, conv=conv):
            def loss(kernels):
                return jnp.mean(conv(jax.nn.relu(conv(x, kernels[0])), kernels[1]) ** 2)

            return jax.tree.map(lambda k, g: k - 1e-3 * g, kernels, jax.grad(loss)(kernels)), None

        once = jax.jit(lambda kernels, step=step: step(kernels, None)[0])
        looped = jax.jit(lambda kernels, step=step: lax.scan(step, kernels, length=LENGTH)[0])
        runs[name, "alone"] = lambda once=once: [jax.block_until_ready(once(kernels)) for _ in range(LENGTH)]
        runs[name, "in a loop"] = lambda looped=looped: jax.block_until_ready(looped(kernels))
    return runs


def main(argv):
    del argv
    rows = [rates(shape) for shape in FLAGS.shapes]
    show(f"GFLOP/s of 3x3 convolutions; a matrix product has {matmul_rate('float32') / 1e9:.0f}", rows)
    seconds = interleaved(make_loops(), FLAGS.rounds)
    rows = [
        {"convolution": name}
        | {f"{where}, ms": 1e3 * median(seconds[name, where]) / LENGTH for where in ("alone", "in a loop")}
        for name in CONVOLUTIONS
    ]
    show("The gradient of two 3x3 convolutions, batch 64, 8x8x32", rows)


if __name__ == "__main__":
    app.run(main)
