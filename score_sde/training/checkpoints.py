"""Checkpoints with Orbax: asynchronous, and atomic, since a step's folder gets its name only once it is complete.

A checkpoint holds a checksum of each array next to the arrays, so a flipped bit is detected. A checkpoint that can't be
read or doesn't match its checksums is reported and moved to DIR/damaged, and the one before it is restored.
"""

import ctypes
import errno
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from score_sde.errors import UserError
from score_sde.runtime import distributed
from score_sde.runtime.disk import quarantine, report
from score_sde.runtime.hashing import hash_file
from score_sde.training.state import TrainState

CHECKSUMS = "checksums"  # name of the checksums in a checkpoint, next to the fields of the state
_STRUCTURES: dict[tuple, Any] = {}


def make_manager(folder: Path, keep: int, every: int = 0, best: int = 0) -> ocp.CheckpointManager:
    """Return the manager of a folder of checkpoints, with one folder per step; remove incomplete checkpoints.

    Args:
      folder: Folder of the checkpoints, which is made if it is missing.
      keep: Number of newest checkpoints to keep.
      every: Interval in steps of further checkpoints to keep; 0 for none.
      best: Number of further checkpoints to keep, those with the smallest loss.
    """
    policies = [checkpoint_managers.LatestN(keep)]
    if every:
        policies.append(checkpoint_managers.EveryNSteps(every))
    if best:
        smallest = checkpoint_managers.BestN(
            get_metric_fn=lambda metrics: metrics["loss"], reverse=True, n=best, keep_checkpoints_without_metrics=False
        )
        policies.append(smallest)
    folder = folder.absolute()
    options = ocp.CheckpointManagerOptions(
        preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
        best_fn=(lambda metrics: metrics["loss"]) if best else None,  # stores the losses, which a resume needs
        best_mode="min",
        cleanup_tmp_directories=True,
    )
    handler = ocp.StandardCheckpointHandler()  # otherwise Orbax guesses the handler from the newest folder
    return ocp.CheckpointManager(folder, options=options, item_handlers=handler)


@contextmanager
def closing(manager: ocp.CheckpointManager, seconds: float = 60.0) -> Iterator[None]:
    """Finish pending saves at the end of the block; if the block fails, wait for them at most `seconds`."""
    try:
        with on_disk(manager):
            yield
            finish(manager)
    except Exception as error:
        closer = threading.Thread(target=_close_quietly, args=(manager,), daemon=True)
        closer.start()
        closer.join(0.0 if distributed.is_connection_error(error) else seconds)
        raise
    manager.close()


def _close_quietly(manager: ocp.CheckpointManager) -> None:
    """Finish a pending save; its errors are dropped, since the error of the block is being raised."""
    with suppress(Exception):
        manager.wait_until_finished()
    with suppress(Exception):
        manager.close()


def save(manager: ocp.CheckpointManager, state: TrainState, loss: float | None = None) -> None:
    """Start to save a state, unless its step is saved; the arrays are copied before this returns.

    Args:
      manager: Manager of the run's folder.
      state: State, of whole arrays or of arrays sharded over all processes.
      loss: Mean loss since the last save, by which the best checkpoints are chosen.

    Raises:
      UserError: if this save or the last one failed, because the disk is full or the folder can't be written.
    """
    step = int(state.step)
    if step == manager.latest_step():
        return
    metrics = None if loss is None else {"loss": loss}
    tree = state._asdict()
    with _saving(manager):
        manager.save(step, args=ocp.args.StandardSave(tree | {CHECKSUMS: checksums(tree)}), metrics=metrics)


def finish(manager: ocp.CheckpointManager) -> None:
    """Wait for the last save.

    Raises:
      UserError: if the disk is full, or the folder can't be written.
    """
    with _saving(manager):
        manager.wait_until_finished()
    _trim()


