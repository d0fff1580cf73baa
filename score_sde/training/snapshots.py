"""EMA snapshots in DIR/snapshots, from which post-hoc EMA reconstructs any length (Karras et al. 2024).

A file holds its step, its length, the names of all snapshots up to its step, and a checksum. The index holds all names,
so the newest snapshot is missed, too.
"""

import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from score_sde.errors import UserError
from score_sde.runtime import distributed, weight_files
from score_sde.runtime.disk import UNREADABLE, read_json_object, report, write_atomically
from score_sde.training.ema import post_hoc_weights

NAME = re.compile(r"(\d{8,})_(.+)\.safetensors")


def save(workdir: Path, step: int, averages: dict[str, Any], lengths: tuple[float, ...]) -> None:
    """Write the power-function EMAs of a step to DIR/snapshots.

    Args:
      workdir: Folder of the run.
      step: Step of the EMAs.
      averages: EMAs by name; those named "length_0", "length_1" and so on are written, one file each.
      lengths: Relative length of each.
    """
    if not distributed.is_main_process():
        return
    paths = _paths(workdir, step, lengths)
    paths[0].parent.mkdir(exist_ok=True)
    names = {path.name for path in (*_up_to(workdir, step), *paths)}  # a resume drops those of later steps
    for i, path in enumerate(paths):
        config = {"step": step, "length": lengths[i], "snapshots": sorted(names)}
        weight_files.write_tree(path, averages[f"length_{i}"], "snapshot", config)
    write_atomically(paths[0].with_name("index.json"), json.dumps({"files": sorted(names)}) + "\n")


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
      UserError: if the run has no snapshots, or one is missing, damaged, or not what its name says.
    """
    paths = _up_to(workdir, step)
    if not paths:
        raise UserError(
            f"{workdir} has no EMA snapshots, which an EMA of length {length} is reconstructed from; train with some "
            "ema_lengths",
            "ema_lengths=(0.05,0.1)",
        )
    total: dict[str, np.ndarray] = {}
    try:
        listed = [*_read(paths[-1]).config.get("snapshots", []), *_indexed(paths[-1].parent, step)]
        paths = sorted({*paths, *map(paths[-1].with_name, filter(NAME.fullmatch, listed))}, key=_parse)
        steps, lengths = zip(*map(_parse, paths), strict=True)
        for weight, path in zip(post_hoc_weights(steps, lengths, max(steps), length), paths, strict=True):
            arrays = _read(path).arrays
            if total and {name: array.shape for name, array in arrays.items()} != jax.tree.map(np.shape, total):
                raise UserError(f"{path} has arrays of other names or shapes than {paths[0]}")
            for name, array in arrays.items():
                total[name] = total.get(name, 0.0) + weight * array.astype(np.float64)
    except UserError as error:
        raise UserError(
            f"{error}; an EMA of any length needs all snapshots, ema_length=0 takes an EMA of the checkpoint",
            "ema_length=0",
        ) from error
    return traverse_util.unflatten_dict(
        {tuple(name.split("/")): array.astype(np.float32) for name, array in total.items()}
    )


def _read(path: Path) -> Any:
    """Read a snapshot.

    Raises:
      UserError: if it is missing, damaged, or not what its name says.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing")
    found = weight_files.read(path)
    step, length = _parse(path)
    given = {"step": None, "length": None} | (found.config or {})
    if given["step"] != step or f"{given['length'] or 0:g}" != f"{length:g}":
        raise UserError(f"{path} holds an EMA of step {given['step']} and length {given['length']}")
    return found._replace(config=given)


def _indexed(folder: Path, step: int) -> list[str]:
    """Return the names in the index up to a step."""
    try:
        names = read_json_object(folder / "index.json")["files"] if (folder / "index.json").exists() else []
        return [name for name in names if NAME.fullmatch(name) and _parse(folder / name)[0] <= step]
    except (*UNREADABLE, KeyError, TypeError) as error:
        report(f"{folder / 'index.json'} can't be read ({error}); the snapshots in the folder are taken to be all")
        return []


def _up_to(workdir: Path, step: int) -> list[Path]:
    """Return the snapshots in the folder up to a step, in ascending order."""
    found = (path for path in (workdir / "snapshots").glob("*") if NAME.fullmatch(path.name))
    return sorted((path for path in found if _parse(path)[0] <= step), key=_parse)


def _paths(workdir: Path, step: int, lengths: tuple[float, ...]) -> list[Path]:
    return [workdir / "snapshots" / f"{step:08d}_{length:g}.safetensors" for length in lengths]


def _parse(path: Path) -> tuple[int, float]:
    """Return the step and the length in a file's name."""
    step, length = path.stem.split("_")
    return int(step), float(length)
