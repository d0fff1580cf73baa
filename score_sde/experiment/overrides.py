"""Configs from a file and overrides, and the flags that set the same overrides."""

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from score_sde.errors import UserError, did_you_mean
from score_sde.training.workdir import flatten


def load(location: str) -> ConfigDict:
    """Return the config of a file's get_config().

    Args:
      location: Path of the file, with its variant after a colon if it has one.

    Raises:
      UserError: if there is no such file, or it is not a Python file.
    """
    path, _, variant = location.partition(":")
    if not Path(path).is_file():
        raise UserError(f"no config file {path!r}", "base")
    spec = importlib.util.spec_from_file_location(f"config_{Path(path).stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path!r} is not a Python file", "base")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*([variant] if variant else []))


def override(config: ConfigDict, overrides: Mapping[str, Any]) -> ConfigDict:
    """Return the config with other values, set as on the command line.

    Raises:
      UserError: if there is no such key, or its values are of another type.
    """
    changed = config.copy_and_resolve_references()
    known = [key for key, _ in flatten(config.to_dict())] + [key for key in _kwargs(config)]
    for key, value in overrides.items():
        if isinstance(value, Mapping):
            raise UserError(f"{key}: expected one value, got {value}; give {key}.<name> for each")
        parent, _, name = key.rpartition(".")
        if parent in _kwargs(config):
            with changed.unlocked(), changed.ignore_type():  # the function checks its arguments
                _group(changed, parent)[name] = value
            continue
        if key not in known:
            raise UserError(f"no config has the key {key!r}.{did_you_mean(key, known)}")
        try:
            _group(changed, parent)[name] = value
        except (TypeError, ValueError) as error:
            raise UserError(f"{key} can't be {value!r}: {' '.join(str(error).split())}") from None
    return changed


def flags(overrides: Mapping[str, Any]) -> list[str]:
    """Return the flags of launch.py that set the overrides."""
    return [f"--config.{key}={value}" for key, value in overrides.items()]


def _group(config: ConfigDict, path: str) -> ConfigDict:
    for part in filter(None, path.split(".")):
        config = config[part]
    return config


def _kwargs(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    """Yield the keys of dictionaries of keyword arguments."""
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            if key.endswith("kwargs"):
                yield prefix + key
            else:
                yield from _kwargs(value, f"{prefix}{key}.")