@contextmanager
def _saving(manager: ocp.CheckpointManager) -> Iterator[None]:
    """Raise the errors of a save within the block as UserError."""
    try:
        with on_disk(manager):
            yield
    except Exception as error:  # the folder may be gone, or the file system may fail
        if isinstance(error, UserError) or distributed.is_connection_error(error):
            raise
        reason = str(error).split("\n")[0]
        raise UserError(
            f"no checkpoint can be saved in {manager.directory}: {reason or type(error).__name__}; once this is fixed, "
            "the same command resumes from the last checkpoint"
        ) from error


@contextmanager
def on_disk(manager: ocp.CheckpointManager) -> Iterator[None]:
    """Raise a full disk within the block as UserError, with the last complete checkpoint."""
    try:
        yield
    except Exception as error:  # Orbax wraps errors of the system in errors of many types
        if isinstance(error, UserError) or not _is_full(error):
            raise
        saved = [step for step in manager.all_steps(read=True) if (manager.directory / str(step)).is_dir()]
        raise UserError(
            f"the disk of {manager.directory} is full: {error}. "
            + (f"The checkpoint of step {max(saved)} is whole; " if saved else "No checkpoint was saved; ")
            + "free some space, or keep fewer checkpoints, and the same command resumes from there",
            "keep_checkpoints",
        ) from error


def _is_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(text in str(error) for text in ("No space left", "ENOSPC", "quota exceeded")):
            return True
        error = error.__cause__ or error.__context__
    return False


def restore(manager: ocp.CheckpointManager, like: TrainState) -> TrainState | None:
    """Return the newest readable checkpoint, or None if there is no checkpoint.

    Args:
      manager: Manager of the run's folder.
      like: State with the structure, shapes and dtypes of the result, whose arrays are on the host.

    Raises:
      UserError: if there are checkpoints, but none can be read.
    """
    state = _newest(
        _steps(manager.directory), Path(manager.directory), lambda step: _restore(manager, step, like._asdict())
    )
    if state is None:
        return None
    manager.reload()  # since damaged checkpoints were moved
    return TrainState(**state)


def restore_newest(workdir: Path) -> dict[str, Any]:
    """Return the newest readable checkpoint of a run, which may be training, as a dictionary of arrays on the host.

    Raises:
      UserError: if the folder has no checkpoint, or none that can be read.
    """
    with _reader(workdir) as read:
        state = _newest(_steps(workdir / "checkpoints"), workdir / "checkpoints", read, quarantine=False)
    if state is None:
        raise UserError(f"{workdir} has no checkpoint: train first, or choose another folder", "workdir")
    return state


def restore_step(workdir: Path, step: int) -> dict[str, Any]:
    """Return the checkpoint of a step, in the form of `restore_newest`.

    Raises:
      UserError: if it can't be read.
    """
    with _reader(workdir) as read:
        state = _newest([step], workdir / "checkpoints", read, quarantine=False)
    return state


@contextmanager
def _reader(workdir: Path) -> Iterator[Callable[[int], dict[str, Any]]]:
    """Provide a function from a step to its checkpoint within the block."""
    folder = (workdir / "checkpoints").absolute()
    if not folder.is_dir():
        yield lambda step: {}
        return
    options = ocp.CheckpointManagerOptions(read_only=True)  # a training process may be saving here
    handler = ocp.StandardCheckpointHandler()  # without it the manager can't read the structure
    with ocp.CheckpointManager(folder, options=options, item_handlers=handler) as manager:
        yield lambda step: _restore(manager, step, _structure(manager, step))
    _trim()


def _structure(manager: ocp.CheckpointManager, step: int) -> Any:
    """Return the shapes and dtypes of a checkpoint; cache them, as TensorStore keeps some memory per lookup."""
    folder = Path(manager.directory) / str(step) / "default"
    metadata = [folder / "_METADATA", *sorted((folder / "array_metadatas").glob("*"))]
    key = (str(manager.directory), *map(hash_file, metadata))
    if key not in _STRUCTURES:
        _STRUCTURES[key] = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), manager.item_metadata(step).tree
        )
    return _STRUCTURES[key]


