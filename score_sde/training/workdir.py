"""A run's folder and its config: written once, and held against the config of every later call."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from score_sde import hosts
from score_sde.errors import UserError

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
      UserError: the folder's config.json differs in a key that changes the run; the message names each.
    """
    path = workdir / "config.json"
    if not path.is_file():
        return
    saved = dict(flatten(json.loads(path.read_text())))
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
            f"another --workdir (what may change: {', '.join(MAY_CHANGE)})"
        )


def prepare(workdir: Path, config: Mapping[str, Any]) -> None:
    """Makes the run's folder and writes config.json; call `check_config` first.

    Raises:
      UserError: the folder cannot be made or written.
    """
    problem = ""
    try:
        if hosts.first():
            workdir.mkdir(parents=True, exist_ok=True)
            write_atomically(workdir / "config.json", json.dumps(config, indent=2) + "\n")
    except OSError as error:
        problem = f": {error.strerror}"
    if hosts.any_of(bool(problem)):
        raise UserError(f"cannot write to {workdir}{problem} (set --workdir to one you may write)")


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file in one step, so that a killed run never leaves half of it."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)
