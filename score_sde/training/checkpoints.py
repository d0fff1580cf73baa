"""Checkpoints by Orbax: asynchronous, and atomic, as a step's folder gets its name only when it is complete."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from score_sde.errors import UserError
from score_sde.training.state import TrainState


def open_checkpoints(folder: Path, keep: int) -> ocp.CheckpointManager:
    """The checkpoints in a folder, one folder a step; the last `keep` are kept, half-written ones are removed."""
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
    return ocp.CheckpointManager(folder.absolute(), options=options)


def save(manager: ocp.CheckpointManager, state: TrainState) -> None:
    """Starts to save a state, unless its step is saved; the arrays are copied before this returns."""
    step = int(state.step)
    if step != manager.latest_step():
        manager.save(step, args=ocp.args.StandardSave(state._asdict()))


def restore(manager: ocp.CheckpointManager, like: TrainState) -> TrainState:
    """The newest complete checkpoint, in the structure, shapes and dtypes of `like`, as arrays on the host."""
    return TrainState(**_restore(manager, like._asdict()))


def restore_newest(workdir: Path) -> dict[str, Any]:
    """The newest complete checkpoint of a run's folder, which may be training, as a dictionary of arrays on the host.

    Raises:
      UserError: the folder has no checkpoint.
    """
    folder = (workdir / "checkpoints").absolute()
    if folder.is_dir():
        options = ocp.CheckpointManagerOptions(read_only=True)  # a save that is going on is not ours to clean up
        handler = ocp.StandardCheckpointHandler()  # without it the manager knows no structure
        with ocp.CheckpointManager(folder, options=options, item_handlers=handler) as manager:
            if manager.latest_step() is not None:
                return _restore(manager, manager.item_metadata(manager.latest_step()).tree)
    raise UserError(f"{workdir} has no checkpoint: train first, or choose another --workdir")


def has_checkpoint(workdir: Path) -> bool:
    """Whether a run's folder has a complete checkpoint."""
    return any(path.name.isdigit() for path in (workdir / "checkpoints").glob("*"))


def _restore(manager: ocp.CheckpointManager, like: Any) -> Any:
    # NumPy arrays as the target: a checkpoint then doesn't ask for the devices it was saved from.
    targets = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), like)
    return manager.restore(manager.latest_step(), args=ocp.args.StandardRestore(targets))