def saved_steps(workdir: Path) -> list[int]:
    """Return the steps of a run's checkpoints, in ascending order."""
    return _steps(workdir / "checkpoints")[::-1]


def has_checkpoint(workdir: Path) -> bool:
    """Return whether a run's folder has a complete checkpoint."""
    return bool(saved_steps(workdir))


def _steps(folder: Any) -> list[int]:
    return sorted((int(path.name) for path in Path(folder).glob("*") if path.name.isdigit()), reverse=True)


def _newest(steps: list[int], folder: Path, read: Callable[[int], Any], quarantine: bool = True) -> Any:
    """Return the newest undamaged checkpoint of the steps; report the damaged ones, and quarantine them on request."""
    for n, step in enumerate(steps):
        try:
            state = read(step)
        except Exception as error:  # the type of the error depends on the damage
            reason = str(error).split("\n")[0]
            report(f"the checkpoint of step {step} in {folder} can't be read: {reason}")
            continue
        for damaged in steps[:n] if quarantine else ():
            _quarantine(folder / str(damaged))
        return state
    if steps:
        raise UserError(
            f"none of the checkpoints in {folder} can be read ({', '.join(map(str, steps))}); choose another folder",
            "workdir",
        )
    return None


def _quarantine(path: Path) -> None:
    """Move a damaged checkpoint to DIR/damaged, out of the way of a new one of the same step."""
    if distributed.is_main_process():
        new_path = quarantine(path, path.parents[1])
        report(f"the damaged checkpoint is kept in {new_path}")
    distributed.barrier(f"quarantine {path.name}")


def _restore(manager: ocp.CheckpointManager, step: int, like: Any) -> Any:
    """Restore a checkpoint and verify it.

    Raises:
      ValueError: if an array doesn't match its checksum, or the checkpoint is of another step.
    """
    if CHECKSUMS in (structure := _structure(manager, step)):
        like = like | {CHECKSUMS: structure[CHECKSUMS]}
    # With NumPy arrays as targets a checkpoint doesn't need the devices that it was saved from.
    targets = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), like)
    state = manager.restore(step, args=ocp.args.StandardRestore(targets))
    expected = state.pop(CHECKSUMS, None)
    if int(state["step"]) != step:
        raise ValueError(f"it holds step {int(state['step'])}")
    if expected is None:
        report(f"the checkpoint of step {step} is of an earlier version, without checksums, and isn't verified")
    elif not all(map(np.array_equal, jax.tree.leaves(expected), jax.tree.leaves(checksums(state)))):
        raise ValueError("its arrays are not what was saved")
    return state


def checksums(tree: Any) -> list[jax.Array]:
    """Compute a checksum of each array, (2,) uint32, on its devices; it doesn't depend on how the array is sharded.

    A change of one element always changes both words, and any other change each word with probability 1 - 2^-32.
    """
    with jax.enable_x64(True):  # otherwise float64 arrays, which a host may restore, would be rounded
        return [_checksum(leaf) for leaf in jax.tree.leaves(tree)]


@jax.jit
def _checksum(leaf: jax.Array) -> jax.Array:
    leaf = leaf.astype(jnp.uint8) if leaf.dtype == bool else leaf
    bits = jax.lax.bitcast_convert_type(leaf, f"uint{8 * min(leaf.dtype.itemsize, 4)}").astype(jnp.uint32)
    positions = jax.lax.iota(jnp.uint32, bits.size).reshape(bits.shape) * jnp.uint32(0x9E3779B9)

    def word(seed):
        mixed = (bits ^ jnp.uint32(seed)) + positions
        for factor in (0x85EBCA6B, 0xC2B2AE35):  # the finalizer of MurmurHash3, a bijection
            mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(factor)
        return jnp.sum(mixed ^ (mixed >> 16), dtype=jnp.uint32)

    return jnp.stack([word(0), word(0x27D4EB2F)])


def _trim() -> None:
    """Return freed memory to the system, where the C library is glibc; each thread of a save or restore keeps some."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
