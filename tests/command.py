"""The command line on a network small enough for tests."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TINY = (
    "--config=configs/vp_digits.py",
    "--config.model.kwargs.channels=8",
    "--config.model.kwargs.multipliers=(1,)",
    "--config.model.kwargs.num_res_blocks=1",
    "--config.model.kwargs.attention_resolutions=()",
    "--config.training.batch_size=8",
    "--config.training.num_steps=200",
    "--config.training.log_every=10",
    "--config.training.checkpoint_every=10",
    "--config.training.steps_per_call=1",
    "--config.training.sample_every=200",
    "--config.sampling.num_steps=4",
    "--config.sampling.num_samples=10",
    "--config.sampling.batch_size=8",
)


def start(workdir, *flags: str, cache=None, devices: int = 1) -> subprocess.Popen:
    """Starts launch.py with further flags, and with the tiny config unless they name another.

    A cache folder saves compiling a program again.
    """
    environment = dict(os.environ, JAX_PLATFORMS="cpu")
    environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    if cache is not None:
        environment |= {
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
    config = () if any(flag.startswith("--config=") for flag in flags) else TINY
    command = [sys.executable, "launch.py", *config, f"--workdir={workdir}", *flags]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen, expected: int = 0) -> str:
    """Waits for the end; returns what was printed, after checking the exit status."""
    out, error = process.communicate(timeout=240)
    assert process.returncode == expected, out + error
    return out + error
