"""Milliseconds per train step (loss, gradient, clipping, Adam, EMA), compared with PyTorch if it is installed.

    python benchmarks/train_step.py [--model=digits,small,cifar10,edm,adm64,ddpm,ncsnpp,adm,edm2,dit,ncsnv2] [--batch=0]
        [--dtype=float32|bfloat16] [--peer=torch,diffusers,compiled] [--rounds=10] [--steps_per_call=1] [--remat]
        [--doublings=0] [--compile_only]

Values are medians over rounds, without the first call of a turn. The peers' steps alternate with ours, and "over" a
peer is our time divided by the peer's. "torch" is the same DDPM++ written in PyTorch, in both memory layouts.
"diffusers" is UNet2DModel with the same channels, levels and blocks; for DDPM it is the same function. "compiled" is
the last available peer with torch.compile. Memory is XLA's size of arguments and temporaries. FLOPs are those of matrix
products and convolutions, and "of matmul" is their rate divided by that of a large matrix product in the same run.
"peak GiB" is from the device's allocator, if it reports it. `--doublings` repeats each model at twice the batch size,
this many times or until memory is full, without peers. `--compile_only` only fills JAX's cache of compiled programs
(JAX_COMPILATION_CACHE_DIR) for a later run.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs as a file, too

import copy
import importlib.util
import time
from functools import partial

import jax
import numpy as np
from absl import app, flags

from benchmarks.report import ARCHITECTURES, MODELS, emit, interleaved, load_config, matmul_rate, median, peak_gib, show
from score_sde.experiment import make_experiment
from score_sde.planning.flops import count_flops
from score_sde.training.setup import build_train_step
from score_sde.training.step import scan_steps

FLAGS = flags.FLAGS
flags.DEFINE_list("model", ["digits", "small", "cifar10"], f"of {', '.join([*MODELS, *ARCHITECTURES])}")
flags.DEFINE_integer("rounds", 10, "timed rounds")
flags.DEFINE_integer("batch", 0, "images of a step; 0: each model's own")
flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "what the networks compute in")
flags.DEFINE_bool("remat", False, "recompute each block's activations in the backward pass")
flags.DEFINE_list("peer", ["torch"], "of torch, diffusers, compiled; what to compare with, where it is installed")
flags.DEFINE_integer("doublings", 0, "how often to double the batch, while memory lasts")
flags.DEFINE_bool("compile_only", False, "compile our steps and time nothing")
flags.DEFINE_integer("steps_per_call", 1, "train steps scanned in a call")


def ours(config, steps_per_call: int):
    """Return a function that runs a call of train steps, and its parameters, compile seconds, memory and FLOPs."""
    experiment = make_experiment(config, jax.devices()[:1])
    step = build_train_step(experiment.training, 256, axis_name=None)
    state = experiment.training.init_state()
    shape = (steps_per_call, experiment.training.batch_size, *experiment.model.event_shape)
    batch = {"image": np.random.default_rng(0).integers(0, 256, shape, np.uint8)}
    if experiment.model.num_classes:
        batch["label"] = np.zeros(shape[:2], np.int32)

    started = time.perf_counter()
    compiled = jax.jit(partial(scan_steps, step), donate_argnums=0).lower(state, batch).compile()
    seconds = time.perf_counter() - started
    memory = compiled.memory_analysis()
    one = jax.tree.map(lambda leaf: leaf[0], batch)
    facts = {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "compile s": seconds,
        "memory MiB": (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 2**20,
        "GFLOP": count_flops(step, state, one) / 1e9,
    }
    held = [state]

    def run():
        held[0], metrics = compiled(held[0], batch)
        jax.block_until_ready((held[0], metrics))

    return run, facts


def torchs(config, network):
    """Return the same step with a PyTorch network, on the device that JAX uses."""
    import torch

    device = "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"
    if device == "cuda":  # choose kernels by timing them, and use TF32, as XLA does
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
    network = network.to(device)
    average = [parameter.detach().clone() for parameter in network.parameters()]
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)
    shape = (config.training.batch_size, config.data.channels, config.data.image_size, config.data.image_size)
    x0 = (torch.rand(shape, device=device) * 2 - 1).to(memory_format=torch.channels_last)
    autocast = partial(torch.autocast, device, torch.bfloat16, enabled=FLAGS.dtype == "bfloat16")

    def run():
        t = torch.rand(len(x0), device=device)
        noise = torch.randn_like(x0)
        integral = (0.1 * t + 9.95 * t**2)[:, None, None, None]
        x = torch.exp(-0.5 * integral) * x0 + torch.sqrt(-torch.expm1(-integral)) * noise
        with autocast():
            output = network(x, 999 * t)
        output = output.sample if hasattr(output, "sample") else output
        loss = ((output.float() - noise) ** 2).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, list(network.parameters()), 1e-3)
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def peers(name: str, config) -> dict:
    """Return the PyTorch networks of --peer that are installed, by column name."""
    wanted = [peer for peer in FLAGS.peer if peer != "none"]
    if not wanted or not importlib.util.find_spec("torch"):
        return {}
    import torch

    networks = {}
    if "torch" in wanted and config.model.name == "ddpmpp":
        from benchmarks.torch_ddpmpp import from_config

        networks["torch NCHW"] = from_config(config)
        networks["torch NHWC"] = from_config(config).to(memory_format=torch.channels_last)
    if "diffusers" in wanted and config.model.name not in ("dit", "ncsnv2"):
        networks["diffusers NHWC"] = diffusers_unet(config).to(memory_format=torch.channels_last)
    if "compiled" in wanted and networks:
        networks["compiled"] = torch.compile(copy.deepcopy([*networks.values()][-1]))
    return networks


def diffusers_unet(config):
    """Return a UNet2DModel with the channels, levels and blocks of a config; for "ddpm" it is the same function."""
    from diffusers import UNet2DModel

    from score_sde.models import create

    module = create(config.model.name, **config.model.kwargs.to_dict())
    heights = [config.data.image_size >> level for level in range(len(module.multipliers))]
    attended = [height in module.attention_resolutions for height in heights]
    return UNet2DModel(
        sample_size=config.data.image_size,
        in_channels=config.data.channels,
        out_channels=config.data.channels,
        block_out_channels=[module.channels * multiplier for multiplier in module.multipliers],
        layers_per_block=module.num_res_blocks,
        down_block_types=["AttnDownBlock2D" if has else "DownBlock2D" for has in attended],
        up_block_types=["AttnUpBlock2D" if has else "UpBlock2D" for has in reversed(attended)],
        attention_head_dim=getattr(module, "head_channels", None),
        dropout=module.dropout,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
    )


def measure(config, name: str, rate: float, with_peers: bool) -> dict:
    """Return a row with our step and those of the selected peers, at the batch size of the config."""
    run, facts = ours(config, FLAGS.steps_per_call)
    if FLAGS.compile_only:
        return {"model": name, "batch": config.training.batch_size, "dtype": FLAGS.dtype, **facts}
    runs = {"score_sde": run}
    if with_peers:
        runs |= {peer: torchs(config, network) for peer, network in peers(name, config).items()}
    seconds = interleaved(runs, FLAGS.rounds)
    times = [value / FLAGS.steps_per_call for value in seconds.pop("score_sde")]
    row = {"model": name, "batch": config.training.batch_size, "dtype": FLAGS.dtype, "ms a step": 1e3 * median(times)}
    row |= {"images/s": config.training.batch_size / median(times), **facts}
    row["of matmul"] = 1e9 * facts["GFLOP"] / median(times) / rate
    row["peak GiB"] = peak_gib()
    for peer, values in seconds.items():
        row[f"{peer} ms"] = 1e3 * median(values)
        row[f"over {peer}"] = median([a / b for a, b in zip(times, values, strict=True)])
    return row


def main(argv):
    del argv
    rate = float("nan") if FLAGS.compile_only else matmul_rate(FLAGS.dtype)
    rows = []
    for name in FLAGS.model:
        batch = FLAGS.batch
        for doubling in range(FLAGS.doublings + 1):
            config = load_config(name, batch, FLAGS.dtype)
            if FLAGS.remat:
                with config.unlocked():
                    config.model.kwargs.remat = True
            try:
                rows.append(measure(config, name, rate, with_peers=doubling == 0))
            except jax.errors.JaxRuntimeError as error:
                if not doubling or "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                emit(
                    {"model": name, "batch": config.training.batch_size, "dtype": FLAGS.dtype, "note": "out of memory"}
                )
                break
            emit(rows[-1])  # what is measured is not lost with the next
            batch = 2 * config.training.batch_size
    columns = dict.fromkeys(column for row in rows for column in row)
    rows = [{column: row.get(column) for column in columns} for row in rows]
    title = f"Train step, {FLAGS.dtype}, {FLAGS.steps_per_call} step(s) a call, matmul at {rate / 1e9:.0f} GFLOP/s"
    show(title, rows)


if __name__ == "__main__":
    app.run(main)
