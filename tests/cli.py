"""The command line on a network small enough for tests."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]


def cheap(level: int) -> str:
    """Return compiler flags for LLVM to get a single module and run few passes."""
    return f"--xla_backend_optimization_level={level} --xla_cpu_parallel_codegen_split_count=1"


# The older code generator compiles faster, but a scanned U-Net then differs from an unscanned one in the last bit.
OLDER_GENERATOR = "--xla_cpu_use_fusion_emitters=false" if version("jaxlib").startswith("0.10.") else ""
# Compilation takes most of the tests' time. Programs that the tests start run the fewest passes, because they compile
# more and compute less than the tests' process.
IN_PROCESS = f"{cheap(1)} {OLDER_GENERATOR}"
QUICK = f"{cheap(0)} {OLDER_GENERATOR}"
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

POINTS = (  # a perceptron on points, which compiles quickly
    "--config=configs/toy2d.py",
    "--config.model.kwargs.features=(8,)",
    "--config.training.batch_size=8",
    "--config.training.num_steps=2000",
    *TINY[7:10],
    "--config.training.sample_every=2000",
    *TINY[11:],
)


def environment(devices: int = 1, compiler: str = QUICK) -> dict[str, str]:
    """Return the environment of a process with virtual devices, cheap compilation and the tests' cache."""
    return dict(
        os.environ,
        JAX_PLATFORMS="cpu",
        XLA_FLAGS=f"--xla_force_host_platform_device_count={devices} {compiler}",
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        XDG_CACHE_HOME=str(ROOT / ".pytest_cache"),
    )


def compiler_of(command) -> str:
    """Return the compiler flags of a command; evaluation trains a classifier, which takes minutes without passes."""
    return IN_PROCESS if "--mode=evaluate" in command else QUICK


def start(workdir, *flags: str, devices: int = 1, compiler: str = "") -> subprocess.Popen:
    """Start launch.py with the flags, and with the tiny config unless they name another."""
    config = () if any(flag.startswith("--config=") for flag in flags) else TINY
    command = [sys.executable, "launch.py", *config, f"--workdir={workdir}", *flags]
    variables = environment(devices, compiler or compiler_of(flags))
    return subprocess.Popen(command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen, expected: int = 0) -> str:
    """Wait for the end, check the exit status, and return the output."""
    out, error = process.communicate(timeout=600)
    assert process.returncode == expected, out + error
    return out + error


PARSER = """
import json, os, sys
import launch
from score_sde.errors import UserError
for line in sys.stdin:
    sys.stdout.flush()
    if os.fork() == 0:  # one process per command, because an override defines a flag
        try:
            rest = launch.parse_flags(json.loads(line))
            found = {"config": launch.FLAGS.config.to_dict(), "mode": launch.FLAGS.mode, "rest": rest}
        except UserError as error:
            found = {"error": str(error)}
        print(json.dumps(found, default=str), flush=True)
        os._exit(0)
    os.wait()
"""


def parse(commands: list[list[str]]) -> list[dict]:
    """Parse command lines with launch.py; return {"config", "mode", "rest"} or {"error"} for each."""
    done = subprocess.run(
        [sys.executable, "-c", PARSER],
        input="".join(f"{json.dumps(command)}\n" for command in commands),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]
