"""DIR/evaluation.json, which several modes write to."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from score_sde import hosts
from score_sde.errors import UserError
from score_sde.tasks import TASKS
from score_sde.training.workdir import write_atomically

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
      UserError: there are none.
    """
    path = place / "evaluation.json" if place.is_dir() else place
    if not path.is_file():
        raise UserError(f"there is no evaluation at {path}: run --mode=evaluate there, or choose another folder")
    return json.loads(path.read_text())


def write_figures(workdir: Path, figures: dict[str, Any]) -> None:
    """Writes figures to evaluation.json: what `evaluate` writes replaces its last figures, a section its own."""
    if not hosts.first():
        return
    path = workdir / "evaluation.json"
    before = json.loads(path.read_text()) if path.is_file() else {}
    if any(name in SECTIONS for name in figures):
        after = before | figures
    else:
        after = figures | {name: before[name] for name in SECTIONS if name in before}
    write_atomically(path, json.dumps(after, indent=2) + "\n")
