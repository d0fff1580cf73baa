"""EMA snapshots in DIR/snapshots, from which post-hoc EMA reconstructs any length (Karras et al. 2024)."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from score_sde.errors import UserError
from score_sde.runtime import distributed, weight_files
from score_sde.runtime.disk import UNREADABLE, read_json_object, report, write_atomically
from score_sde.training.ema import post_hoc_weights

NAME = re.compile(r"(\d{8,})_(.+)\.safetensors")


def save(workdir: Path, step: int, averages: dict[str, Any], lengths: tuple[float, ...]) -> None:
    """Write the power-function EMAs of a step to DIR/snapshots, then the index of the files of all steps.

    Args:
      workdir: Folder of the run.
      step: Step of the EMAs.
      averages: EMAs by name; those named "length_0", "length_1" and so on are written, one file each.
      lengths: Relative length of each.
    """
    if not distributed.is_main_process():
        return
    folder = workdir / "snapshots"
    folder.mkdir(exist_ok=True)
    for i, path in enumerate(_paths(workdir, step, lengths)):
        weight_files.write_tree(path, averages[f"length_{i}"], "snapshot", {"step": step, "length": lengths[i]})
    write_atomically(_index(workdir), json.dumps({"files": _file_names(workdir)}, indent=1) + "\n")


def are_whole(workdir: Path, step: int, lengths: tuple[float, ...]) -> bool:
    """Return whether all EMA snapshots of a step exist and are undamaged."""
    try:
        for path in _paths(workdir, step, lengths):
            _read(path)
    except UserError as error:
        report(f"the EMA snapshots of step {step} are written again: {error}")
        return False
    return True


def reconstruct_ema(workdir: Path, step: int, length: float) -> Any:
    """Return the EMA of a relative length at the last snapshot up to `step`.

    Raises:
      UserError: if the run has no snapshots, or one is missing or damaged.
    """
    snapshots = [(*_parse(name), workdir / "snapshots" / name) for name in _file_names(workdir)]
    snapshots = [snapshot for snapshot in snapshots if snapshot[0] <= step]
    if not snapshots:
        raise UserError(
            f"{workdir} has no EMA snapshots, which an EMA of length {length} is reconstructed from; train with some "
            "ema_lengths",
            "ema_lengths=(0.05,0.1)",
        )
    steps, lengths, paths = zip(*snapshots, strict=True)
    weights = post_hoc_weights(steps, lengths, max(steps), length)
    total: dict[str, np.ndarray] = {}
    for weight, path in zip(weights, paths, strict=True):
        try:
            arrays = _read(path)
        except UserError as error:
            raise UserError(
                f"{error}; an EMA of any length needs all snapshots, ema_length=0 takes an EMA of the checkpoint",
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


def _file_names(workdir: Path) -> list[str]:
    """Return the names of all snapshots that are in the index or in the folder."""
    present = {path.name for path in (workdir / "snapshots").glob("*") if NAME.fullmatch(path.name)}
    try:
        indexed = read_json_object(_index(workdir))["files"] if _index(workdir).is_file() else []
        return sorted(present.union(name for name in indexed if NAME.fullmatch(name)))
    except (*UNREADABLE, KeyError, TypeError) as error:
        report(f"{_index(workdir)} can't be read ({error}); the snapshots in the folder are taken to be all")
        return sorted(present)


def _index(workdir: Path) -> Path:
    return workdir / "snapshots" / "index.json"


def _paths(workdir: Path, step: int, lengths: tuple[float, ...]) -> list[Path]:
    return [workdir / "snapshots" / f"{step:08d}_{length:g}.safetensors" for length in lengths]


def _parse(name: str) -> tuple[int, float]:
    """Return the step and the length in a file's name."""
    step, length = name.removesuffix(".safetensors").split("_")
    return int(step), float(length)
