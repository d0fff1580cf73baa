"""Import of pretrained weights (score_sde, EDM, diffusers), and export of this project's weights.

    module, variables = pretrained.load("edm", "weights.safetensors", config)

Each family of networks has a file that describes the names and layouts of its layers.
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
from score_sde.models.pretrained import diffusers, edm, folders, native, score_sde
from score_sde.models.pretrained.family import Target, report_missing_keys
from score_sde.runtime import weight_files

MAX_LISTED = 1000  # entries of a list in a message
# Keyword arguments that are independent of the weights; the weights of a second time are zero where they are missing.
OVERRIDABLE = ("dtype", "remat", "dropout", "label_dropout", "two_times")
FAMILIES = {
    "score_sde": score_sde.FAMILY,
    "edm": edm.FAMILY,
    "diffusers": diffusers.FAMILY,
    "native": native.FAMILY,
}


def load(
    family: str, weights: Mapping[str, Any] | str | Path, config: Mapping[str, Any] | None = None, **options: Any
) -> tuple[nn.Module, dict[str, Any]]:
    """Load a network with pretrained weights.

    Args:
      family: Key of `FAMILIES`.
      weights: State dict of NumPy arrays with the library's names and layouts, or a path for `folders.read`.
      config: Options of the network with the library's names; None reads them from the file.
      **options: Attributes of the module that replace those of the config, such as dtype="bfloat16".

    Returns:
      (module, variables) for `module.apply(variables, x, noise_level, labels)`.

    Raises:
      UserError: if the file can't be read or has no config, the config has an option that is not covered, or weights
        are missing, superfluous or of another shape. The message lists all of these weights.
    """
    from score_sde.models import create

    spec = lookup("family", FAMILIES, family, "family")
    if isinstance(weights, str | Path):
        file = folders.read(weights)
        weights, config = file.arrays, file.config if config is None else config
    if config is None:
        raise UserError(
            f"family {family!r}: the weights come without the network's config; provide it in a sidecar file, named "
            'after the weights with .json added, with the content {"family": ..., "config": {...}}'
        )
    arrays = spec.arrays(weights)
    invalid = [name for name, array in arrays.items() if not hasattr(array, "shape")]
    if invalid:
        raise UserError(f"family {family!r}: expected arrays, got other values for {_join(map(str, invalid), ', ')}")
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    with report_missing_keys(family):
        name, kwargs = spec.model(config)
        module = create(name, **kwargs | options)
        return module, {"params": _load_parameters(family, spec, module, config, arrays)}


class PretrainedModel(NamedTuple):
    """Network, parameters and training setup from a file of weights.

    Attributes:
      name: Name of the network in `models.MODELS`.
      kwargs: Keyword arguments of the network.
      params: Parameters of the network.
      event_shape: Shape of one example.
      target: Process and parameterization that the network was trained with.
      objective: Training objective; "" if the file doesn't record it.
      scaling: Mean and standard deviation of the features before their standardization; () without it.
    """

    name: str
    kwargs: dict[str, Any]
    params: dict[str, Any]
    event_shape: tuple[int, ...]
    target: Target
    objective: str = ""
    scaling: tuple[Any, ...] = ()


def load_model(path: str, family: str = "", options: Mapping[str, Any] | None = None) -> PretrainedModel:
    """Load a network, its parameters and its training setup from a file or folder of weights.

    Args:
      path: Path for `folders.read`.
      family: Key of `FAMILIES`; "" reads it from the file.
      options: Keyword arguments of the network that replace those of the file.

    Raises:
      UserError: if `load` fails, or the file has no family and none is given.
    """
    file = folders.read(path)
    family = family or file.family or ""
    if not family:
        raise UserError(
            f"expected the family of the weights in {path}, which don't record it; known: {', '.join(FAMILIES)}",
            "family",
        )
    spec = lookup("family", FAMILIES, family, "family")
    _, variables = load(family, file.arrays, file.config)  # raises UserError without a config
    config = not_none(file.config)
    setup = target(family, config)
    name, kwargs = spec.model(config)
    kwargs = dict(kwargs) | setup.model_kwargs | dict(options or {})
    shape = _event_shape(spec, config, file.arrays)
    scaling = (config["mean"], config["std"]) if config.get("standardize") else ()
    return PretrainedModel(name, kwargs, variables["params"], shape, setup, str(config.get("objective", "")), scaling)


def target(family: str, config: Mapping[str, Any]) -> Target:
    """Return the SDE, prediction and preconditioning that a network was trained with.

    Args:
      family: Key of `FAMILIES`.
      config: Options of the network with the library's names.

    Raises:
      UserError: if the family is unknown, or the config has an option that is not covered.
    """
    spec = lookup("family", FAMILIES, family, "family")
    with report_missing_keys(family):
        return spec.target(config)


def save(path: str | Path, params: Any, model: Mapping[str, Any], process: Mapping[str, Any]) -> None:
    """Write parameters to a safetensors file for `load("native", path)`, under names like "down_0_0/conv_0/kernel".

    Args:
      path: Path of the file.
      params: Pytree of parameters.
      model: {"name", "kwargs", "prediction", "preconditioning"} of the network.
      process: {"sde": {"name", "kwargs"}, "image_size", "channels", "sigma_data", "objective"} of its training. Use
        (height, width) as image_size for images that aren't square, and 0 for vectors. With a discrete-time objective
        the network is defined only at discrete timesteps.
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
    """Compare the activations of each block with those of the other library, and print the differences.

    Args:
      family: Key of `FAMILIES`.
      weights: State dict or path; see `load`.
      config: Options of the network with the library's names.
      inputs: (x, noise_level) or (x, noise_level, labels) for this project's module.
      activations: Outputs of the library's modules by their names ("down_blocks.0.resnets.1"), in the layout (batch,
        channels, height, width) or (batch, height, width, channels). "" is the network's output.

    Returns:
      Maximum difference over the standard deviation by name, in the order of `activations`. It is NaN if there is no
      such block, or its shape differs.
    """
    module, variables = load(family, weights, config)
    output, state = jax.jit(partial(module.apply, capture_intermediates=True))(variables, *inputs)
    blocks = {name: values["__call__"][0] for name, values in state["intermediates"].items() if name != "__call__"}
    spec = FAMILIES[family]
    arrays = folders.read(weights).arrays if isinstance(weights, str | Path) else weights
    ours = {theirs: blocks[name] for name, theirs in _match_blocks(spec, config, arrays) if name in blocks} | {
        "": output
    }
    errors = {name: _relative_error(ours.get(name), np.asarray(value)) for name, value in activations.items()}
    width = max(map(len, errors), default=0)
    for name, error in errors.items():
        print(f"{name or 'output':{width}}  {error:.1e}")
    return errors


