"""Gradient of JAX's convolution and of `score_sde.models.convolution`, inside and outside a loop.

python benchmarks/convolution.py [--rounds=5]

The times are milliseconds per gradient of two 3x3 convolutions of 32 channels on 64 images of 8x8, outside a loop
("alone") and as the body of a `lax.scan` of length 10.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs as a file, too

from functools import partial

import jax
import jax.numpy as jnp
from absl import app, flags
from jax import lax

from benchmarks.report import interleaved, median, show
from score_sde.models.convolution import LAYOUT, convolve

FLAGS = flags.FLAGS
flags.DEFINE_integer("rounds", 5, "timed rounds")

LENGTH = 10


def make_runs():
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (64, 8, 8, 32))
    kernels = [0.1 * jax.random.normal(key, (3, 3, 32, 32)) for key in keys[1:]]
    convolutions = {
        "lax.conv_general_dilated": partial(
            lax.conv_general_dilated, window_strides=(1, 1), padding="SAME", dimension_numbers=LAYOUT
        ),
        "convolve": convolve,
    }
    runs = {}
    for name, conv in convolutions.items():

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
    seconds = interleaved(make_runs(), FLAGS.rounds)
    names = dict.fromkeys(name for name, _ in seconds)
    rows = [
        {"convolution": name}
        | {f"{where}, ms": 1e3 * median(seconds[name, where]) / LENGTH for where in ("alone", "in a loop")}
        for name in names
    ]
    show("The gradient of two 3x3 convolutions, batch 64, 8x8x32", rows)


if __name__ == "__main__":
    app.run(main)
