"""Errors that a user can act on, and lookups by name that raise them."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from functools import reduce
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
        message = escape(message)
        super().__init__(message, *change)
        self.message, self.change = message, change

    def __str__(self) -> str:
        """Return the message with the arguments to change."""
        return f"{self.message} (set {' or '.join(self.change)})" if self.change else self.message


def escape(text: str) -> str:
    """Replace control characters, as names of files may hold them, by escape sequences."""
    return "".join(letter if letter.isprintable() or letter == "\n" else repr(letter)[1:-1] for letter in text)


def not_none(value: T | None) -> T:
    """Narrows an Optional value; raises AssertionError on None."""
    if value is None:
        raise AssertionError("unexpected None")
    return value


def cut(text: str, length: int = 80) -> str:
    """Shortens text from a file or a command line for a message."""
    return text if len(text) <= length else f"{text[: length - 3]}..."


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return a question with the known name that `given` spells differently or abbreviates, or "" if there is none."""
    return _question(closest(given, known))


def closest(given: str, known: Iterable[str]) -> list[str]:
    """Return the known name closest to `given`, several if they are equally close, or none.

    Case and punctuation don't matter, and `+` counts as `p`. Abbreviations ("lr", "dpm++"), versions ("heun2") and
    additions ("vpsde") are recognized, and then typing errors.
    """
    likeness = {name: _likeness(cut(given).lower(), cut(name).lower()) for name in known}
    best = max(likeness.values(), default=0.0)
    return sorted(name for name, value in likeness.items() if value == best > 0)


def _likeness(given: str, name: str) -> float:
    """Return how well `given` spells a name, from 0 (not at all) to 1."""
    words, target = (re.findall(r"[a-z]+|\d+[a-z]*", text.replace("+", "p")) for text in (given, name))
    a, b = "".join(words), "".join(target)
    if a == b or not a or not b:
        return float(a == b)
    numbers, target_numbers = re.findall(r"\d+", given), re.findall(r"\d+", name)
    if numbers and target_numbers and numbers != target_numbers:
        return 0.0  # cifar100 isn't cifar10
    similar = SequenceMatcher(None, a, b).ratio()
    if not target_numbers:  # a version: heun2, dpmpp_2m
        words = [word for word in words if not word[0].isdigit()]
        a = "".join(words)
    overlap = min(len(a), len(b)) / max(len(a), len(b))
    later = f"(?:{')?(?:'.join(map(_prefixes, target[1:]))})?" if target[1:] else ""
    if len(target) > 1 < len(a) and re.fullmatch("".join(map(_prefixes, target)), a):
        return 0.95  # prefixes of all words: pc, bf16
    if similar >= 0.8:
        return 0.94 * similar
    if {*target} <= {*words} or (len(b) > 1 and overlap >= 0.4 and a.startswith(b)):
        return 0.7 + 0.05 * overlap  # the name and more: k_heun, vpsde
    if words and {*words} <= {*target} and overlap >= 0.4:
        return 0.65  # some words: moons
    if len(a) > 1 and re.fullmatch(_prefixes(target[0]) + later, a):
        return 0.5 + 0.1 * overlap  # prefixes of some words: dpm++, eps
    return 0.6 * similar if similar >= 0.65 and len(a) > 2 else 0.0


def _prefixes(word: str) -> str:
    """Return a pattern for the nonempty prefixes of a word."""
    return word[0] + reduce(lambda longer, letter: f"(?:{letter}{longer})?", reversed(word[1:]), "")


def unknown(
    kind: str, name: Any, known: Iterable[str], *change: str, similar: Sequence[str] | None = None
) -> UserError:
    """Return the error for an unknown name, with the closest known names (`similar`) and a list of the known ones."""
    known = sorted({*known})
    question = _question(closest(str(name), known) if similar is None else similar)
    there_are = f" Known: {cut(', '.join(known), 300)}." if known else ""
    return UserError(f"unknown {kind} {cut(repr(name))}.{question}{there_are}", *change)


def _question(names: Sequence[str]) -> str:
    return f" Did you mean {' or '.join(map(repr, names))}?" if 0 < len(names) <= 3 else ""


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
    raise unknown(kind, name, table, argument or kind)


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
            accepted = cut(", ".join(known), 300) or "none"
            raise UserError(
                f"{kind} {name!r} has no argument {given!r}.{did_you_mean(given, known)} It takes {accepted}."
            )
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
