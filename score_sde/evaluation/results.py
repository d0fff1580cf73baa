"""DIR/evaluation.json, which several modes write to."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from score_sde.errors import UserError
from score_sde.experiment.tasks import TASKS
from score_sde.runtime import distributed
from score_sde.runtime.disk import UNREADABLE, locked, read_object, report, set_aside, write_atomically

SECTIONS = (
    "likelihood",
    "certify",
    "accuracy",
    "health",
    *(f"restore_{task}" for task in TASKS),
)  # modes with a place of their own; `evaluate` has the rest


def mean_of(values: Any) -> dict[str, float]:
    """The mean of a number an example, (n,), and its standard error, in float64."""
    values = np.asarray(values, np.float64)
    return {"mean": float(values.mean()), "standard_error": float(values.std(ddof=1) / math.sqrt(len(values)))}


def read_figures(place: Path) -> dict[str, Any]:
    """The figures of a run's folder, or of an evaluation.json.

    Raises:
      UserError: there are none, or they can't be read.
    """
    path = _place(place) if place.is_dir() else place
    if not path.is_file():
        raise UserError(f"there is no evaluation at {path}: run --mode=evaluate there, or choose another folder")
    try:
        return read_object(path)
    except UNREADABLE as error:
        raise UserError(f"{path} can't be read ({error}): run --mode=evaluate there again") from error


def check_figures(workdir: Path) -> None:
    """Sets a damaged evaluation.json aside; call it before anything is measured."""
    if distributed.is_main_process() and _place(workdir).is_file():
        with _sole_writer(workdir):
            _stored(workdir)


def write_figures(workdir: Path, figures: dict[str, Any]) -> None:
    """Writes figures to evaluation.json: what `evaluate` writes replaces its last figures, a section its own."""
    if not distributed.is_main_process():
        return
    with _sole_writer(workdir):
        before = _stored(workdir)
        if any(name in SECTIONS for name in figures):
            after = before | figures
        else:
            after = figures | {name: before[name] for name in SECTIONS if name in before}
        write_atomically(_place(workdir), json.dumps(after, indent=2) + "\n")


def _place(workdir: Path) -> Path:
    return workdir / "evaluation.json"


def _stored(workdir: Path) -> dict[str, Any]:
    path = _place(workdir)
    if not path.is_file():
        return {}
    try:
        return read_object(path)
    except UNREADABLE as error:
        report(f"{path} can't be read ({error}); it is kept in {set_aside(path, workdir)}")
        return {}


@contextmanager
def _sole_writer(workdir: Path) -> Iterator[None]:
    """Keeps other modes from writing meanwhile; one that hangs is waited for at most a minute."""
    with locked(workdir / "evaluation.lock", seconds=60.0) as holder:
        if holder:
            report(f"{_place(workdir)} has been in use for a minute, by {holder}; its figures may be lost")
        yield


def check_comparable(ours: dict[str, Any], theirs: dict[str, Any], path: str) -> None:
    """Raises UserError unless two results come from the same data, features and numbers of samples.

    Args:
      ours: The hashes and numbers of these results.
      theirs: Those of the other results.
      path: The path of the other results, for the message.
    """
    different = [name for name in ours if ours[name] != theirs.get(name)]
    if different:
        differences = "; ".join(f"{name}: {ours[name]} here, {theirs.get(name)} there" for name in different)
        raise UserError(f"figures of {path} are not comparable with these ({differences})")
