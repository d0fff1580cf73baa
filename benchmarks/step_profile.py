"""Time of a train step by kind of operation, summed over the threads of a CPU.

    python benchmarks/step_profile.py [--model=digits,small,cifar10] [--batch=0] [--dtype=float32|bfloat16] [--steps=3]

The beginning of an instruction's name in XLA determines its kind. A fusion is named after several operations and counts
only under the first, so a reduction that is fused behind a product counts as elementwise. "random" is Threefry, for
dropout, noise and times.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs as a file, too

import tempfile
from collections import Counter

import jax
from absl import app, flags

from benchmarks.report import load_config, show
from benchmarks.train_step import ours

KINDS = {
    "convolution": ("conv_general", "convolution", "ynn", "nhwc"),
    "matrix product": ("dot",),
    "transpose": ("transpose",),
    "copy": ("copy", "bitcast", "concatenate", "pad"),
    "sum": ("reduce", "scatter"),
    "random": ("xor", "or_", "shift", "threefry", "rng", "iota"),
}  # kind -> beginnings of names; all others are elementwise

FLAGS = flags.FLAGS  # --model, --batch and --dtype are those of train_step.py
flags.DEFINE_integer("steps", 3, "profiled steps")


def kind_of(name: str) -> str:
    """Return the kind of an instruction."""
    return next((kind for kind, words in KINDS.items() if name.startswith(words)), "elementwise")


def profile(run, steps: int) -> Counter:
    """Return the milliseconds of each kind per step, after one step that is not profiled."""
    run()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(steps):
                run()
        (file,) = Path(folder).rglob("*.xplane.pb")
        planes = jax.profiler.ProfileData.from_file(str(file)).planes
        milliseconds: Counter = Counter()
        for line in (line for plane in planes for line in plane.lines if line.name.startswith("tf_XLA")):
            for event in line.events:
                if not event.name.startswith(("ThunkExecutor", "end: ", "while", "call")):
                    milliseconds[kind_of(event.name)] += event.duration_ns / 1e6 / steps
    return milliseconds


def main(argv):
    del argv
    jax.config.update("jax_platforms", "cpu")
    rows = []
    for name in FLAGS.model:
        run, _ = ours(load_config(name, FLAGS.batch, FLAGS.dtype), 1)
        milliseconds = profile(run, FLAGS.steps)
        total = sum(milliseconds.values())
        if not total:
            sys.exit("step_profile: expected events of XLA's CPU threads, found none")
        kinds = {kind: milliseconds[kind] for kind in (*KINDS, "elementwise")}
        rows.append({"model": name, "ms of all threads": total} | {k: f"{v / total:.0%}" for k, v in kinds.items()})
    show(f"Profile of a train step, {FLAGS.dtype}", rows)


if __name__ == "__main__":
    app.run(main)
