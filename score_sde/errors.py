"""Errors that a user can act on, and lookups by name that raise them."""

import difflib
from collections.abc import Callable, Iterable, Mapping
from inspect import signature
from typing import Any, TypeVar

T = TypeVar("T")


class UserError(ValueError):
    """Invalid input, with what was given, what is accepted, and which arguments to change.

    Args:
      message: States the condition and the value that broke it.
      *change: Arguments that resolve the error, best first, each as `name`, `name=value` or `name to ...`. The command
        line shows them as flags (`experiment.flags`).
    """

    def __init__(self, message: str, *change: str):
        """Keep the message and the arguments to change."""
        super().__init__(message, *change)
        self.message, self.change = message, change

    def __str__(self) -> str:
        """Return the message with the arguments to change."""
        return f"{self.message} (set {' or '.join(self.change)})" if self.change else self.message


def not_none(value: T | None) -> T:
    """Narrows an Optional value; raises AssertionError on None."""
    if value is None:
        raise AssertionError("unexpected None")
    return value


def cut(text: str, length: int = 80) -> str:
    """Shortens text from a file or a command line for a message."""
    return text if len(text) <= length else f"{text[: length - 3]}..."


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return a question with the known spelling closest to `given`, or "" if none is close."""
    matches = difflib.get_close_matches(cut(given), list(known), n=1)
    return f" Did you mean {matches[0]!r}?" if matches else ""


def lookup(kind: str, table: Mapping[str, Any], name: str, argument: str = "") -> Any:
    """Return `table[name]`.

    Args:
      kind: Noun for the entries of the table ("SDE", "solver").
      table: Entries by name.
      name: Name to look up.
      argument: Argument that held the name; defaults to `kind`.

    Raises:
      UserError: if the name is unknown; the message lists the known names.
    """
    if isinstance(name, str) and name in table:
        return table[name]
    known = ", ".join(sorted(table))
    question = did_you_mean(str(name), table)
    raise UserError(f"unknown {kind} {cut(repr(name))}; known: {known}.{question}", argument or kind)


def call(kind: str, name: str, function: Callable, kwargs: Mapping[str, Any]) -> Any:
    """Return `function(**kwargs)`.

    Args:
      kind: Noun for the function ("solver"), for messages.
      name: Name of the function, for messages.
      function: Function to call.
      kwargs: Keyword arguments from the user.

    Raises:
      UserError: if an argument is unknown or has the wrong type.
    """
    if not isinstance(kwargs, Mapping):
        raise UserError(f"{kind} {name!r}: expected keyword arguments as a dictionary, got {kwargs!r}")
    # Flax adds the first two to every module; a partial has fixed its own keywords.
    hidden = ("parent", "name") if isinstance(function, type) else getattr(function, "keywords", {})
    known = [parameter for parameter in signature(function).parameters if parameter not in hidden]
    for given in kwargs:
        if given not in known:
            accepted = f"it takes {', '.join(known)}" if known else "it takes none"
            raise UserError(f"{kind} {name!r} has no argument {given!r}; {accepted}.{did_you_mean(given, known)}")
    try:
        return function(**kwargs)
    except TypeError as error:  # a word in place of a number
        raise UserError(f"{kind} {name!r} can't take {dict(kwargs)}: {error}") from error


def build(kind: str, table: Mapping[str, Callable], name: str, kwargs: Mapping[str, Any]) -> Any:
    """Return `table[name](**kwargs)`.

    Args:
      kind: Noun for the entries of the table ("solver"), for messages.
      table: Functions by name.
      name: Name of the function.
      kwargs: Keyword arguments from the user.

    Raises:
      UserError: if the name or an argument is unknown, or an argument has the wrong type.
    """
    return call(kind, name, lookup(kind, table, name), kwargs)
