"""Checkpoints by Orbax: asynchronous, and atomic, as a step's folder gets its name only when it is complete.

Each complete checkpoint gets a manifest of its files' sizes and SHA-256, DIR/manifests/<step>.json, so that a flipped
byte is found. A checkpoint that can't be read is reported and moved to DIR/damaged, and the one before it is taken.
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
from score_sde.runtime.disk import UNREADABLE, read_object, report, set_aside, write_atomically
from score_sde.training.state import TrainState

_SEALING = threading.Lock()
_STRUCTURES: dict[tuple, Any] = {}


def open_checkpoints(folder: Path, keep: int, every: int = 0, best: int = 0) -> ocp.CheckpointManager:
    """The checkpoints in a folder, one folder a step; half-written ones are removed.

    Args:
      folder: made if it is missing.
      keep: how many of the last stay.
      every: those of steps that are multiples of it stay, too; 0: none.
      best: so many with the smallest loss stay, too.
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
        best_fn=(lambda metrics: metrics["loss"]) if best else None,  # so that the losses are on disk, for a resume
        best_mode="min",
        cleanup_tmp_directories=True,
    )
    handler = ocp.StandardCheckpointHandler()  # else the newest folder, whatever it holds, decides how all are read
    return ocp.CheckpointManager(folder, options=options, item_handlers=handler)


@contextmanager
def closing(manager: ocp.CheckpointManager, seconds: float = 60.0) -> Iterator[None]:
    """Finishes pending saves at the end of the block; if the block fails, within `seconds`."""
    try:
        with on_disk(manager):
            yield
            finish(manager)
    except Exception as error:
        ending = threading.Thread(target=_end_quietly, args=(manager,), daemon=True)
        ending.start()
        ending.join(0.0 if distributed.another_ended(error) else seconds)
        raise
    manager.close()


def _end_quietly(manager: ocp.CheckpointManager) -> None:
    """Finishes a save that is going on; of one that fails the error on its way up is the news."""
    with suppress(Exception):
        manager.wait_until_finished()
        seal(Path(manager.directory))
    with suppress(Exception):
        manager.close()


def save(manager: ocp.CheckpointManager, state: TrainState, loss: float | None = None) -> None:
    """Starts to save a state, unless its step is saved; the arrays are copied before this returns.

    Args:
      manager: of the run's folder.
      state: of arrays in one piece, or in shards over all processes.
      loss: the mean since the last save, for the choice of the best.

    Raises:
      UserError: the disk is full or the folder can't be written, now or at the last save.
    """
    step = int(state.step)
    if step == manager.latest_step():
        return
    metrics = None if loss is None else {"loss": loss}
    if distributed.is_main_process():
        manifest_of(Path(manager.directory) / str(step)).unlink(missing_ok=True)  # of one of this step that is gone
    with _saving(manager):
        manager.save(step, args=ocp.args.StandardSave(state._asdict()), metrics=metrics)
    threading.Thread(target=_seal_when_there, args=(Path(manager.directory), step), daemon=True).start()


def finish(manager: ocp.CheckpointManager) -> None:
    """Waits for the last save.

    Raises:
      UserError: the disk is full, or the folder can't be written.
    """
    with _saving(manager):
        manager.wait_until_finished()
    seal(Path(manager.directory))


@contextmanager
def _saving(manager: ocp.CheckpointManager) -> Iterator[None]:
    """Within the block, whatever a save fails with is a `UserError`."""
    try:
        with on_disk(manager):
            yield
    except Exception as error:  # a folder that is gone or closed, an error of the file system
        if isinstance(error, UserError) or distributed.another_ended(error):
            raise
        reason = str(error).split("\n")[0]
        raise UserError(
            f"no checkpoint can be saved in {manager.directory}: {reason or type(error).__name__}; mend it, and the "
            "same command goes on from the last one"
        ) from error


@contextmanager
def on_disk(manager: ocp.CheckpointManager) -> Iterator[None]:
    """Within the block, a full disk is a `UserError` that says which checkpoint is whole."""
    try:
        yield
    except Exception as error:  # Orbax wraps the system's errors in many of its own
        if isinstance(error, UserError) or not _is_full(error):
            raise
        saved = [step for step in manager.all_steps(read=True) if (manager.directory / str(step)).is_dir()]
        raise UserError(
            f"the disk of {manager.directory} is full: {error}. "
            + (f"The checkpoint of step {max(saved)} is whole; " if saved else "No checkpoint was saved; ")
            + "make room, or keep fewer, and the same command goes on from there",
            "keep_checkpoints",
        ) from error


def _is_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(words in str(error) for words in ("No space left", "ENOSPC", "quota exceeded")):
            return True
        error = error.__cause__ or error.__context__
    return False


def restore(manager: ocp.CheckpointManager, like: TrainState) -> TrainState | None:
    """The newest readable checkpoint, in the structure, shapes and dtypes of `like`, as arrays on the host; None: none.

    Raises:
      UserError: there are checkpoints, but none can be read.
    """
    state = _newest(
        _steps(manager.directory), Path(manager.directory), lambda step: _restore(manager, step, like._asdict())
    )
    if state is None:
        return None
    manager.reload()  # without what was set aside
    return TrainState(**state)