def _match_blocks(spec, config, weights):
    """Yield (our block, their block) in the order of the layers.

    If two of our blocks are one of theirs, the later one is last, and its output is the output of their block.
    """
    names: dict[str, list[list[str]]] = {}
    for path, mapping in spec.mappings(config, spec.arrays(weights)).items():
        names.setdefault(path[0], []).extend(name.split(".")[:-1] for name in mapping.names)
    for ours, theirs in names.items():
        common = itertools.takewhile(lambda keys: len(set(keys)) == 1, zip(*theirs, strict=False))
        yield ours, ".".join(keys[0] for keys in common)


def _relative_error(ours, theirs) -> float:
    if ours is not None and ours.shape != theirs.shape and theirs.ndim == 4:
        theirs = theirs.transpose(0, 2, 3, 1)
    if ours is None or ours.shape != theirs.shape:
        return float("nan")
    return float(np.abs(np.asarray(ours) - theirs).max() / theirs.std())


def _load_parameters(family, spec, module, config, arrays) -> dict[str, Any]:
    """Return the module's parameters, made from arrays of the library.

    Raises:
      UserError: if arrays are missing, superfluous or of another shape; the message lists all of them.
    """
    mappings = spec.mappings(config, arrays)
    shapes = _parameter_shapes(module, spec, config, arrays)
    problems, parameters, used = [], {}, set()
    for path, shape in shapes.items():
        mapping = mappings.get(path)
        if mapping is None:
            problems.append(f"missing: no weights for {'/'.join(path)} {shape}")
            continue
        used |= set(mapping.names)
        missing = [name for name in mapping.names if name not in arrays]
        if missing:
            problems.append(f"missing: {', '.join(missing)} for {'/'.join(path)} {shape}")
            continue
        parameters[path], problem = _transform(mapping, [arrays[name] for name in mapping.names], shape)
        if problem:
            problems.append(f"misshapen: {problem} for {'/'.join(path)} {shape}")
    extra = [name for name in arrays if name not in used and not spec.unused(name)]
    problems += [f"extra: {name} {arrays[name].shape}" for name in extra]
    if problems:
        raise UserError(
            f"family {family!r}: the weights don't fit the network that the config describes:\n  "
            + _join(problems, "\n  ", 300)
        )
    return traverse_util.unflatten_dict(parameters)


def _join(entries: Iterable[str], separator: str, length: int = 80) -> str:
    """Join at most MAX_LISTED entries, each cut to a length, and append the number of further ones."""
    entries = [cut(text, length) for text in entries]
    more = [f"and {len(entries) - MAX_LISTED:,} more"] if len(entries) > MAX_LISTED else []
    return separator.join([*entries[:MAX_LISTED], *more])


def _transform(mapping, arrays, shape):
    """Return a parameter, computed in float32 at least, and None, or its arrays' names and shapes if they don't fit."""
    given = ", ".join(f"{name} {array.shape}" for name, array in zip(mapping.names, arrays, strict=True))
    arrays = [array.astype(np.promote_types(array.dtype, np.float32), copy=False) for array in arrays]
    try:
        parameter = np.asarray(mapping.transform(*arrays), np.float32)
    except (ValueError, IndexError):
        return None, given
    return parameter, given if parameter.shape != shape else None


def _event_shape(spec, config, arrays) -> tuple[int, ...]:
    """Return the shape of one example."""
    return (*spec.image_size(config), spec.channels(config, arrays))


def _parameter_shapes(module, spec, config, arrays) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Return the shapes of the module's parameters by path."""
    x = jax.ShapeDtypeStruct((1, *_event_shape(spec, config, arrays)), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), x, jnp.zeros(1))
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(variables["params"]).items()}
