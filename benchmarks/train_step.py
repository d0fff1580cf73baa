"""Milliseconds of a train step (loss, gradient, clipping, Adam, moving average), beside PyTorch where it is installed.

    python benchmarks/train_step.py [--model=digits,small,cifar10] [--peer=torch] [--rounds=10] [--steps_per_call=1]

Medians over rounds, the first call of every turn excluded. The peers' steps alternate with ours, and "over" a peer is
our time over the peer's, the median over rounds. Memory is XLA's own account of arguments and temporaries.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs as a file, too

import importlib.util
import time
from functools import partial

import jax
import numpy as np
from absl import app, flags

from benchmarks.report import MODELS, interleaved, load_config, median, show
from score_sde.experiment import make_experiment
from score_sde.training.state import initial_state
from score_sde.training.step import make_train_step, scan_steps

FLAGS = flags.FLAGS
flags.DEFINE_list("model", ["digits", "small", "cifar10"], f"of {', '.join(MODELS)}")
flags.DEFINE_integer("rounds", 10, "timed rounds")
flags.DEFINE_enum("peer", "torch", ["torch", "none"], "what to compare with on a CPU, where it is installed")
flags.DEFINE_integer("steps_per_call", 1, "train steps scanned in a call")


def ours(config, steps_per_call: int):
    """A function that runs a call of train steps, and what is known of it: parameters, compile seconds, memory."""
    experiment = make_experiment(config, jax.devices()[:1])
    step = make_train_step(
        experiment.loss_fn, experiment.optimizer, experiment.training_key, experiment.ema_decay, 256, axis_name=None
    )
    state = initial_state(experiment.init_params(), experiment.optimizer)
    shape = (steps_per_call, experiment.batch_size, *experiment.event_shape)
    batch = {"image": np.random.default_rng(0).integers(0, 256, shape, np.uint8)}

    started = time.perf_counter()
    compiled = jax.jit(partial(scan_steps, step), donate_argnums=0).lower(state, batch).compile()
    seconds = time.perf_counter() - started
    memory = compiled.memory_analysis()
    facts = {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "compile s": seconds,
        "memory MiB": (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 2**20,
    }
    held = [state]

    def run():
        held[0], metrics = compiled(held[0], batch)
        jax.block_until_ready((held[0], metrics))

    return run, facts


def torchs(config, layout: str):
    """The same step in PyTorch, on as many threads as there are cores, in the memory layout "NCHW" or "NHWC"."""
    import torch

    from benchmarks.torch_ddpmpp import from_config

    memory_format = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}[layout]
    network = from_config(config).to(memory_format=memory_format)
    average = [parameter.detach().clone() for parameter in network.parameters()]
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)
    shape = (config.training.batch_size, config.data.channels, config.data.image_size, config.data.image_size)
    x0 = (torch.rand(shape) * 2 - 1).to(memory_format=memory_format)

    def run():
        t = torch.rand(len(x0))
        noise = torch.randn_like(x0)
        integral = (0.1 * t + 9.95 * t**2)[:, None, None, None]
        x = torch.exp(-0.5 * integral) * x0 + torch.sqrt(-torch.expm1(-integral)) * noise
        loss = ((network(x, 999 * t) - noise) ** 2).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, list(network.parameters()), 1e-3)

    return run


def _torch_layouts() -> list[str]:
    wanted = FLAGS.peer == "torch" and jax.default_backend() == "cpu"
    return ["NCHW", "NHWC"] if wanted and importlib.util.find_spec("torch") else []


def main(argv):
    del argv
    rows = []
    for name in FLAGS.model:
        config = load_config(name)
        run, facts = ours(config, FLAGS.steps_per_call)
        runs = {"score_sde": run} | {f"torch {layout}": torchs(config, layout) for layout in _torch_layouts()}
        seconds = interleaved(runs, FLAGS.rounds)
        times = [value / FLAGS.steps_per_call for value in seconds.pop("score_sde")]
        row = {"model": name, "batch": config.training.batch_size, "ms a step": 1e3 * median(times)}
        row |= {"images/s": config.training.batch_size / median(times), **facts}
        for peer, values in seconds.items():
            row[f"{peer} ms"] = 1e3 * median(values)
            row[f"over {peer}"] = median([a / b for a, b in zip(times, values, strict=True)])
        rows.append(row)
    show(f"Train step, float32, {FLAGS.steps_per_call} step(s) a call", rows)


if __name__ == "__main__":
    app.run(main)
