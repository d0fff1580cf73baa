"""A trial: one experiment of a sweep with one seed, its folder, and how far it is."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from score_sde.errors import UserError
from score_sde.experiment import overrides as over
from score_sde.runtime.disk import write_atomically
from score_sde.runtime.hashing import hash_json
from score_sde.sweeps.axes import Overrides
from score_sde.training.workdir import flatten

ROOT = Path(__file__).parents[2]
STATE = "trial.json"


class Trial(NamedTuple):
    """What is run, and where."""

    overrides: Overrides  # without the seed, and without what all trials share
    seed: int
    given: Overrides  # all of them
    config: ConfigDict
    folder: Path


def make_trials(sweep: ConfigDict, workdir: Path) -> list[Trial]:
    """Every trial with every seed; those whose configs are the same once.

    A folder's name ends in a hash of the whole config, so that a trial is found again when axes are added: a value that
    the base has anyway changes nothing.

    Raises:
      UserError: the base's file is missing, or an override is of no key that it has.
    """
    base = over.load(sweep.base)
    found: dict[str, Trial] = {}
    for overrides in sweep.trials:
        if "seed" in overrides:
            raise UserError("a trial's seed is said by the sweep's seeds, not by an override")
        for seed in sweep.seeds:
            given = sweep.fixed[0] | overrides | {"seed": seed}
            config = over.override(base, given)
            key = hash_json(config.to_dict(), list(sweep.modes), sweep.from_run)
            found.setdefault(key, Trial(overrides, seed, given, config, _folder(workdir, overrides, seed, key)))
    return list(found.values())


def commands(trial: Trial, sweep: ConfigDict, modes: list[str]) -> list[list[str]]:
    """The command line of each of a trial's modes."""
    given = over.flags(trial.given)
    base, folder = Path(sweep.base).absolute(), trial.folder.absolute()  # wherever on the machines it is started
    start = [sys.executable, str(ROOT / "launch.py"), f"--config={base}", f"--workdir={folder}"]
    return [[*start, f"--mode={mode}", *given] for mode in modes]


def adopt(trial: Trial, run: Path) -> None:
    """Makes a trial's folder one that sees the checkpoints of another run.

    Raises:
      UserError: that run has no checkpoints.
    """
    if not (run / "checkpoints").is_dir():
        raise UserError(f"{run} has no checkpoints to measure")
    trial.folder.mkdir(parents=True, exist_ok=True)
    for name in ("checkpoints", "manifests", "snapshots"):
        link = trial.folder / name
        if (run / name).is_dir() and not link.is_symlink():
            link.symlink_to((run / name).absolute(), target_is_directory=True)
    shutil.copyfile(run / "config.json", trial.folder / "config.json")  # another network or process is then refused


def read_state(folder: Path) -> dict[str, Any]:
    """Returns a trial's state: status, finished modes, seconds, attempts, error.

    The status is "new", "running", "done", "failed", "stopped", or "damaged" where the file can't be read.
    """
    path = folder / STATE
    fresh = {"status": "new", "modes": [], "seconds": 0.0, "attempts": 0, "error": ""}
    if not path.is_file():
        return fresh
    state = _json(path)
    kinds = {"seconds": int | float} | {key: type(value) for key, value in fresh.items() if key != "seconds"}
    if not isinstance(state, dict) or any(not isinstance(state.get(key, fresh[key]), kinds[key]) for key in fresh):
        return fresh | {"status": "damaged", "error": f"{STATE} can't be read"}
    return fresh | state


def damage(folder: Path, metrics: Iterable[str]) -> str:
    """The files of a finished trial that are missing or can't be read, of those that hold the metrics; or "".

    Args:
      folder: the trial's.
      metrics: names, as of `metric`.
    """
    logs = [name.startswith("train.") for name in metrics]
    wrong = []
    if any(logs) and len(records(folder)) < max(1, len(_logged(folder)) - 1):  # the last line may be cut
        wrong.append("metrics.jsonl")
    if not all(logs) and not isinstance(_json(folder / "evaluation.json"), dict):
        wrong.append("evaluation.json")
    return f"{' and '.join(wrong)} can't be read" if wrong else ""


def write_state(folder: Path, state: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / STATE, json.dumps(state, indent=2) + "\n")


def metric(folder: Path, name: str) -> float | None:
    """A number that a trial left behind: a key of its last log after "train.", or a path into evaluation.json."""
    group, _, key = name.partition(".")
    if group == "train":
        return _number(last_record(folder).get(key))
    figures = _json(folder / "evaluation.json")
    return _number(dict(flatten(figures)).get(name)) if isinstance(figures, dict) else None


def last_record(folder: Path) -> dict[str, Any]:
    """The last whole line of a run's metrics.jsonl; {}: there is none."""
    return next(_parsed(reversed(_logged(folder))), {})


def records(folder: Path) -> list[dict[str, Any]]:
    """Every whole line of a run's metrics.jsonl."""
    return list(_parsed(_logged(folder)))


def commit() -> str:
    """Of this repository, with + where files have changed since; "" outside of one."""

    def git(*words):
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")


def label(overrides: Overrides) -> str:
    """The overrides' values in short, for a reader."""
    return ", ".join(f"{key.split('.')[-1]} {value}" for key, value in overrides.items()) or "base"


def _folder(workdir: Path, overrides: Overrides, seed: int, key: str) -> Path:
    """An existing folder of this hash, or a new one's name."""
    existing = sorted((workdir / "trials").glob(f"*_{key}"))
    if existing:
        return existing[0]
    words = re.sub(r"[^\w.-]+", "-", "_".join(str(value) for value in overrides.values()))
    words = words.encode(errors="ignore")[:60].decode(errors="ignore")  # a name has at most 255 bytes, not letters
    return workdir / "trials" / f"{words or 'base'}_seed{seed}_{key}"


def _json(path: Path) -> Any:
    """Returns the contents of a JSON file; None if it is missing or can't be read."""
    with suppress(OSError, ValueError, RecursionError):
        return json.loads(path.read_text())
    return None


def _logged(folder: Path) -> list[str]:
    path = folder / "metrics.jsonl"
    return path.read_text(errors="replace").splitlines() if path.is_file() else []


def _parsed(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        with suppress(ValueError, RecursionError):  # it is being written
            record = json.loads(line)
            if isinstance(record, dict) and {"step", "loss"} <= record.keys():
                yield record


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
