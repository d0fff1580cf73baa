"""A run's folder and its config: written once, and held against the config of every later call."""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from score_sde.errors import UserError
from score_sde.runtime import distributed
from score_sde.runtime.disk import UNREADABLE, locked, read_object, report, write_atomically

# What a resumed run may change: none of these changes the parameters that a given step reaches, but for rounding.
MAY_CHANGE = (
    "data.path",
    "data.num_threads",
    "data.num_workers",
    "training.num_steps",
    "training.steps_per_call",
    "training.strategy",
    "training.accumulate",
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


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("training.batch_size", 128) and so on, for every leaf of a nested config."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def check_config(workdir: Path, config: Mapping[str, Any]) -> None:
    """Refuses a folder that holds a run of another config.

    Raises:
      UserError: the folder's config.json differs in a key that changes the run, each of which the message names; or it
        is damaged, and the folder has checkpoints.
    """
    path = workdir / "config.json"
    if not path.is_file():
        return
    try:
        saved = dict(flatten(read_object(path)))
    except UNREADABLE as error:
        if any(step.name.isdigit() for step in (workdir / "checkpoints").glob("*")):
            raise UserError(
                f"{path} can't be read ({error}), so whether this command is of the same run is unknown: if it is, "
                "remove that file and it is written again; else choose another folder",
                "workdir",
            ) from error
        return report(f"{path} can't be read ({error}); nothing was trained yet, and it is written again")
    given = dict(flatten(json.loads(json.dumps(config))))
    differing = [
        f"{key} was {saved.get(key, 'absent')!r}, is {given.get(key, 'absent')!r}"
        for key in sorted(saved.keys() | given.keys())
        if saved.get(key, "absent") != given.get(key, "absent")
        and not any(key == free or key.startswith(f"{free}.") for free in MAY_CHANGE)
    ]
    if differing:
        raise UserError(
            f"{workdir} holds a run of another config: {'; '.join(differing)}. Go on with the old values, or choose "
            f"another folder; what may change: {', '.join(MAY_CHANGE)}",
            "workdir",
        )


@contextmanager
def sole_writer(workdir: Path) -> Iterator[None]:
    """Makes the run's folder and keeps every other training out of it for the block; reading stays free.

    Raises:
      UserError: another process trains there, or the folder cannot be made or written.
    """
    problem = ""
    with ExitStack() as stack:
        try:
            if distributed.is_main_process():
                workdir.mkdir(parents=True, exist_ok=True)
                holder = stack.enter_context(locked(workdir / "lock", seconds=2.0))
                problem = f"{workdir} is in use: {holder} trains there; wait for its end, or choose another folder"
                problem = problem if holder else ""
        except OSError as error:
            problem = _unwritable(workdir, error.strerror or str(error))
        if distributed.any_process(bool(problem)):
            raise UserError(problem or f"{workdir} can't be used, as process 0 says", "workdir")
        yield


def prepare(workdir: Path, config: Mapping[str, Any]) -> None:
    """Makes the run's folder and writes config.json; call `check_config` first.

    Raises:
      UserError: the folder cannot be made or written.
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


def _unwritable(workdir: Path, reason: str) -> str:
    return f"cannot write to {workdir}{reason and ': '}{reason}"
