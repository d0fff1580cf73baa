"""All that this project wants to know of an accelerator, in the minutes that there are for it.

    python benchmarks/accelerator.py [--minutes=8] [--output=runs/accelerator] [--parts=train,sampling] [--tiny]

Runs the other benchmarks one after another, the most important first: correctness, train steps (with PyTorch beside,
where it is installed), sampling, attention, growing batches, and a training for the time that remains. Each is a
program of its own, with a time limit, so that one that fails, hangs or fills the memory costs only its own findings. A
finding is written when it is made: a line of JSON to findings.jsonl, a row to findings.md, and what a part printed to
its own log. Compilation would take most of the minutes, so the train steps are compiled first, as many side by side as
the host has cores for, into a cache that the timed programs read: "compile s" is that of the former. `--parts` takes
only parts whose names contain one of its words; `--tiny` takes the smallest models, to try this program itself.
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
COMPILING = 0.4  # of the time
CORES = 2  # that a compilation keeps busy
STOP_SECONDS = 20  # a training saves a checkpoint when it is told to stop

FLAGS = flags.FLAGS
flags.DEFINE_float("minutes", 8.0, "how long all may take")
flags.DEFINE_string("output", "runs/accelerator", "folder of the findings")
flags.DEFINE_list("parts", [""], "words in the names of the parts to run; all")
flags.DEFINE_bool("tiny", False, "the smallest models, to try this program itself")


def parts(output: Path) -> dict[str, tuple[float, list[str]]]:
    """Name -> (the most seconds it may take, the command), the most important first."""
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
        found[f"growing batches {model}"] = (240.0, train(model, "bfloat16", 2, "--doublings=4", "--peer=none"))
    training = ["launch.py", "--config=configs/vp_digits.py", f"--workdir={output / 'vp_digits'}"]
    found["training"] = (3600.0, [*training, *(["--config.training.num_steps=100"] if FLAGS.tiny else [])])
    return {name: part for name, part in found.items() if any(word in name for word in FLAGS.parts)}


def train(model: str, dtype: str, times: int = 1, *options: str) -> list[str]:
    """The command that times a train step at some multiple of the model's batch."""
    batch = times * (8 if FLAGS.tiny else BATCHES.get(model, 128))
    peer = () if options else ("--peer=torch,compiled",) if model == "cifar10" else ("--peer=none",)
    command = ["benchmarks/train_step.py", f"--model={model}", f"--dtype={dtype}", f"--batch={batch}"]
    return [*command, f"--rounds={1 if FLAGS.tiny else 5}", *peer, *options]


def compile_first(commands: dict[str, list[str]], seconds: float, output: Path) -> None:
    """Compiles the train steps side by side, the most important first; the growing batches compile their own."""
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
    """Runs one part for at most so many seconds, and keeps each of its findings as it is printed."""
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
    finding = {"exit": code, "seconds": round(time.monotonic() - started, 1)}
    if code:
        finding["stopped"] = f"after its {seconds:.0f} s" if finding["seconds"] >= seconds else "by itself, see its log"
    write(output, name, finding, finding["seconds"])


def write(output: Path, part: str, finding: dict, seconds: float) -> None:
    """Appends a finding to both files."""
    with (output / "findings.jsonl").open("a") as file:
        print(json.dumps({"part": part, "at": round(seconds, 1), **finding}), file=file)
    figures = ", ".join(f"{key} {shown(value)}" for key, value in finding.items() if value is not None)
    with (output / "findings.md").open("a") as file:
        print(f"| {part} | {figures} |", file=file)
    print(f"{part}: {figures}", flush=True)


def shown(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main(argv):
    del argv
    exclude_nondeterministic_ops()  # as launch.py does, for all parts
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
            write(output, name, {"skipped": "no time was left"}, 0.0)
        else:
            run(name, command, seconds, output)


if __name__ == "__main__":
    app.run(main)
