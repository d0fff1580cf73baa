"""Translation of library errors: the arguments to change become flags."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ml_collections import ConfigDict

from score_sde.errors import UserError, call, lookup

COMMAND_LINE = ("workdir", "topology", "coordinator", "num_processes", "process_id", "mode", "address")


@contextmanager
def naming_flags(config: ConfigDict, *places: str, **paths: str) -> Iterator[None]:
    """Replace the arguments that a UserError asks to change by the flags that set them.

    Args:
      config: The config.
      *places: Places in the config where arguments are looked for, in order: groups ("sampling"), and dictionaries of
        keyword arguments ("sde.kwargs"), which may hold any name.
      **paths: Config paths of arguments with another name there.
    """
    try:
        yield
    except UserError as error:
        change = [_flag(config, places, paths, argument) for argument in error.change]
        if not change:
            change = [f"--config.{place}" for place in places if place.endswith("kwargs")][:1]
        raise UserError(error.message, *change) from error


def build_part(
    config: ConfigDict, kind: str, table: Mapping[str, Callable], name: str, kwargs: str, given: Mapping[str, Any] = {}
) -> Any:
    """Return `table[name](**kwargs)` for a name and keyword arguments in the config.

    Args:
      config: The config.
      kind: Noun for the entries of the table ("SDE").
      table: Functions by name.
      name: Config path of the name ("sde.name").
      kwargs: Config path of the keyword arguments ("sde.kwargs").
      given: Further keyword arguments, which the config overrides.
    """
    chosen = get(config, name)
    with naming_flags(config, **{kind: name}):
        function = lookup(kind, table, chosen)
    with naming_flags(config, kwargs, **{kind: name}):
        return call(kind, chosen, function, {**given, **plain(get(config, kwargs))})


def get(config: ConfigDict, path: str) -> Any:
    """Return the value at a config path such as "sde.kwargs"."""
    for key in path.split("."):
        config = config[key]
    return config


def plain(value: Any) -> Any:
    """Return a group of the config as a dictionary, any other value as it is."""
    return value.to_dict() if isinstance(value, ConfigDict) else value


def _flag(config: ConfigDict, places: tuple[str, ...], paths: Mapping[str, str], argument: str) -> str:
    if argument.startswith("--"):
        return argument  # an inner border has named the flag
    if argument in paths:
        return f"--config.{paths[argument]}"
    name = re.split(r"\W", argument)[0]  # of `name`, `name=value` or `name to ...`
    rest = argument[len(name) :]
    if name in paths:
        return f"--config.{paths[name]}{rest}"
    if name in COMMAND_LINE:
        return f"--{name}{rest}"
    for place in places:
        if place.endswith("kwargs") or name in get(config, place):
            return f"--config.{place}.{name}{rest}"
    return argument
