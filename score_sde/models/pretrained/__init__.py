"""Weights that exist: networks of other libraries, as networks here, and ours written for others.

    module, variables = pretrained.load("edm", "weights.safetensors", config)

A family says how its layers are named and laid out, in a file of its own; `load` is the same for all.
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
from score_sde.models.pretrained.family import Target, complete
from score_sde.runtime import weight_files

NAMED = 1000  # of what is wrong with weights, at most
FREE = ("dtype", "remat", "dropout", "label_dropout")  # keyword arguments that weights don't decide
FAMILIES = {
    "score_sde": score_sde.FAMILY,
    "edm": edm.FAMILY,
    "diffusers": diffusers.FAMILY,
    "native": native.FAMILY,
}


def load(
    family: str, weights: Mapping[str, Any] | str | Path, config: Mapping[str, Any] | None = None, **options: Any
) -> tuple[nn.Module, dict[str, Any]]:
    """A network with the weights of another library: a module and its variables, like any other here.

    Args:
      family: a key of `FAMILIES`.
      weights: names to NumPy arrays, a state dict in the library's own names and layouts; or a path that
        `weight_files.read`
        reads.
      config: the options of the network in the library's own names; None: what the file says of itself.
      **options: attributes of the module to be set otherwise, as dtype="bfloat16".

    Returns:
      (module, variables): module.apply(variables, x, noise_level, labels) for x (batch, height, width, channels).

    Raises:
      UserError: the file can't be read or says no config, the config asks for what is not covered, or weights are
        missing, left over or of another shape; all of them are named.
    """
    from score_sde.models import create

    chosen = lookup("family", FAMILIES, family, "family")
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
    with complete(family):
        name, kwargs = chosen.model(config)
        module = create(name, **kwargs | options)
        return module, {"params": _parameters(family, chosen, module, config, arrays)}


class Adopted(NamedTuple):
    """A network for a config: all that its weights decide."""

    name: str
    kwargs: dict[str, Any]
    params: dict[str, Any]
    event_shape: tuple[int, ...]  # of one example
    target: Target
    objective: str = ""  # the training objective, where the weights record it


def adopt(path: str, family: str = "", options: Mapping[str, Any] | None = None) -> Adopted:
    """What a run needs of pretrained weights; options are set in the network's keyword arguments.

    Raises:
      UserError: as of `load`, or nothing says of which family the weights are.
    """
    found = weight_files.read(path)
    family = family or found.family or ""
    if not family:
        known = ", ".join(FAMILIES)
        raise UserError(f"of which family are the weights in {path}? Set --config.model.family to one of {known}")
    chosen = lookup("family", FAMILIES, family, "family")
    _, variables = load(family, found.arrays, found.config)  # which refuses weights without a config
    config = not_none(found.config)
    aim = target(family, config)
    name, kwargs = chosen.model(config)
    kwargs = dict(kwargs) | aim.model_kwargs | dict(options or {})
    shape = _event_shape(chosen, config, found.arrays)
    return Adopted(name, kwargs, variables["params"], shape, aim, str(config.get("objective", "")))


def target(family: str, config: Mapping[str, Any]) -> Target:
    """The SDE, prediction and preconditioning that a network was trained for."""
    chosen = lookup("family", FAMILIES, family, "family")
    with complete(family):
        return chosen.target(config)


def save(path: str | Path, params: Any, model: Mapping[str, Any], process: Mapping[str, Any]) -> None:
    """Writes parameters as safetensors, "down_0_0/conv_0/kernel" and so on, for `load("native", path)`.

    Args:
      path: the file.
      params: a tree of parameters.
      model: {"name", "kwargs", "prediction", "preconditioning"}.
      process: {"sde": {"name", "kwargs"}, "image_size", "channels", "sigma_data", "objective"}: what it was trained
        for, image_size 0 for vectors. A discrete-time objective says that the network knows a chain's steps only.
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
    """Prints how far each block here is from what the other library computed; for finding where two networks part.

    Args:
      family, weights, config: as for `load`.
      inputs: (x, noise_level) or (x, noise_level, labels), as the module here takes them.
      activations: what the library's modules returned, by their names there ("down_blocks.0.resnets.1"), in its layout
        (batch, channels, height, width) or ours; "" is the network's output.

    Returns:
      The largest difference over the standard deviation, by name, in the order given; NaN for a name that is no block
      here, or whose shape differs.
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
    """(our block, theirs) in the order of the layers; where two blocks of ours are one of theirs, the later ends it."""
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


def _listed(found: Iterable[str], separator: str, length: int = 80) -> str:
    """The first of what was found in a file, each cut to a length, and how many more there are."""
    found = [cut(text, length) for text in found]
    more = [f"and {len(found) - NAMED:,} more"] if len(found) > NAMED else []
    return separator.join([*found[:NAMED], *more])


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
    """The module's parameters by path."""
    x = jax.ShapeDtypeStruct((1, *_event_shape(chosen, config, arrays)), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), x, jnp.zeros(1))
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(variables["params"]).items()}
