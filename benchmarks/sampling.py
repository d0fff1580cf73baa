"""Milliseconds of a network evaluation inside `solve`, beside the bare jitted network and a host loop in PyTorch.

python benchmarks/sampling.py [--model=digits,small,cifar10] [--num_steps=10] [--peer=torch] [--rounds=5]

Medians over rounds, everything in turn, the first call of every turn excluded. "over network" is an evaluation in
`solve` over one of the bare jitted network; "over torch" is our sampler over the same DDIM steps as a Python loop over
PyTorch's network.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs as a file, too

import importlib.util
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks.report import MODELS, interleaved, load_config, median, show
from score_sde.models import create
from score_sde.parameterization import make_denoiser
from score_sde.sde import vp
from score_sde.solvers import SOLVERS, solve, time_grid

FLAGS = flags.FLAGS
flags.DEFINE_list("model", ["digits", "small", "cifar10"], f"of {', '.join(MODELS)}")
flags.DEFINE_integer("num_steps", 10, "solver steps, one evaluation each")
flags.DEFINE_integer("rounds", 5, "timed rounds")
flags.DEFINE_enum("peer", "torch", ["torch", "none"], "what to compare with on a CPU, where it is installed")


def ours(config, num_steps: int):
    """Functions by name, each running num_steps evaluations, and the compile seconds and memory of each solver."""
    model = create(config.model.name, **config.model.kwargs.to_dict())
    shape = (config.sampling.batch_size, config.data.image_size, config.data.image_size, config.data.channels)
    x, level = jax.random.normal(jax.random.key(0), shape), jnp.full(shape[:1], 500.0)
    params = jax.jit(model.init)(jax.random.key(1), x, level)["params"]
    sde, times = vp(), time_grid(vp(), num_steps)
    network = jax.jit(lambda params, x: model.apply({"params": params}, x, level))
    runs = {"network": lambda: [jax.block_until_ready(network(params, x)) for _ in range(num_steps)]}
    facts = {}

    for name, make_solver in SOLVERS.items():

        def sample(params, x, key, make_solver=make_solver):
            denoiser = make_denoiser(lambda x, level: model.apply({"params": params}, x, level), sde)
            return solve(make_solver(), sde, denoiser, x, times, key).x

        started = time.perf_counter()
        compiled = jax.jit(sample).lower(params, x, jax.random.key(0)).compile()
        memory = compiled.memory_analysis()
        facts[name] = {
            "compile s": time.perf_counter() - started,
            "memory MiB": (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 2**20,
        }
        runs[name] = lambda compiled=compiled: jax.block_until_ready(compiled(params, x, jax.random.key(0)))
    return runs, facts


def torchs(config, num_steps: int):
    """DDIM as PyTorch users write it: a Python loop over the network."""
    import torch

    from benchmarks.torch_ddpmpp import from_config

    network = from_config(config).to(memory_format=torch.channels_last).eval()
    size, channels = config.data.image_size, config.data.channels
    x0 = torch.randn(config.sampling.batch_size, channels, size, size).to(memory_format=torch.channels_last)
    times, sde = time_grid(vp(), num_steps), vp()
    alphas, sigmas = (np.asarray(f(times)).tolist() for f in (sde.alpha, sde.sigma))

    @torch.no_grad()
    def run():
        x = x0
        for n in range(num_steps):
            epsilon = network(x, torch.full((len(x),), 999 * times[n], dtype=torch.float32))
            x = alphas[n + 1] * (x - sigmas[n] * epsilon) / alphas[n] + sigmas[n + 1] * epsilon

    return run


def main(argv):
    del argv
    with_torch = FLAGS.peer == "torch" and jax.default_backend() == "cpu" and importlib.util.find_spec("torch")
    rows = []
    for name in FLAGS.model:
        config = load_config(name)
        runs, facts = ours(config, FLAGS.num_steps)
        if with_torch:
            runs["torch"] = torchs(config, FLAGS.num_steps)
        seconds = interleaved(runs, FLAGS.rounds)
        for solver, known in facts.items():
            row = {"model": name, "batch": config.sampling.batch_size, "solver": solver}
            row["ms an evaluation"] = 1e3 * median(seconds[solver]) / FLAGS.num_steps
            row["images/s at these steps"] = config.sampling.batch_size / median(seconds[solver])
            row |= known
            for peer in ("network", "torch"):
                if peer in seconds:
                    ratios = [a / b for a, b in zip(seconds[solver], seconds[peer], strict=True)]
                    row[f"over {peer}"] = median(ratios)
            rows.append(row)
    show(f"Sampling, float32, {FLAGS.num_steps} steps", rows)


if __name__ == "__main__":
    app.run(main)
