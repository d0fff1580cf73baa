"""Configs from a file, and overrides of their keys from the command line and from sweeps."""

import ast
import importlib.util
import inspect
import itertools
import os
import re
import sys
import traceback
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_flags.tuple_parser import TupleParser

from score_sde.errors import UserError, closest, cut, unknown
from score_sde.experiment.paths import PATHS, look_up, split_variant
from score_sde.training.workdir import flatten

KINDS = {bool: "True or False", int: "an integer", float: "a number", str: "text", tuple: "a tuple"}
BOOLEANS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


def load(location: str) -> ConfigDict:
    """Return the config of a file's get_config(); its relative paths are also looked up next to the file.

    Args:
      location: Path of the file, with its variant after a colon if it has one.

    Raises:
      UserError: if there is no such file, or it fails.
    """
    path, variant = split_variant(location)
    if not os.path.isfile(path):
        raise UserError(f"no config file {path!r}", "base")
    spec = importlib.util.spec_from_file_location(f"config_{Path(path).stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path!r} is not a Python file", "base")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        parameters = inspect.signature(module.get_config).parameters.values()
        if variant and not parameters:
            raise UserError(f"{path} takes no variant: leave out the colon and what follows it")
        if not variant and any(parameter.default is parameter.empty for parameter in parameters):
            raise UserError(f"{path} requires a variant: append it after a colon")
        config = module.get_config(*filter(None, [variant]))
    except UserError:
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = "" if isinstance(error, SyntaxError) else f" ({last.filename}, line {last.lineno})"
        raise UserError(f"{path} failed: {type(error).__name__}: {error}{place}") from None
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: expected get_config() to return a ConfigDict, got {type(config).__name__}")
    return _with_paths_found(config, Path(path).absolute().parent)


def override(config: ConfigDict, overrides: Mapping[str, Any]) -> ConfigDict:
    """Return the config with other values, set as on the command line.

    A dictionary changes only the keys that it names. An empty one removes all keyword arguments, as in
    `{"model.kwargs": {}}`.

    Raises:
      UserError: if there is no such key, or its values are of another type.
    """
    changed = config.copy_and_resolve_references()
    with changed.unlocked():
        for key, value in overrides.items():
            try:
                _set(changed, key, value)
            except KeyError as error:
                raise _unknown_key(config, error.args[0]) from None
    return changed


def parse(config: ConfigDict, key: str, texts: list[str]) -> Any:
    """Return the value of a key from the texts of its flags. A tuple joins all of them, otherwise the last one counts.

    A text that isn't of the key's type is returned unchanged, and `override` raises the error.
    """
    free = re.match(r"fixed\b|.*kwargs\b", key)
    old = None if free else dict(flatten(config.to_dict())).get(key)
    if isinstance(old, str):
        return texts[-1]
    if isinstance(old, bool):
        return BOOLEANS.get(texts[-1].lower(), texts[-1])
    with suppress(SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        if isinstance(old, tuple):
            return tuple(itertools.chain.from_iterable(map(TupleParser().parse, texts)))
        return float(texts[-1]) if isinstance(old, float) else ast.literal_eval(texts[-1])
    return texts[-1]


def path_overrides(config: ConfigDict) -> dict[str, str]:
    """Return the overrides that set a config's paths again."""
    values = dict(flatten(config.to_dict()))
    return {key: values[key] for key in PATHS if values.get(key) and isinstance(values[key], str)}


def flags(overrides: Mapping[str, Any]) -> list[str]:
    """Return the flags of launch.py that set the overrides."""
    return [f"--config.{key}={value}" for key, value in overrides.items()]


def _set(config: ConfigDict, key: str, value: Any, path: str = "", free: bool = False) -> None:
    """Set a key of a group, or with a dictionary the keys that it names.

    Args:
      config: Group that is changed.
      key: Path of the key in the group.
      value: New value.
      path: Path of the group, for messages.
      free: Whether the group holds keyword arguments, which may be new and of any type.
    """
    name, _, rest = key.partition(".")
    path = f"{path}.{name}".lstrip(".")
    if not free and name not in config:
        raise KeyError(path)
    old, items = config.get(name), {rest: value} if rest else value
    is_group = isinstance(old, ConfigDict)
    if path == "fixed" and isinstance(items, Mapping):  # of a sweep: a dictionary with paths as keys
        config[name] = ({**old[0], **items},)
    elif isinstance(items, Mapping) and (is_group or free):
        inside = free or name.endswith("kwargs")
        if not is_group or (inside and not items):
            with config.ignore_type():
                config[name] = ConfigDict()
        for inner, item in items.items():
            _set(config[name], str(inner), item, path, inside)
    elif rest:
        raise KeyError(f"{path}.{rest.split('.')[0]}")
    elif is_group and not free:
        raise UserError(f"{path}: expected a dictionary with any of the keys {cut(', '.join(old), 300)}, got {value!r}")
    else:
        try:
            if not free and (value is None or isinstance(value, bool) != isinstance(old, bool)):
                raise TypeError(value)
            with config.ignore_type() if free else nullcontext():
                config[name] = value
        except (TypeError, ValueError):
            kind = KINDS.get(type(old), type(old).__name__)
            raise UserError(f"{path}: expected {kind}, got {value!r}") from None


def _unknown_key(config: ConfigDict, path: str) -> UserError:
    """Return the error for an unknown key, with the closest key of its group, or of any group."""
    parent, dot, name = path.rpartition(".")
    group: Any = config
    for part in filter(None, parent.split(".")):
        group = group[part] if isinstance(group, ConfigDict) else None
    known = list(group) if isinstance(group, ConfigDict) else []
    everywhere = [key for key, _ in flatten(config.to_dict())]
    elsewhere = closest(name, [key.split(".")[-1] for key in everywhere])
    similar = [parent + dot + key for key in closest(name, known)]
    similar = similar or [key for key in everywhere if key.split(".")[-1] in elsewhere]
    return unknown("config key", path, known, similar=similar)


def _with_paths_found(config: ConfigDict, folder: Path) -> ConfigDict:
    """Return the config of a file in a folder, with the paths that aren't in the current folder as found from there."""

    def found(paths: Mapping[str, Any]) -> dict[str, Any]:
        return {
            key: look_up(value, folder) if key in PATHS and isinstance(value, str) else value
            for key, value in paths.items()
        }

    config = override(config, found(path_overrides(config)))
    if "trials" in config and "base" in config:
        with config.unlocked():
            config.trials, config.fixed = (tuple(map(found, config[name])) for name in ("trials", "fixed"))
        if not os.path.isfile(split_variant(config.base)[0]):
            raise UserError(
                f"no config file {config.base!r} in {Path.cwd()}, or in {folder} and the folders above it", "base"
            )
    return config
