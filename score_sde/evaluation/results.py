"""Results of a run in DIR/evaluation.json, which several modes write to."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from score_sde.errors import UserError
from score_sde.runtime import distributed
from score_sde.runtime.disk import UNREADABLE, locked, quarantine, read_json_object, report, write_atomically

# Sections of single modes. Each inverse problem has a section "restore_<task>", too; `evaluate` writes the rest.
SECTIONS = ("likelihood", "certify", "accuracy", "health")


def mean_of(values: Any) -> dict[str, float]:
    """Return the mean of (n,) values and its standard error, computed in float64."""
    values = np.asarray(values, np.float64)
    return {"mean": float(values.mean()), "standard_error": float(values.std(ddof=1) / math.sqrt(len(values)))}


def load_results(path: Path) -> dict[str, Any]:
    """Return the results in a run's folder, or in an evaluation.json.

    Raises:
      UserError: if there are none, or they can't be read.
    """
    path = _path(path) if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"there is no evaluation at {path}: evaluate that run first, or choose another folder")
    try:
        return read_json_object(path)
    except UNREADABLE as error:
        raise UserError(f"{path} can't be read ({error}): evaluate that run again") from error


def check_results_file(workdir: Path) -> None:
    """Set a damaged evaluation.json aside; call it before anything is measured."""
    if distributed.is_main_process() and _path(workdir).is_file():
        with _sole_writer(workdir):
            _stored(workdir)


def save_results(workdir: Path, results: dict[str, Any]) -> None:
    """Write results to evaluation.json; a section replaces itself, other results replace those of `evaluate`."""
    if not distributed.is_main_process():
        return
    with _sole_writer(workdir):
        before = _stored(workdir)
        if any(_is_section(name) for name in results):
            after = before | results
        else:
            after = results | {name: value for name, value in before.items() if _is_section(name)}
        write_atomically(_path(workdir), json.dumps(after, indent=2) + "\n")


def _is_section(name: str) -> bool:
    return name in SECTIONS or name.startswith("restore_")


def _path(workdir: Path) -> Path:
    return workdir / "evaluation.json"


def _stored(workdir: Path) -> dict[str, Any]:
    path = _path(workdir)
    if not path.is_file():
        return {}
    try:
        return read_json_object(path)
    except UNREADABLE as error:
        report(f"{path} can't be read ({error}); it is kept in {quarantine(path, workdir)}")
        return {}


@contextmanager
def _sole_writer(workdir: Path) -> Iterator[None]:
    """Keep other processes from writing during the block; wait at most a minute for the lock."""
    with locked(workdir / "evaluation.lock", seconds=60.0) as holder:
        if holder:
            report(f"{_path(workdir)} has been in use for a minute, by {holder}; its results may be lost")
        yield


def check_comparable(ours: dict[str, Any], theirs: dict[str, Any], path: str) -> None:
    """Raise UserError unless two results come from the same data, features and numbers of samples.

    Args:
      ours: Hashes and numbers of samples of these results.
      theirs: Other results.
      path: Path of the other results, for the message.
    """
    different = [name for name in ours if ours[name] != theirs.get(name)]
    if different:
        differences = "; ".join(f"{name}: {ours[name]} here, {theirs.get(name)} there" for name in different)
        raise UserError(f"the results of {path} are not comparable with these ({differences})")
