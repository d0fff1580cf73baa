"""From a config file and overrides to a config, and back to the flags that say the same."""

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from score_sde.errors import UserError, did_you_mean
from score_sde.training.workdir import flatten


def load(place: str) -> ConfigDict:
    """What a config file's get_config() gives.

    Args:
      place: the file, with its variant after a colon if it has one.

    Raises:
      UserError: there is no such file, or it is no Python file.
    """
    path, _, variant = place.partition(":")
    if not Path(path).is_file():
        raise UserError(f"no config file {path!r} (set --config.base)")
    spec = importlib.util.spec_from_file_location(f"config_{Path(path).stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path!r} is no Python file (set --config.base)")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*([variant] if variant else []))


def override(config: ConfigDict, overrides: Mapping[str, Any]) -> ConfigDict:
    """The config with other values, as the command line's --config.<key>=<value> would set them.

    Raises:
      UserError: there is no such key, or its values are of another type.
    """
    changed = config.copy_and_resolve_references()
    known = [key for key, _ in flatten(config.to_dict())] + [key for key in _kwargs(config)]
    for key, value in overrides.items():
        if isinstance(value, Mapping):
            raise UserError(f"{key}: an override is of one value, got {value} (give {key}.<name> each)")
        place, _, name = key.rpartition(".")
        if place in _kwargs(config):
            with changed.unlocked(), changed.ignore_type():  # the function checks its arguments
                _group(changed, place)[name] = value
            continue
        if key not in known:
            raise UserError(f"no config has the key {key!r}.{did_you_mean(key, known)}")
        try:
            _group(changed, place)[name] = value
        except (TypeError, ValueError) as error:
            raise UserError(f"{key} can't be {value!r}: {' '.join(str(error).split())}") from None
    return changed


def flags(overrides: Mapping[str, Any]) -> list[str]:
    """The flags of launch.py that set the overrides."""
    return [f"--config.{key}={value}" for key, value in overrides.items()]


def _group(config: ConfigDict, place: str) -> ConfigDict:
    for part in filter(None, place.split(".")):
        config = config[part]
    return config


def _kwargs(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    """The keys under which functions' keyword arguments are."""
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            if key.endswith("kwargs"):
                yield prefix + key
            else:
                yield from _kwargs(value, f"{prefix}{key}.")
