"""Imports of pretrained weights (score_sde, EDM, diffusers), and exports of our own.

    module, variables = pretrained.load("edm", "weights.safetensors", config)

A family, in a file of its own, defines the names and layouts of its layers; `load` is the same for all.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from score_sde.errors import UserError, cut, lookup, not_none
from score_sde.models.pretrained import diffusers, edm, native, score_sde
from score_sde.models.pretrained.family import Target, report_missing_keys
from score_sde.runtime import weight_files

MAX_LISTED = 1000  # problems with weights that an error lists
OVERRIDABLE = (
    "dtype",
    "remat",
    "dropout",
    "label_dropout",
)  # keyword arguments of a network that are free for given weights
FAMILIES = {
    "score_sde": score_sde.FAMILY,
    "edm": edm.FAMILY,
    "diffusers": diffusers.FAMILY,
    "native": native.FAMILY,
}


def load(
    family: str, weights: Mapping[str, Any] | str | Path, config: Mapping[str, Any] | None = None, **options: Any
) -> tuple[nn.Module, dict[str, Any]]:
    """Load a network with the weights of another library, as a module and its variables.

    Args:
      family: Family of the network, a key of `FAMILIES`.
      weights: State dict of NumPy arrays in the library's names and layouts, or a path that `weight_files.read` reads.
      config: Options of the network in the library's names; None for those recorded in the file.
      **options: Attributes of the module to override, such as dtype="bfloat16".

    Returns:
      (module, variables): module.apply(variables, x, noise_level, labels) for x (batch, height, width, channels).

    Raises:
      UserError: if the file can't be read or has no config, an option is not covered, or weights are missing, extra
        or of another shape; the message lists them.
    """
    from score_sde.models import create

    chosen = lookup("family", FAMILIES, family)
    if isinstance(weights, str | Path):
        found = weight_files.read(weights)
        weights, config = found.arrays, found.config if config is None else config
    if config is None:
        raise UserError(
            f"family {family!r}: the weights come without the network's config; give it, in a JSON file named after "
            'the weights with .json added, {"family": ..., "config": {...}}'
        )
    arrays = chosen.arrays(weights)
    strange = [name for name, array in arrays.items() if not hasattr(array, "shape")]
    if strange:
        raise UserError(f"family {family!r}: no arrays in {_listed(map(str, strange), ', ')}")
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    with report_missing_keys(family):
        name, kwargs = chosen.model(config)
        module = create(name, **kwargs | options)
        return module, {"params": _parameters(family, chosen, module, config, arrays)}


class PretrainedModel(NamedTuple):
    """A pretrained network, with all options that its weights fix.

    Attributes:
      name: Name of the network, a key of `models.MODELS`.
      kwargs: Keyword arguments of the network.
      params: Parameters.
      event_shape: Shape of one example.
      target: Process, prediction and preconditioning that it was trained for.
      objective: Training objective, "" if the weights don't record it.
    """

    name: str
    kwargs: dict[str, Any]
    params: dict[str, Any]
    event_shape: tuple[int, ...]
    target: Target
    objective: str = ""


def load_model(path: str, family: str = "", options: Mapping[str, Any] | None = None) -> PretrainedModel:
    """Load a pretrained network with its training setup.

    Args:
      path: File or folder of the weights.
      family: Family of the network; "" for the one recorded in the file.
      options: Keyword arguments of the network to override.

    Raises:
      UserError: if the family is unknown, or see `load`.
    """
    found = weight_files.read(path)
    family = family or found.family or ""
    if not family:
        known = ", ".join(FAMILIES)
        raise UserError(f"of which family are the weights in {path}? Known are {known}", "family")
    chosen = lookup("family", FAMILIES, family)
    _, variables = load(family, found.arrays, found.config)  # raises if there is no config
    config = not_none(found.config)
    training = target(family, config)
    name, kwargs = chosen.model(config)
    kwargs = dict(kwargs) | training.model_kwargs | dict(options or {})
    shape = _event_shape(chosen, config, found.arrays)
    return PretrainedModel(name, kwargs, variables["params"], shape, training, str(config.get("objective", "")))


def target(family: str, config: Mapping[str, Any]) -> Target:
    """Return the SDE, prediction and preconditioning that a network was trained for."""
    chosen = lookup("family", FAMILIES, family)
    with report_missing_keys(family):
        return chosen.target(config)


def save(path: str | Path, params: Any, model: Mapping[str, Any], process: Mapping[str, Any]) -> None:
    """Write parameters as safetensors, for `load("native", path)`.

    Args:
      path: Path of the file.
      params: Pytree of parameters, which are named by their paths ("down_0_0/conv_0/kernel").
      model: Options of the model, {"name", "kwargs", "prediction", "preconditioning"}.
      process: Training setup, {"sde": {"name", "kwargs"}, "image_size", "channels", "sigma_data", "objective"}, with
        image_size 0 for vectors. A discrete-time objective restricts the network to the timesteps of a chain.
    """
    arrays = traverse_util.flatten_dict(jax.tree.map(np.asarray, params), sep="/")
    weight_files.write(path, arrays, "native", dict(process) | {"model": dict(model)})


def parity(
    family: str,
    weights: Mapping[str, Any] | str | Path,
    config: Mapping[str, Any],
    inputs: Sequence[Any],
    activations: Mapping[str, Any],
) -> dict[str, float]:
    """Print the difference of each block from its counterpart in the other library, to locate a discrepancy.

    Args:
      family: See `load`.
      weights: See `load`.
      config: See `load`.
      inputs: Inputs (x, noise_level) or (x, noise_level, labels) of the module.
      activations: Outputs of the library's modules by their names ("down_blocks.0.resnets.1"), in its layout (batch,
        channels, height, width) or ours; "" is the network's output.

    Returns:
      The largest difference relative to the standard deviation, by name; NaN for a name that is not a block, or if the
      shapes differ.
    """
    module, variables = load(family, weights, config)
    output, state = jax.jit(partial(module.apply, capture_intermediates=True))(variables, *inputs)
    blocks = {name: part["__call__"][0] for name, part in state["intermediates"].items() if name != "__call__"}
    chosen = FAMILIES[family]
    arrays = weight_files.read(weights).arrays if isinstance(weights, str | Path) else weights
    ours = {theirs: blocks[name] for name, theirs in _blocks(chosen, config, arrays) if name in blocks} | {"": output}
    errors = {name: _error(ours.get(name), np.asarray(value)) for name, value in activations.items()}
    width = max(map(len, errors), default=0)
    for name, error in errors.items():
        print(f"{name or 'output':{width}}  {error:.1e}")
    return errors


def _blocks(chosen, config, weights):
    """Yield (our block, their block) in the order of the layers."""
    names: dict[str, list[list[str]]] = {}
    for path, source in chosen.sources(config, chosen.arrays(weights)).items():
        names.setdefault(path[0], []).extend(name.split(".")[:-1] for name in source.names)
    for ours, theirs in names.items():
        common = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*theirs, strict=False))
        yield ours, ".".join(parts[0] for parts in common)


def _error(ours, theirs) -> float:
    if ours is not None and ours.shape != theirs.shape and theirs.ndim == 4:
        theirs = theirs.transpose(0, 2, 3, 1)
    if ours is None or ours.shape != theirs.shape:
        return float("nan")
    return float(np.abs(np.asarray(ours) - theirs).max() / theirs.std())


def _parameters(family, chosen, module, config, arrays) -> dict[str, Any]:
    sources = chosen.sources(config, arrays)
    shapes = _shapes(module, chosen, config, arrays)
    problems, parameters, used = [], {}, set()
    for path, shape in shapes.items():
        source = sources.get(path)
        if source is None:
            problems.append(f"missing: nothing for {'/'.join(path)} {shape}")
            continue
        used |= set(source.names)
        missing = [name for name in source.names if name not in arrays]
        if missing:
            problems.append(f"missing: {', '.join(missing)} for {'/'.join(path)} {shape}")
            continue
        parameters[path], problem = _made(source, [arrays[name] for name in source.names], shape)
        if problem:
            problems.append(f"misshapen: {problem} for {'/'.join(path)} {shape}")
    left = [name for name in arrays if name not in used and not chosen.unused(name)]
    problems += [f"extra: {name} {arrays[name].shape}" for name in left]
    if problems:
        raise UserError(
            f"family {family!r}: these weights are not those of the network that the config describes:\n  "
            + _listed(problems, "\n  ", 300)
        )
    return traverse_util.unflatten_dict(parameters)


def _listed(texts: Iterable[str], separator: str, length: int = 80) -> str:
    """Join the first texts, each cut to a length, and the number of further ones."""
    texts = [cut(text, length) for text in texts]
    more = [f"and {len(texts) - MAX_LISTED:,} more"] if len(texts) > MAX_LISTED else []
    return separator.join([*texts[:MAX_LISTED], *more])


def _made(source, arrays, shape):
    given = ", ".join(f"{name} {array.shape}" for name, array in zip(source.names, arrays, strict=True))
    try:
        made = np.asarray(source.make(*arrays), np.float32)
    except (ValueError, IndexError):
        return None, given
    return made, given if made.shape != shape else None


def _event_shape(chosen, config, arrays) -> tuple[int, ...]:
    size, channels = chosen.image_size(config), chosen.channels(config, arrays)
    if size == 0:
        return (channels,)
    return (*((size, size) if isinstance(size, int) else tuple(size)), channels)


def _shapes(module, chosen, config, arrays) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Return the shapes of the module's parameters by path."""
    x = jax.ShapeDtypeStruct((1, *_event_shape(chosen, config, arrays)), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), x, jnp.zeros(1))
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(variables["params"]).items()}
