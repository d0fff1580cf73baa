"""Checkpoints by Orbax: asynchronous, and atomic, as a step's folder gets its name only when it is complete."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from score_sde.errors import UserError
from score_sde.training.state import TrainState


def open_checkpoints(folder: Path, keep: int | None) -> ocp.CheckpointManager:
    """The checkpoints in a folder, one folder a step, of which the last `keep` are kept."""
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
    return ocp.CheckpointManager(folder.absolute(), options=options)


def save(manager: ocp.CheckpointManager, state: TrainState) -> None:
    """Starts to save a state, unless its step is saved; the arrays are copied before this returns."""
    step = int(state.step)
    if step != manager.latest_step():
        manager.save(step, args=ocp.args.StandardSave(state._asdict()))


def restore(manager: ocp.CheckpointManager, like: TrainState) -> TrainState:
    """The newest complete checkpoint, in the shapes, dtypes and placement of `like` (arrays or their shapes)."""
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like._asdict())
    return TrainState(**manager.restore(manager.latest_step(), args=ocp.args.StandardRestore(abstract)))


def restore_newest(workdir: Path) -> dict[str, Any]:
    """The newest checkpoint of a run's folder as a dictionary of arrays on the host, for use without training.

    Raises:
      UserError: the folder has no checkpoint.
    """
    folder = workdir / "checkpoints"
    step = open_checkpoints(folder, keep=None).latest_step() if folder.is_dir() else None
    if step is None:
        raise UserError(f"{workdir} has no checkpoint: train first, or choose another --workdir")
    return ocp.StandardCheckpointer().restore(folder.absolute() / str(step) / "default")
