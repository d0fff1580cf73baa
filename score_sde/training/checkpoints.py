"""Checkpoints with Orbax: asynchronous, and atomic, since a step's folder gets its name only once it is complete.

Each complete checkpoint gets a manifest with the sizes and SHA-256 digests of its files, DIR/manifests/<step>.json, so
that a flipped byte is detected. A checkpoint that can't be read is reported and moved to DIR/damaged, and the one
before it is restored.
"""

import ctypes
import errno
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from score_sde.errors import UserError
from score_sde.runtime import distributed
from score_sde.runtime.disk import UNREADABLE, quarantine, read_json_object, report, write_atomically
from score_sde.training.state import TrainState

_MANIFEST_LOCK = threading.Lock()
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
        write_manifests(Path(manager.directory))
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
    if distributed.is_main_process():
        # An earlier checkpoint of this step, which is gone, may have left its manifest.
        manifest_path(Path(manager.directory) / str(step)).unlink(missing_ok=True)
    with _saving(manager):
        manager.save(step, args=ocp.args.StandardSave(state._asdict()), metrics=metrics)
    threading.Thread(target=_write_manifest_when_complete, args=(Path(manager.directory), step), daemon=True).start()


def finish(manager: ocp.CheckpointManager) -> None:
    """Wait for the last save.

    Raises:
      UserError: if the disk is full, or the folder can't be written.
    """
    with _saving(manager):
        manager.wait_until_finished()
    write_manifests(Path(manager.directory))


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
    key = (str(manager.directory), *(tuple(_digest(path)) for path in metadata))
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
            verify(folder / str(step))
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
        manifest_path(path).unlink(missing_ok=True)
        report(f"the damaged checkpoint is kept in {new_path}")
    distributed.barrier(f"quarantine {path.name}")


def _restore(manager: ocp.CheckpointManager, step: int, like: Any) -> Any:
    # With NumPy arrays as targets a checkpoint doesn't need the devices that it was saved from.
    targets = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), like)
    return manager.restore(step, args=ocp.args.StandardRestore(targets))


def write_manifests(folder: Path) -> None:
    """Write the missing manifests of complete checkpoints, and remove manifests without a checkpoint."""
    if not distributed.is_main_process():
        return
    with _MANIFEST_LOCK:
        for path in (folder / str(step) for step in _steps(folder)):
            manifest = manifest_path(path)
            # A checkpoint may be removed meanwhile, and a full disk leaves it without a manifest.
            with suppress(OSError):
                if not manifest.exists():
                    files = {name: _digest(path / name) for name in _files(path)}
                    manifest.parent.mkdir(exist_ok=True)
                    write_atomically(manifest, json.dumps(files, indent=1))
        for manifest in manifest_path(folder / "0").parent.glob("*.json"):
            if not (folder / manifest.stem).is_dir():
                manifest.unlink(missing_ok=True)
    _trim()


def _trim() -> None:
    """Return freed memory to the system, where the C library is glibc; each thread of a save or restore keeps some."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def manifest_path(path: Path) -> Path:
    """Return the path of a checkpoint's manifest, outside its folder, which Orbax may be about to remove."""
    return path.parents[1] / "manifests" / f"{path.name}.json"


def _write_manifest_when_complete(folder: Path, step: int, seconds: float = 600.0) -> None:
    """Write the manifest of a checkpoint as soon as it is saved, since the process may be killed at any moment."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (folder / str(step)).is_dir():
            return write_manifests(folder)
        time.sleep(0.02)


def verify(path: Path) -> None:
    """Compare a checkpoint with its manifest, if there is one; a killed run may not have written it.

    Raises:
      ValueError: if a file is missing or differs.
    """
    manifest = manifest_path(path)
    if not manifest.is_file():
        return
    try:
        expected = read_json_object(manifest)
    except UNREADABLE as error:
        return report(f"{manifest} can't be read ({error}), so the checkpoint is not verified")
    for name, digest in expected.items():
        if not (path / name).is_file():
            raise ValueError(f"{name} is missing")
        if _digest(path / name) != digest:
            raise ValueError(f"{name} is not what was saved")


def _files(path: Path) -> list[str]:
    return [str(file.relative_to(path)) for file in sorted(path.rglob("*")) if file.is_file()]


def _digest(path: Path) -> list[Any]:
    with path.open("rb") as file:
        return [path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()]
