"""Check and measure an accelerator within a given number of minutes.

    python benchmarks/accelerator.py [--minutes=8] [--output=runs/accelerator] [--parts=train,sampling] [--tiny]

Runs the other benchmarks in order of importance: correctness, train steps (compared with PyTorch if it is installed),
sampling, attention, larger batches, and a training run in the remaining time. Each benchmark is a separate process with
a time limit, so a failure, a hang or a full memory ends that benchmark only. Each result is appended immediately to
findings.jsonl (one JSON object per line) and findings.md (a table), and the output of each benchmark goes to a log.

Compilation would take most of the time. Therefore the train steps are first compiled in parallel, into a cache that the
timed processes read. The compile times are those of this first phase. `--parts` selects the benchmarks whose names
contain one of the given words. `--tiny` uses the smallest models, to test this program.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs as a file, too

import json
import os
import re
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from absl import app, flags

from score_sde.runtime.repeatable import exclude_nondeterministic_ops

ROOT = Path(__file__).parents[1]
TRAINED = ("cifar10", "edm", "ncsnpp", "adm64", "dit")  # DDPM++, EDM's, NCSN++, ADM on 64 x 64, DiT-B/2
BATCHES = {"adm64": 64}
COMPILING = 0.4  # fraction of the time
CORES = 2  # CPU cores per compilation
STOP_SECONDS = 20  # time to save a checkpoint after SIGTERM

FLAGS = flags.FLAGS
flags.DEFINE_float("minutes", 8.0, "time limit of the whole program")
flags.DEFINE_string("output", "runs/accelerator", "folder of the findings")
flags.DEFINE_list("parts", [""], "words in the names of the benchmarks to run; default: all")
flags.DEFINE_bool("tiny", False, "use the smallest models, to test this program")


def parts(output: Path) -> dict[str, tuple[float, list[str]]]:
    """Return the time limit in seconds and the command of each benchmark, in order of importance."""
    found = {"correctness": (180.0, ["benchmarks/device_checks.py"])}
    models = ("digits",) if FLAGS.tiny else TRAINED
    for dtype in ("bfloat16", "float32"):
        for model in models:
            found[f"train {model} {dtype}"] = (150.0, train(model, dtype))
        if dtype == "bfloat16":
            options = (
                ["--model=digits", "--batch=8", "--solver=ddim"] if FLAGS.tiny else ["--model=cifar10", "--batch=128"]
            )
            options += ["--dtype=bfloat16", "--peer=none", "--noadaptive", "--nocompile_ratio", "--rounds=3"]
            found["sampling"] = (120.0, ["benchmarks/sampling.py", *options])
            scale = ["--scale=64", "--rounds=2"] if FLAGS.tiny else []
            found["attention"] = (60.0, ["benchmarks/attention.py", *scale])
    for model in models:
        found[f"larger batches {model}"] = (240.0, train(model, "bfloat16", 2, "--doublings=4", "--peer=none"))
    training = ["launch.py", "--config=configs/vp_digits.py", f"--workdir={output / 'vp_digits'}"]
    found["training"] = (3600.0, [*training, *(["--config.training.num_steps=100"] if FLAGS.tiny else [])])
    return {name: part for name, part in found.items() if any(word in name for word in FLAGS.parts)}


def train(model: str, dtype: str, times: int = 1, *options: str) -> list[str]:
    """Return the command that times a train step at a multiple of the model's batch size."""
    batch = times * (8 if FLAGS.tiny else BATCHES.get(model, 128))
    peer = () if options else ("--peer=torch,compiled",) if model == "cifar10" else ("--peer=none",)
    command = ["benchmarks/train_step.py", f"--model={model}", f"--dtype={dtype}", f"--batch={batch}"]
    return [*command, f"--rounds={1 if FLAGS.tiny else 5}", *peer, *options]


def compile_first(commands: dict[str, list[str]], seconds: float, output: Path) -> None:
    """Compile the train steps in parallel, in order of importance; the larger batches compile when they run."""
    end = time.monotonic() + seconds

    def compile_one(item):
        name, command = item
        if end - time.monotonic() > STOP_SECONDS:
            run(
                f"compile {name}",
                [*command, "--compile_only"],
                end - time.monotonic(),
                output,
                XLA_PYTHON_CLIENT_PREALLOCATE="false",
            )

    with ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)) // CORES)) as threads:
        list(threads.map(compile_one, commands.items()))


def run(name: str, command: list[str], seconds: float, output: Path, **environment: str) -> None:
    """Run a benchmark with a time limit in seconds, and record each result when it is printed."""
    started = time.monotonic()
    environment = (
        dict(os.environ, JAX_COMPILATION_CACHE_DIR=str(output / "compiled"), PYTHONUNBUFFERED="1") | environment
    )
    with (output / f"{re.sub(r'[^a-z0-9]+', '_', name)}.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
        )
        timer = threading.Timer(seconds, process.send_signal, [signal.SIGTERM])
        killer = threading.Timer(seconds + STOP_SECONDS, process.kill)
        timer.start(), killer.start()
        for line in process.stdout:
            log.write(line)
            if line.startswith("{") and '"rows"' not in line:
                write(output, name, json.loads(line), time.monotonic() - started)
        code = process.wait()
        timer.cancel(), killer.cancel()
    took = time.monotonic() - started
    finding = {"exit": code, "seconds": round(took, 1)}
    if code:
        finding["stopped"] = f"at its limit of {seconds:.0f} s" if took >= seconds else "by an error, see its log"
    write(output, name, finding, took)


def write(output: Path, part: str, finding: dict, seconds: float) -> None:
    """Append a result to both files."""
    with (output / "findings.jsonl").open("a") as file:
        print(json.dumps({"part": part, "at": round(seconds, 1), **finding}), file=file)
    figures = ", ".join(f"{key} {format_value(value)}" for key, value in finding.items() if value is not None)
    with (output / "findings.md").open("a") as file:
        print(f"| {part} | {figures} |", file=file)
    print(f"{part}: {figures}", flush=True)


def format_value(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main(argv):
    del argv
    exclude_nondeterministic_ops()  # as in launch.py
    end = time.monotonic() + 60 * FLAGS.minutes
    output = Path(FLAGS.output).absolute()
    output.mkdir(parents=True, exist_ok=True)
    with (output / "findings.md").open("a") as file:
        print("| part | finding |\n| --- | --- |", file=file)
    ask = "from benchmarks.report import emit, machine; emit({'machine': machine()})"
    run("machine", ["-c", ask], 60.0, output)
    chosen = parts(output)
    compiled = {name: command for name, (_, command) in chosen.items() if name.startswith("train ")}
    compile_first(compiled, 60 * COMPILING * FLAGS.minutes, output)
    for name, (longest, command) in chosen.items():
        seconds = min(longest, end - time.monotonic() - STOP_SECONDS)
        if seconds < 5:
            write(output, name, {"skipped": "no time left"}, 0.0)
        else:
            run(name, command, seconds, output)


if __name__ == "__main__":
    app.run(main)
