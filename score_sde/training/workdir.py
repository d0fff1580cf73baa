"""A run's folder and its config, which is written once and compared with the config of every later call."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from score_sde.errors import UserError
from score_sde.runtime import distributed
from score_sde.runtime.disk import UNREADABLE, locked, read_json_object, report, write_atomically

FOLDERS = ("checkpoints", "snapshots", "samples", "tensorboard", "evaluation", "damaged")
SUFFIXES = (".json", ".jsonl", ".png", ".npz", ".lock")
# Keys that a resumed run may change, since the parameters after a given step don't depend on them, except by rounding.
MAY_CHANGE = (
    "data.path",
    "data.num_threads",
    "data.num_workers",
    "training.num_steps",
    "training.steps_per_call",
    "training.strategy",
    "training.grad_accum_steps",
    "training.accumulate",  # its former name
    "training.on_nonfinite",
    "training.log_every",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "training.keep_every",
    "training.keep_best",
    "training.sample_every",
    "training.snapshot_every",
    "sampling",
    "evaluation",
    "likelihood",
    "certify",
)

# Keys that runs of earlier versions lack, with what those runs did.
ADDED: dict[str, Any] = {"loss.uncertainty": False, "data.standardize": False, "data.mean": [], "data.std": []}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every leaf of a nested config with its path, as in ("training.batch_size", 128)."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def read_config(workdir: Path) -> dict[str, Any]:
    """Return the resolved config of a run's folder, {} if it has none that can be read (see `check_config`)."""
    with suppress(*UNREADABLE):
        return read_json_object(workdir / "config.json")
    return {}


def check_files(workdir: Path) -> None:
    """Raise UserError unless what is in a run's folder can be read and written, before any work is lost."""
    for path in [workdir, *workdir.glob("*"), *(workdir / "samples").glob("*")] if workdir.exists() else ():
        folder = path == workdir or path.name in FOLDERS
        kind = "folder" if folder else "file"
        if (folder or path.suffix in SUFFIXES) and (path.is_dir() != folder or not os.access(path, os.R_OK | os.W_OK)):
            given = "without permission to read and write" if path.is_dir() == folder else "of another kind"
            raise UserError(f"cannot write to {workdir}: expected {path} to be a {kind}, got one {given}", "workdir")


def check_config(workdir: Path, config: Mapping[str, Any]) -> None:
    """Raise UserError unless the folder is empty or holds a run with this config.

    Raises:
      UserError: if the folder's config.json differs in keys that change the run, or is damaged in a folder with
        checkpoints. The message names the keys.
    """
    path = workdir / "config.json"
    if not path.is_file():
        return
    try:
        saved = ADDED | dict(flatten(read_json_object(path)))
    except UNREADABLE as error:
        if any(step.name.isdigit() for step in (workdir / "checkpoints").glob("*")):
            raise UserError(
                f"{path} can't be read ({error}), so it is unknown whether this command continues the same run; if it "
                "does, remove that file and it is written again, otherwise choose another folder",
                "workdir",
            ) from error
        return report(f"{path} can't be read ({error}); nothing was trained yet, so it is written again")
    current = ADDED | dict(flatten(json.loads(json.dumps(config))))
    differing = [
        f"{key} was {saved.get(key, 'absent')!r}, is {current.get(key, 'absent')!r}"
        for key in sorted(saved.keys() | current.keys())
        if _absolute(saved.get(key, "absent")) != _absolute(current.get(key, "absent"))
        and not any(key == free or key.startswith(f"{free}.") for free in MAY_CHANGE)
    ]
    if differing:
        raise UserError(
            f"{workdir} holds a run of another config: {'; '.join(differing)}. Resume with the old values, or choose "
            f"another folder. These keys may change: {', '.join(MAY_CHANGE)}",
            "workdir",
        )


@contextmanager
def sole_writer(workdir: Path) -> Iterator[None]:
    """Make the run's folder, and keep other training processes out of it during the block; reading needs no lock.

    Raises:
      UserError: if another process trains there, or the folder can't be made or written.
    """
    problem = ""
    with ExitStack() as stack:
        try:
            if distributed.is_main_process():
                workdir.mkdir(parents=True, exist_ok=True)
                holder = stack.enter_context(locked(workdir / "lock", seconds=2.0))
                problem = f"{workdir} is in use: {holder} trains there; wait until it ends, or choose another folder"
                problem = problem if holder else ""
        except OSError as error:
            problem = _unwritable(workdir, error.strerror or str(error))
        if distributed.any_process(bool(problem)):
            raise UserError(problem or f"{workdir} can't be used, according to process 0", "workdir")
        yield


def prepare(workdir: Path, config: Mapping[str, Any]) -> None:
    """Make the run's folder and write config.json; call `check_config` first.

    Raises:
      UserError: if the folder can't be made or written.
    """
    problem = ""
    try:
        if distributed.is_main_process():
            workdir.mkdir(parents=True, exist_ok=True)
            write_atomically(workdir / "config.json", json.dumps(config, indent=2) + "\n")
    except OSError as error:
        problem = error.strerror or str(error)
    if distributed.any_process(bool(problem)):
        raise UserError(_unwritable(workdir, problem), "workdir")


def _absolute(value: Any) -> Any:
    """Return an absolute path for a text, so that `~/x` and `/home/u/x` are equal, and other values unchanged."""
    return os.path.abspath(os.path.expanduser(value)) if isinstance(value, str) else value


def _unwritable(workdir: Path, reason: str) -> str:
    return f"cannot write to {workdir}{reason and ': '}{reason}"
