"""Errors a user can act on: `launch.py` prints them as one sentence instead of a traceback."""

import difflib
from collections.abc import Callable, Iterable, Mapping
from inspect import signature
from typing import Any, TypeVar

T = TypeVar("T")


class UserError(ValueError):
    """Something the user gave is wrong; the message says what was given, what is accepted and where to change it."""


def present(value: T | None) -> T:
    """A value that may be None elsewhere, and that the caller has made sure of here."""
    if value is None:
        raise AssertionError("what this code has made sure of is missing")
    return value


def cut(text: str, length: int = 80) -> str:
    """Text from a file or command line, short enough for a message."""
    return text if len(text) <= length else f"{text[: length - 3]}..."


def nearest(given: str, known: Iterable[str]) -> str:
    """A question naming the known spelling nearest to what was given, or nothing where none is near."""
    matches = difflib.get_close_matches(cut(given), list(known), n=1)
    return f" Did you mean {matches[0]!r}?" if matches else ""


def lookup(kind: str, table: Mapping[str, Any], name: str, where: str = "") -> Any:
    """`table[name]`, or a `UserError` that lists the known names.

    Args:
      kind: what the table holds, in the words of a message ("SDE", "solver").
      table: known names to what they stand for.
      name: the name asked for.
      where: where the user can change it ("--config.sde.name"), if it is known.
    """
    if isinstance(name, str) and name in table:
        return table[name]
    place = f" (set {where})" if where else ""
    raise UserError(
        f"unknown {kind} {cut(repr(name))}; known: {', '.join(sorted(table))}.{nearest(str(name), table)}{place}"
    )


def build(
    kind: str,
    table: Mapping[str, Callable],
    name: str,
    kwargs: Mapping[str, Any],
    where: str = "",
    key: str = "name",
    kwargs_key: str = "kwargs",
) -> Any:
    """`table[name](**kwargs)`, where an unknown name or keyword is a `UserError` that lists the known ones.

    Args:
      kind, table, name: as for `lookup`.
      kwargs: the keyword arguments of the factory that the table holds.
      where: the config group that the user can change ("--config.sde"), if it is known.
      key: the group's key that holds the name.
      kwargs_key: the group's key that holds the keyword arguments.
    """
    factory = lookup(kind, table, name, f"{where}.{key}" if where else "")
    if not isinstance(kwargs, Mapping):
        place = f" (set {where}.{kwargs_key})" if where else ""
        raise UserError(f"{kind} {name!r}: expected keyword arguments as a dictionary, got {kwargs!r}{place}")
    # What Flax adds to every module, and what a partial has chosen.
    hidden = ("parent", "name") if isinstance(factory, type) else getattr(factory, "keywords", {})
    known = [parameter for parameter in signature(factory).parameters if parameter not in hidden]
    for given in kwargs:
        if given not in known:
            accepted = f"it takes {', '.join(known)}" if known else "it takes none"
            place = f" (set {where}.{kwargs_key})" if where else ""
            raise UserError(f"{kind} {name!r} has no argument {given!r}; {accepted}.{nearest(given, known)}{place}")
    try:
        return factory(**kwargs)
    except TypeError as error:  # a word where a number belongs
        place = f" (set {where}.{kwargs_key})" if where else ""
        raise UserError(f"{kind} {name!r} can't take {dict(kwargs)}: {error}{place}") from error
