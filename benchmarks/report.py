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
    """The config of a benchmark's model, with the batch size it is timed at, 0 for the model's own."""
    import importlib

    module, overrides, usual = MODELS.get(name, MODELS["cifar10"])
    config = importlib.import_module(f"configs.{module}").get_config()
    config.data.update(overrides)
    if name in ARCHITECTURES:
        config.model.name, config.model.kwargs = name, ConfigDict(ARCHITECTURES[name])
    if name == "ncsnv2":  # it gives the score, told log sigma
        config.model.prediction, config.model.preconditioning = "score", "log_sigma"
    if dtype != "float32":
        with config.unlocked():
            config.model.kwargs.dtype = dtype
    config.training.batch_size = config.sampling.batch_size = batch_size or usual
    return config


def saved_config(workdir: str) -> ConfigDict:
    """The config of a run, with the defaults of options that are newer than the run."""
    path = Path(workdir) / "config.json"
    if not path.is_file():
        sys.exit(f"{workdir} holds no run: train one first, or name another")
    saved = _as_tuples(json.loads(path.read_text()))
    newer = {name: group | saved[name] for name, group in default().to_dict().items() if isinstance(group, dict)}
    return ConfigDict(saved | newer)


def _as_tuples(value):
    """The value with its lists as tuples, which JSON has not."""
    if isinstance(value, dict):
        return {key: _as_tuples(part) for key, part in value.items()}
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def matmul_rate(dtype: str) -> float:
    """FLOP/s of a large matrix product on one device: what the rest is measured against."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    x = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
    product = jax.jit(jnp.dot)
    seconds = interleaved({"product": lambda: product(x, x).block_until_ready()}, 5)["product"]
    return 2 * size**3 / median(seconds)


def interleaved(runs: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each of several functions, in turn A B A B ..., because the speed of a shared machine drifts.

    A function must wait for its own result. Each turn starts with a call that isn't counted: it warms up what the turn
    before has cooled down, and lets the threads of another library, which spin for a while, go to sleep.
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
    """The device, its host's cores, and the versions that decide a speed."""
    device = jax.devices()[0]
    cores = len(os.sched_getaffinity(0))
    return f"{device.device_kind} ({jax.device_count()}), {cores} cores, {platform.machine()}, jax {jax.__version__}"


def peak_gib() -> float | None:
    """The most memory that this process has used on its first device, in GiB; None where the device doesn't say."""
    peak = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return None if peak is None else peak / 2**30


def median(values: list[float]) -> float:
    return statistics.median(values)


def show(title: str, rows: list[dict]) -> None:
    """Prints a Markdown table of the rows, and the same as one line of JSON."""
    print(f"\n{title}; {machine()}\n")
    columns = list(rows[0])
    print("| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns))
    for row in rows:
        print("| " + " | ".join(_cell(row.get(column)) for column in columns) + " |")
    print(json.dumps({"title": title, "machine": machine(), "rows": rows}), flush=True)


def emit(row: dict) -> None:
    """Prints one finding as a line of JSON at once, so that a killed run keeps what it had."""
    print(json.dumps(row), flush=True)


def _cell(value) -> str:
    if not isinstance(value, float):
        return "" if value is None else str(value)
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"