def restore_newest(workdir: Path) -> dict[str, Any]:
    """The newest readable checkpoint of a run's folder, which may be training, as a dictionary of arrays on the host.

    Raises:
      UserError: the folder has no checkpoint, or none that can be read.
    """
    with _reader(workdir) as read:
        state = _newest(_steps(workdir / "checkpoints"), workdir / "checkpoints", read, set_aside=False)
    if state is None:
        raise UserError(f"{workdir} has no checkpoint: train first, or choose another folder", "workdir")
    return state


def restore_step(workdir: Path, step: int) -> dict[str, Any]:
    """The checkpoint of a step, as `restore_newest` gives the newest.

    Raises:
      UserError: there is none that can be read.
    """
    with _reader(workdir) as read:
        state = _newest([step], workdir / "checkpoints", read, set_aside=False)
    return state


@contextmanager
def _reader(workdir: Path) -> Iterator[Callable[[int], dict[str, Any]]]:
    """step -> its checkpoint, for the length of the block."""
    folder = (workdir / "checkpoints").absolute()
    if not folder.is_dir():
        yield lambda step: {}
        return
    options = ocp.CheckpointManagerOptions(read_only=True)  # a save that is going on is not ours to clean up
    handler = ocp.StandardCheckpointHandler()  # without it the manager knows no structure
    with ocp.CheckpointManager(folder, options=options, item_handlers=handler) as manager:
        yield lambda step: _restore(manager, step, _structure(manager, step))
    _trim()


def _structure(manager: ocp.CheckpointManager, step: int) -> Any:
    """The shapes and dtypes of a checkpoint; looked up once, as TensorStore keeps some memory at every look."""
    folder = Path(manager.directory) / str(step) / "default"
    described = [folder / "_METADATA", *sorted((folder / "array_metadatas").glob("*"))]
    key = (str(manager.directory), *(tuple(_digest(path)) for path in described))
    if key not in _STRUCTURES:
        _STRUCTURES[key] = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), manager.item_metadata(step).tree
        )
    return _STRUCTURES[key]


def saved_steps(workdir: Path) -> list[int]:
    """The steps whose checkpoints a run's folder has, in order."""
    return _steps(workdir / "checkpoints")[::-1]


def has_checkpoint(workdir: Path) -> bool:
    """Whether a run's folder has a complete checkpoint."""
    return bool(saved_steps(workdir))


def _steps(folder: Any) -> list[int]:
    return sorted((int(path.name) for path in Path(folder).glob("*") if path.name.isdigit()), reverse=True)


def _newest(steps: list[int], folder: Path, read: Callable[[int], Any], set_aside: bool = True) -> Any:
    """What `read` gives of the newest of the steps that is whole; the others are reported and set aside."""
    for n, step in enumerate(steps):
        try:
            check(folder / str(step))
            state = read(step)
        except Exception as error:  # each kind of damage has its own
            reason = str(error).split("\n")[0]
            report(f"the checkpoint of step {step} in {folder} can't be read: {reason}")
            continue
        for damaged in steps[:n] if set_aside else ():
            _set_aside(folder / str(damaged))
        return state
    if steps:
        raise UserError(
            f"none of the checkpoints in {folder} can be read ({', '.join(map(str, steps))}); choose another --workdir"
        )
    return None


def _set_aside(path: Path) -> None:
    """Moves a damaged checkpoint to DIR/damaged, where a new one of the same step doesn't meet it."""
    if distributed.is_main_process():
        kept = set_aside(path, path.parents[1])
        manifest_of(path).unlink(missing_ok=True)
        report(f"it is kept in {kept}")
    distributed.barrier(f"set aside {path.name}")


def _restore(manager: ocp.CheckpointManager, step: int, like: Any) -> Any:
    # NumPy arrays as the target: a checkpoint then doesn't ask for the devices it was saved from.
    targets = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), like)
    return manager.restore(step, args=ocp.args.StandardRestore(targets))


def seal(folder: Path) -> None:
    """Writes the manifest of every complete checkpoint that has none, and removes those of which there is none."""
    if not distributed.is_main_process():
        return
    with _SEALING:
        for path in (folder / str(step) for step in _steps(folder)):
            manifest = manifest_of(path)
            # A checkpoint may be removed meanwhile; on a full disk one goes without.
            with suppress(OSError):
                if not manifest.exists():
                    files = {name: _digest(path / name) for name in _files(path)}
                    manifest.parent.mkdir(exist_ok=True)
                    write_atomically(manifest, json.dumps(files, indent=1))
        for manifest in manifest_of(folder / "0").parent.glob("*.json"):
            if not (folder / manifest.stem).is_dir():
                manifest.unlink(missing_ok=True)
    _trim()


def _trim() -> None:
    """Returns freed memory to the system, of which each thread of a save or restore keeps some; glibc's alone can."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def manifest_of(path: Path) -> Path:
    """Where the manifest of a checkpoint lies: not in its folder, which Orbax may be about to remove."""
    return path.parents[1] / "manifests" / f"{path.name}.json"


def _seal_when_there(folder: Path, step: int, seconds: float = 600.0) -> None:
    """Seals a checkpoint that is being saved, as soon as it has its name: a kill may come at any moment."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (folder / str(step)).is_dir():
            return seal(folder)
        time.sleep(0.02)


def check(path: Path) -> None:
    """Compares a checkpoint with its manifest; a kill may have left it without one, and nothing to compare.

    Raises:
      ValueError: a file is missing or differs.
    """
    manifest = manifest_of(path)
    if not manifest.is_file():
        return
    try:
        expected = read_object(manifest)
    except UNREADABLE as error:
        return report(f"{manifest} can't be read ({error}), so that checkpoint is taken as it is")
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
