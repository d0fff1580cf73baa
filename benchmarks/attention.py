"""Time self-attention by XLA and by cuDNN's flash attention, forward and with gradient, in milliseconds.

    python benchmarks/attention.py [--rounds=10] [--dtype=float32,bfloat16]

The shapes are those of the networks on their usual images. "error" is the relative distance of the output to float32 at
the highest precision. "forward mode" tells whether a Jacobian-vector product can be computed, as likelihoods and flow
maps need.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs as a file, too

import jax
import jax.numpy as jnp
from absl import app, flags

from benchmarks.report import emit, interleaved, median, show

FLAGS = flags.FLAGS
flags.DEFINE_integer("rounds", 10, "timed rounds")
flags.DEFINE_list("dtype", ["float32", "bfloat16"], "dtypes of the computation")
flags.DEFINE_integer("scale", 1, "divisor of the batch sizes, for small machines")

SHAPES = {  # (batch, tokens, heads, channels of a head)
    "DDPM++ CIFAR-10, 16 x 16": (128, 256, 1, 256),
    "ADM ImageNet 64, 32 x 32": (64, 1024, 6, 64),
    "DiT-B/2, 32 x 32 latents": (128, 256, 12, 64),
}


def measure(name, shape, dtype, implementation):
    """Return a row of the table; an unsupported implementation gets a note instead of times."""
    shape = (max(1, shape[0] // FLAGS.scale), *shape[1:])
    inputs = [jax.random.normal(jax.random.key(n), shape).astype(dtype) for n in range(3)]
    row = {"attention": name, "batch": shape[0], "dtype": dtype, "implementation": implementation}

    def attend(inputs):
        return jax.nn.dot_product_attention(*inputs, implementation=implementation)

    def loss(inputs):
        return jnp.sum(attend(inputs).astype(jnp.float32) ** 2)

    forwards, gradient = jax.jit(attend), jax.jit(jax.grad(loss))
    try:
        output = forwards(inputs)
        runs = {"forward": lambda: jax.block_until_ready(forwards(inputs))}
        runs["with gradient"] = lambda: jax.block_until_ready(gradient(inputs))
        seconds = interleaved(runs, FLAGS.rounds)
    except Exception as error:  # cuDNN refuses by errors of many types
        return row | {"note": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
    with jax.default_matmul_precision("highest"):
        exact = jax.jit(lambda inputs: jax.nn.dot_product_attention(*inputs))([x.astype(jnp.float32) for x in inputs])
    row["error"] = float(jnp.linalg.norm(output.astype(jnp.float32) - exact) / jnp.linalg.norm(exact))
    row |= {f"{run}, ms": 1e3 * median(values) for run, values in seconds.items()}
    try:
        jax.block_until_ready(jax.jit(lambda inputs: jax.jvp(attend, (inputs,), (inputs,)))(inputs))
        row["forward mode"] = "yes"
    except Exception as error:
        row["forward mode"] = f"{type(error).__name__}: {error}".splitlines()[0][:120]
    return row


def main(argv):
    del argv
    rows = []
    implementations = ["xla", "cudnn"] if jax.default_backend() == "gpu" else ["xla"]
    for dtype in FLAGS.dtype:
        for name, shape in SHAPES.items():
            for implementation in implementations:
                rows.append(measure(name, shape, dtype, implementation))
                emit(rows[-1])
    columns = dict.fromkeys(column for row in rows for column in row)
    show("Attention", [{column: row.get(column) for column in columns} for row in rows])


if __name__ == "__main__":
    app.run(main)
