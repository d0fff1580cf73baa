"""The trials of a sweep, as lists of overrides of config keys, and how such lists are put together."""

import itertools
from collections.abc import Iterable
from typing import Any

from score_sde.errors import UserError

Overrides = dict[str, Any]  # {"model.prediction": "x0", "sde.kwargs.beta_max": 10.0}


def axis(key: str, values: Iterable[Any]) -> list[Overrides]:
    """One key, each of its values in turn."""
    return [{key: value} for value in values]


def product(*parts: list[Overrides]) -> list[Overrides]:
    """Each of the first with each of the second, and so on.

    Raises:
      UserError: two parts set one key.
    """
    return [_merged(combination) for combination in itertools.product(*parts)]


def zipped(*parts: list[Overrides]) -> list[Overrides]:
    """The first of each, the second of each, and so on.

    Raises:
      UserError: they differ in length, or two set one key.
    """
    if len({len(part) for part in parts}) > 1:
        raise UserError(f"zipped parts must be of one length, got {', '.join(str(len(part)) for part in parts)}")
    return [_merged(combination) for combination in zip(*parts, strict=True)]


def chain(*parts: list[Overrides]) -> list[Overrides]:
    """One part after the other."""
    return list(itertools.chain(*parts))


def where(trials: list[Overrides], condition: Overrides, *parts: list[Overrides]) -> list[Overrides]:
    """An axis under a condition: the trials that fulfil it with each of the parts' product, the others as they are.

    where(axis("sde.name", ("vp", "ve")), {"sde.name": "vp"}, axis("sde.kwargs.beta_max", (10.0, 20.0)))
    """
    found = []
    for trial in trials:
        fulfils = all(trial.get(key) == value for key, value in condition.items())
        found += product([trial], *parts) if fulfils else [trial]
    return found


def _merged(combination: Iterable[Overrides]) -> Overrides:
    merged: Overrides = {}
    for overrides in combination:
        twice = sorted(merged.keys() & overrides.keys())
        if twice:
            raise UserError(f"two parts of a product set {', '.join(twice)}; chain them, or give each key one axis")
        merged |= overrides
    return merged
