"""Stored averages of a run, from which one of any length is put together after the training (Karras et al. 2024)."""

from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from score_sde import hosts
from score_sde.averages import reconstruction
from score_sde.errors import UserError
from score_sde.models.pretrained import files


def save(workdir: Path, step: int, averages: dict[str, Any], lengths: tuple[float, ...]) -> None:
    """Writes the averages of a step, "length_0" and so on, one file each, in one stroke each."""
    if not hosts.first():
        return
    folder = workdir / "snapshots"
    folder.mkdir(exist_ok=True)
    for i, length in enumerate(lengths):
        path = folder / f"{step:08d}_{length:g}.safetensors"
        files.write_tree(path, averages[f"length_{i}"], "snapshot", {"step": step, "length": length})


def reconstruct(workdir: Path, step: int, length: float) -> Any:
    """The parameters' average of a length, up to the last snapshot that is not after `step`.

    Raises:
      UserError: the run stored no snapshots.
    """
    found = sorted((workdir / "snapshots").glob("*.safetensors"))
    stored = [(*_named(path), path) for path in found]
    stored = [entry for entry in stored if entry[0] <= step]
    if not stored:
        raise UserError(
            f"{workdir} stored no averages to put one of length {length} together from: train with "
            "--config.training.ema_lengths=(0.05,0.1)"
        )
    steps, lengths, paths = zip(*stored, strict=True)
    weights = reconstruction(steps, lengths, max(steps), length)
    total: dict[str, np.ndarray] = {}
    for weight, path in zip(weights, paths, strict=True):
        for name, array in files.read(path).arrays.items():
            total[name] = total.get(name, 0.0) + weight * array.astype(np.float64)
    return traverse_util.unflatten_dict(
        {tuple(name.split("/")): array.astype(np.float32) for name, array in total.items()}
    )


def _named(path: Path) -> tuple[int, float]:
    step, length = path.stem.split("_")
    return int(step), float(length)
