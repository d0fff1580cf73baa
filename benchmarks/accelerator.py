"""All that this project wants to know of an accelerator, in the minutes that there are for it.

    python benchmarks/accelerator.py [--minutes=8] [--output=runs/accelerator] [--tiny]

Runs the other benchmarks one after another, the most important first: correctness, train steps (with PyTorch beside,
where it is installed), sampling, attention, growing batches, and a training for the time that remains. Each is a
program of its own, with a time limit, so that one that fails, hangs or fills the memory costs only its own findings. A
finding is written when it is made: a line of JSON to findings.jsonl, a row to findings.md, and what a part printed to
its own log. `--tiny` takes the smallest models, to try this program itself.
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

from absl import app, flags

ROOT = Path(__file__).parents[1]
TRAINED = ("cifar10", "edm", "ncsnpp", "adm64", "dit")  # DDPM++, EDM's, NCSN++, ADM on 64 x 64, DiT-B/2
BATCHES = {"adm64": 64}
STOP_SECONDS = 20  # a training saves a checkpoint when it is told to stop

FLAGS = flags.FLAGS
flags.DEFINE_float("minutes", 8.0, "how long all may take")
flags.DEFINE_string("output", "runs/accelerator", "folder of the findings")
flags.DEFINE_bool("tiny", False, "the smallest models, to try this program itself")


def parts(output: Path) -> dict[str, tuple[float, list[str]]]:
    """Name -> (the most seconds it may take, the command), the most important first."""
    train, tiny = "benchmarks/train_step.py", ["--rounds=1", "--batch=8", "--peer=none"]
    found = {"correctness": (180.0, ["benchmarks/device_checks.py"])}
    for dtype in ("bfloat16", "float32"):
        for model in TRAINED if not FLAGS.tiny else ("digits",):
            options = [f"--batch={BATCHES.get(model, 128)}", "--rounds=5"]
            options += ["--peer=torch,compiled"] if model == "cifar10" else ["--peer=none"]
            command = [train, f"--model={model}", f"--dtype={dtype}", *(tiny if FLAGS.tiny else options)]
            found[f"train {model} {dtype}"] = (150.0, command)
        if dtype == "bfloat16":
            model, batch = ("digits", 8) if FLAGS.tiny else ("cifar10", 128)
            solvers = ["--solver=ddim,ancestral"] if FLAGS.tiny else []
            options = ["--peer=none", "--noadaptive", "--nocompile_ratio", "--rounds=3"]
            command = ["benchmarks/sampling.py", f"--model={model}", f"--batch={batch}", f"--dtype={dtype}"]
            found["sampling"] = (150.0, command + options + solvers)
            scale = ["--scale=64", "--rounds=2"] if FLAGS.tiny else []
            found["attention"] = (90.0, ["benchmarks/attention.py", *scale])
    for model in TRAINED if not FLAGS.tiny else ("digits",):
        batch, doublings = (8, 1) if FLAGS.tiny else (2 * BATCHES.get(model, 128), 4)
        options = [f"--model={model}", "--dtype=bfloat16", f"--batch={batch}", f"--doublings={doublings}"]
        found[f"growing batches {model}"] = (240.0, [train, *options, "--rounds=3", "--peer=none"])
    training = ["launch.py", "--config=configs/vp_digits.py", f"--workdir={output / 'vp_digits'}"]
    found["training"] = (3600.0, [*training, *(["--config.training.num_steps=100"] if FLAGS.tiny else [])])
    return found


def run(name: str, command: list[str], seconds: float, output: Path) -> None:
    """Runs one part for at most so many seconds, and keeps each of its findings as it is printed."""
    started = time.monotonic()
    environment = dict(os.environ, JAX_COMPILATION_CACHE_DIR=str(output / "compiled"), PYTHONUNBUFFERED="1")
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
    end = time.monotonic() + 60 * FLAGS.minutes
    output = Path(FLAGS.output).absolute()
    output.mkdir(parents=True, exist_ok=True)
    with (output / "findings.md").open("a") as file:
        print("| part | finding |\n| --- | --- |", file=file)
    ask = "from benchmarks.report import emit, machine; emit({'machine': machine()})"
    run("machine", ["-c", ask], 60.0, output)
    for name, (longest, command) in parts(output).items():
        seconds = min(longest, end - time.monotonic() - STOP_SECONDS)
        if seconds < 5:
            write(output, name, {"skipped": "no time was left"}, 0.0)
        else:
            run(name, command, seconds, output)


if __name__ == "__main__":
    app.run(main)
