"""Stored averages of a run, from which one of any length is put together after the training (Karras et al. 2024)."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from score_sde.errors import UserError
from score_sde.runtime import distributed, weight_files
from score_sde.runtime.disk import UNREADABLE, read_object, report, write_atomically
from score_sde.training.ema import reconstruction

NAME = re.compile(r"(\d{8,})_(.+)\.safetensors")


def save(workdir: Path, step: int, averages: dict[str, Any], lengths: tuple[float, ...]) -> None:
    """Writes the averages of a step, "length_0" and so on, one file each, and then their names into the index."""
    if not distributed.is_main_process():
        return
    folder = workdir / "snapshots"
    folder.mkdir(exist_ok=True)
    for i, path in enumerate(_paths(workdir, step, lengths)):
        weight_files.write_tree(path, averages[f"length_{i}"], "snapshot", {"step": step, "length": lengths[i]})
    write_atomically(_index(workdir), json.dumps({"files": _stored(workdir)}, indent=1) + "\n")


def are_whole(workdir: Path, step: int, lengths: tuple[float, ...]) -> bool:
    """Returns whether all EMA snapshots of a step are stored and undamaged."""
    try:
        for path in _paths(workdir, step, lengths):
            _read(path)
    except UserError as error:
        report(f"the stored averages of step {step} are made again: {error}")
        return False
    return True


def reconstruct(workdir: Path, step: int, length: float) -> Any:
    """The parameters' average of a length, up to the last snapshot that is not after `step`.

    Raises:
      UserError: the run stored no snapshots, or one is missing or damaged.
    """
    stored = [(*_named(name), workdir / "snapshots" / name) for name in _stored(workdir)]
    stored = [entry for entry in stored if entry[0] <= step]
    if not stored:
        raise UserError(
            f"{workdir} stored no averages to put one of length {length} together from: train with some ema_lengths",
            "ema_lengths=(0.05,0.1)",
        )
    steps, lengths, paths = zip(*stored, strict=True)
    weights = reconstruction(steps, lengths, max(steps), length)
    total: dict[str, np.ndarray] = {}
    for weight, path in zip(weights, paths, strict=True):
        try:
            arrays = _read(path)
        except UserError as error:
            raise UserError(
                f"{error}; an average of any length needs all of them, ema_length=0 takes one of the checkpoint",
                "ema_length=0",
            ) from error
        for name, array in arrays.items():
            total[name] = total.get(name, 0.0) + weight * array.astype(np.float64)
    return traverse_util.unflatten_dict(
        {tuple(name.split("/")): array.astype(np.float32) for name, array in total.items()}
    )


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise UserError(f"{path} is missing")
    return weight_files.read(path).arrays


def _stored(workdir: Path) -> list[str]:
    """The names of all stored averages: those that the index knows, and those that are there."""
    there = {path.name for path in (workdir / "snapshots").glob("*") if NAME.fullmatch(path.name)}
    try:
        known = read_object(_index(workdir))["files"] if _index(workdir).is_file() else []
        return sorted(there.union(name for name in known if NAME.fullmatch(name)))
    except (*UNREADABLE, KeyError, TypeError) as error:
        report(f"{_index(workdir)} can't be read ({error}); the averages that are there are taken as all")
        return sorted(there)


def _index(workdir: Path) -> Path:
    return workdir / "snapshots" / "index.json"


def _paths(workdir: Path, step: int, lengths: tuple[float, ...]) -> list[Path]:
    return [workdir / "snapshots" / f"{step:08d}_{length:g}.safetensors" for length in lengths]


def _named(name: str) -> tuple[int, float]:
    step, length = name.removesuffix(".safetensors").split("_")
    return int(step), float(length)
