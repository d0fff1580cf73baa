"""Functions of the benchmarks: interleaved timing, the machine's name, tables and JSON."""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from score_sde.experiment.defaults import default

MODELS = {
    "digits": ("vp_digits", {}, 128),
    "small": ("vp_fashion_mnist", {"channels": 3}, 16),
    "cifar10": ("vp_cifar10", {}, 4),
    "edm": ("edm_cifar10", {}, 4),
    "adm64": ("adm_imagenet64", {}, 2),
}  # name -> config, overrides of config.data, batch size
ARCHITECTURES = {
    "ddpm": {"num_res_blocks": 2},
    "ddpmpp": {"num_res_blocks": 4},
    "ncsnpp": {"num_res_blocks": 4, "scale_by_sigma": False},
    "adm": {"num_res_blocks": 3, "multipliers": (1, 2, 3, 4), "channels": 192, "attention_resolutions": (32, 16, 8)},
    "edm2": {"num_res_blocks": 3, "multipliers": (1, 2, 3, 4), "attention_resolutions": (16, 8)},
    "dit": {"size": "B", "patch": 2},
    "ncsnv2": {},
}  # of models on CIFAR-10's images -> keyword arguments


def load_config(name: str, batch_size: int = 0, dtype: str = "float32"):
    """Return the config of a benchmark's model; the batch size 0 selects the model's default."""
    import importlib

    module, overrides, usual = MODELS.get(name, MODELS["cifar10"])
    config = importlib.import_module(f"configs.{module}").get_config()
    config.data.update(overrides)
    if name in ARCHITECTURES:
        config.model.name, config.model.kwargs = name, ConfigDict(ARCHITECTURES[name])
    if name == "ncsnv2":  # its output is the score, conditioned on log sigma
        config.model.prediction, config.model.preconditioning = "score", "log_sigma"
    if dtype != "float32":
        with config.unlocked():
            config.model.kwargs.dtype = dtype
    config.training.batch_size = config.sampling.batch_size = batch_size or usual
    return config


def saved_config(workdir: str) -> ConfigDict:
    """Return the config of a run; options that are newer than the run get their defaults."""
    path = Path(workdir) / "config.json"
    if not path.is_file():
        sys.exit(f"{workdir} has no run: train one first, or name another folder")
    saved = _as_tuples(json.loads(path.read_text()))
    newer = {name: group | saved[name] for name, group in default().to_dict().items() if isinstance(group, dict)}
    return ConfigDict(saved | newer)


def _as_tuples(value):
    """Return the value with lists replaced by tuples, which JSON can't store."""
    if isinstance(value, dict):
        return {key: _as_tuples(part) for key, part in value.items()}
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def matmul_rate(dtype: str) -> float:
    """Return the FLOP/s of a large matrix product on one device, the reference for other rates."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    x = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
    product = jax.jit(jnp.dot)
    seconds = interleaved({"product": lambda: product(x, x).block_until_ready()}, 5)["product"]
    return 2 * size**3 / median(seconds)


def interleaved(runs: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each function over rounds A B A B ..., because the speed of a shared machine drifts.

    A function must wait for its own result. Each turn starts with an uncounted call, which refills the caches and lets
    the threads of another library, which spin for a while, go to sleep.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            run()
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def machine() -> str:
    """Return the device, the number of cores of its host, and the version of JAX."""
    device = jax.devices()[0]
    cores = len(os.sched_getaffinity(0))
    return f"{device.device_kind} ({jax.device_count()}), {cores} cores, {platform.machine()}, jax {jax.__version__}"


def peak_gib() -> float | None:
    """Return the peak memory of this process on its first device in GiB; None if the device doesn't report it."""
    peak = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return None if peak is None else peak / 2**30


def median(values: list[float]) -> float:
    return statistics.median(values)


def show(title: str, rows: list[dict]) -> None:
    """Print the rows as a Markdown table and as one line of JSON."""
    print(f"\n{title}; {machine()}\n")
    columns = list(rows[0])
    print("| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns))
    for row in rows:
        print("| " + " | ".join(_cell(row.get(column)) for column in columns) + " |")
    print(json.dumps({"title": title, "machine": machine(), "rows": rows}), flush=True)


def emit(row: dict) -> None:
    """Print one result as a line of JSON, so that a killed run keeps it."""
    print(json.dumps(row), flush=True)


def _cell(value) -> str:
    if not isinstance(value, float):
        return "" if value is None else str(value)
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"
