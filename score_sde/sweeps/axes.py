"""Trials of a sweep, as lists of overrides of config keys, and functions that combine such lists."""

import itertools
from collections.abc import Iterable
from typing import Any

from score_sde.errors import UserError

Overrides = dict[str, Any]  # {"model.prediction": "x0", "sde.kwargs.beta_max": 10.0}


def axis(key: str, values: Iterable[Any]) -> list[Overrides]:
    """Return one trial for each value of a config key."""
    return [{key: value} for value in values]


def product(*axes: list[Overrides]) -> list[Overrides]:
    """Return every combination of one trial from each axis.

    Raises:
      UserError: if two axes set the same key.
    """
    return [_merge(combination) for combination in itertools.product(*axes)]


def zip_axes(*axes: list[Overrides]) -> list[Overrides]:
    """Combine the first trials of all axes, their second trials, and so on.

    Raises:
      UserError: if the axes differ in length, or if two set the same key.
    """
    if len({len(trials) for trials in axes}) > 1:
        lengths = ", ".join(str(len(trials)) for trials in axes)
        raise UserError(f"zip_axes: expected axes of one length, got {lengths}")
    return [_merge(combination) for combination in zip(*axes, strict=True)]


def chain(*axes: list[Overrides]) -> list[Overrides]:
    """Concatenate axes."""
    return list(itertools.chain(*axes))


def where(trials: list[Overrides], condition: Overrides, *axes: list[Overrides]) -> list[Overrides]:
    """Combine the trials that satisfy a condition with the product of the axes, and keep the others unchanged.

    where(axis("sde.name", ("vp", "ve")), {"sde.name": "vp"}, axis("sde.kwargs.beta_max", (10.0, 20.0)))
    """
    combined = []
    for trial in trials:
        satisfied = all(trial.get(key) == value for key, value in condition.items())
        combined += product([trial], *axes) if satisfied else [trial]
    return combined


def _merge(combination: Iterable[Overrides]) -> Overrides:
    merged: Overrides = {}
    for overrides in combination:
        duplicates = sorted(merged.keys() & overrides.keys())
        if duplicates:
            raise UserError(f"two axes of a product set {', '.join(duplicates)}; chain them, or give each key one axis")
        merged |= overrides
    return merged
