"""Trials: one experiment of a sweep with one seed each, with its folder and state."""

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
from score_sde.experiment.paths import expand
from score_sde.runtime.disk import write_atomically
from score_sde.runtime.hashing import hash_json
from score_sde.sweeps.axes import Overrides
from score_sde.training.workdir import flatten

ROOT = Path(__file__).parents[2]
STATE = "trial.json"


class Trial(NamedTuple):
    """Overrides, config and folder of a trial."""

    overrides: Overrides  # without the seed, and without the overrides that all trials share
    seed: int
    all_overrides: Overrides
    config: ConfigDict
    folder: Path


def make_trials(sweep: ConfigDict, workdir: Path) -> list[Trial]:
    """Return every trial with every seed; trials with equal configs appear once.

    The name of a folder ends in a hash of the whole config, so that a trial keeps its folder when axes are added: an
    override by the value of the base changes nothing.

    Raises:
      UserError: if the file of the base is missing, or if an override has an unknown key or an invalid value.
    """
    base = over.load(sweep.base)
    trials: dict[str, Trial] = {}
    for overrides in sweep.trials:
        if "seed" in overrides:
            raise UserError("a trial's seed is set by the sweep's seeds, not by an override", "seeds")
        for seed in sweep.seeds:
            all_overrides = sweep.fixed[0] | overrides | {"seed": seed}
            config = over.override(base, all_overrides)
            key = hash_json(_without_new_keys(config), list(sweep.modes), sweep.from_run)
            folder = _folder(workdir, overrides, seed, key)
            trials.setdefault(key, Trial(overrides, seed, all_overrides, config, folder))
    return list(trials.values())


def _without_new_keys(config: ConfigDict) -> dict[str, Any]:
    """Return the config without keys that sweeps of earlier versions lack, where these have their former values."""
    values = config.to_dict()
    for name in ("standardize", "mean", "std"):
        if not values["data"].get(name):
            values["data"].pop(name, None)
    return values


def commands(trial: Trial, sweep: ConfigDict, modes: list[str]) -> list[list[str]]:
    """Return the command lines of a trial, one per mode."""
    flags = over.flags(trial.all_overrides)
    base, folder = Path(expand(sweep.base)).absolute(), trial.folder.absolute()  # machines may differ in the folder
    start = [sys.executable, "-m", "score_sde", f"--config={base}", f"--workdir={folder}"]
    return [[*start, f"--mode={mode}", *flags] for mode in modes]


def link_checkpoints(trial: Trial, run: Path) -> None:
    """Link the checkpoints of another run into a trial's folder.

    Raises:
      UserError: if that run has no checkpoints.
    """
    if not (run / "checkpoints").is_dir():
        raise UserError(f"{run} has no checkpoints to measure", "from_run")
    trial.folder.mkdir(parents=True, exist_ok=True)
    for name in ("checkpoints", "snapshots"):
        link = trial.folder / name
        if (run / name).is_dir() and not link.is_symlink():
            link.symlink_to((run / name).absolute(), target_is_directory=True)
    shutil.copyfile(run / "config.json", trial.folder / "config.json")  # so that another network or SDE raises an error


def read_state(folder: Path) -> dict[str, Any]:
    """Return a trial's state: status, finished modes, seconds, attempts, error.

    The status is "new", "running", "done", "failed", "stopped", or "damaged" if the file can't be read.
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


def describe_damage(folder: Path, metrics: Iterable[str]) -> str:
    """Return a message on files with metrics of a finished trial that are missing or can't be read, or "".

    Args:
      folder: Folder of the trial.
      metrics: Names of the metrics, as for `metric`.
    """
    logs = [name.startswith("train.") for name in metrics]
    damaged = []
    if any(logs) and len(records(folder)) < max(1, len(_logged(folder)) - 1):  # the last line may be cut
        damaged.append("metrics.jsonl")
    if not all(logs) and not isinstance(_json(folder / "evaluation.json"), dict):
        damaged.append("evaluation.json")
    return f"{' and '.join(damaged)} can't be read" if damaged else ""


def write_state(folder: Path, state: dict[str, Any]) -> None:
    """Write a trial's state."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / STATE, json.dumps(state, indent=2) + "\n")


def metric(folder: Path, name: str) -> float | None:
    """Return a metric of a trial, None if it is missing.

    Args:
      folder: Folder of the trial.
      name: "train." and a key of the last record in metrics.jsonl, or a path into evaluation.json.
    """
    group, _, key = name.partition(".")
    if group == "train":
        return _number(last_record(folder).get(key))
    results = _json(folder / "evaluation.json")
    return _number(dict(flatten(results)).get(name)) if isinstance(results, dict) else None


def last_record(folder: Path) -> dict[str, Any]:
    """Return the last complete record of a run's metrics.jsonl, {} if there is none."""
    return next(_parsed(reversed(_logged(folder))), {})


def records(folder: Path) -> list[dict[str, Any]]:
    """Return every complete record of a run's metrics.jsonl."""
    return list(_parsed(_logged(folder)))


def git_commit() -> str:
    """Return this repository's commit, followed by + if files have changed since; "" outside of a repository."""

    def git(*arguments):
        result = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
        return result.stdout.strip()

    return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")


def label(overrides: Overrides) -> str:
    """Return a short description of the overrides for people."""
    return ", ".join(f"{key.split('.')[-1]} {value}" for key, value in overrides.items()) or "base"


def _folder(workdir: Path, overrides: Overrides, seed: int, key: str) -> Path:
    """Return the existing folder with this hash, or a new path."""
    existing = sorted((workdir / "trials").glob(f"*_{key}"))
    if existing:
        return existing[0]
    name = re.sub(r"[^\w.-]+", "-", "_".join(str(value) for value in overrides.values()))
    name = name.encode(errors="ignore")[:60].decode(errors="ignore")  # file systems limit bytes, not letters
    return workdir / "trials" / f"{name or 'base'}_seed{seed}_{key}"


def _json(path: Path) -> Any:
    """Return the content of a JSON file, None if it is missing or can't be read."""
    with suppress(OSError, ValueError, RecursionError):
        return json.loads(path.read_text())
    return None


def _logged(folder: Path) -> list[str]:
    path = folder / "metrics.jsonl"
    return path.read_text(errors="replace").splitlines() if path.is_file() else []


def _parsed(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        with suppress(ValueError, RecursionError):  # the line is incomplete or damaged
            record = json.loads(line)
            if isinstance(record, dict) and {"step", "loss"} <= record.keys():
                yield record


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
