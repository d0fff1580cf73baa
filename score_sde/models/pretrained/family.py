"""Interface of a family of pretrained networks: its config, its weights and their training setup."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from score_sde.errors import UserError, cut

# Parts of names that PyTorch adds for compiled, parallel and recomputed modules; no layer of a family has such a name.
WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


class Target(NamedTuple):
    """Process and parameterization that a network was trained with, named as in this project.

    Attributes:
      sde: Name of the SDE.
      sde_kwargs: Keyword arguments of the SDE.
      prediction: Target of the network's output.
      preconditioning: Scaling of the network's input and output.
      model_kwargs: Keyword arguments of the network that the preconditioning requires.
      sigma_data: Standard deviation of the data for the preconditioning; None if it has no such parameter.
    """

    sde: str
    sde_kwargs: dict[str, Any]
    prediction: str
    preconditioning: str
    model_kwargs: dict[str, Any]
    sigma_data: float | None = None


class Family(NamedTuple):
    """Functions that describe the configs and weights of a family of networks.

    Attributes:
      model: Function config -> (name, kwargs) of the network in this project.
      mappings: Function (config, arrays) -> {path of a parameter: WeightMapping}.
      target: Function config -> Target.
      arrays: Function content of a weight file -> arrays by name.
      unused: Function name -> whether the array is not a parameter of the network.
      image_size: Function config -> (height, width) in pixels; () for data that are vectors.
      channels: Function (config, arrays) -> number of channels of the images, or size of the vectors.
    """

    model: Callable
    mappings: Callable
    target: Callable
    arrays: Callable
    unused: Callable
    image_size: Callable
    channels: Callable


@contextmanager
def report_missing_keys(family: str) -> Iterator[None]:
    """Raise UserError if the code in the context misses an option of a network's config, or can't use its value."""
    try:
        yield
    except UserError:
        raise
    except KeyError as error:
        raise UserError(f"{family}: the network's config lacks {cut(str(error))}") from error
    except (ArithmeticError, AttributeError, IndexError, MemoryError, RecursionError, TypeError, ValueError) as error:
        raise UserError(f"{family}: no network can be built from its config: {cut(str(error), 200)}") from error


def require_option(family: str, config: Mapping[str, Any], **supported: tuple) -> None:
    """Raise UserError unless the options of a config have supported values.

    Args:
      family: Name of the family, for messages.
      config: Config of the network.
      **supported: Supported values by option, of which the first is the default of an option missing in the config.
    """
    for option, values in supported.items():
        given = config.get(option, values[0])
        if given not in values:
            accepted = " or ".join(map(repr, values))
            raise UserError(f"{family}: {option}={cut(repr(given))} is not covered, only {accepted}")


def refuse_unknown(family: str, config: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raise UserError if a config has options other than the known ones, unless their value is None."""
    known = {*known}
    unknown = [
        f"{name}={cut(repr(value))}" for name, value in config.items() if name not in known and value is not None
    ]
    if unknown:
        raise UserError(
            f"{family}: expected a config of known options, got {cut(', '.join(unknown), 300)}; remove options that "
            "the network doesn't depend on"
        )


def height_and_width(family: str, option: str, size: Any, square: bool = False) -> tuple[int, int]:
    """Return (height, width) from an option that is one number, or both unless only square images are supported."""
    sides = [size, size] if square or isinstance(size, int) else size
    if not isinstance(sides, list | tuple) or len(sides) != 2 or any(type(n) is not int or n < 1 for n in sides):
        kind = "a positive integer" if square else "a positive integer, or a height and a width"
        raise UserError(f"{family}: expected {option} to be {kind}, got {cut(repr(size))}")
    return sides[0], sides[1]


def unwrap(family: str, weights: Any) -> dict[str, Any]:
    """Return a state dict without the parts that PyTorch adds to the names of wrapped modules."""
    if not isinstance(weights, Mapping) or not all(isinstance(name, str) for name in weights):
        raise UserError(f"{family}: expected weights as a state dict, arrays by name")
    arrays: dict[str, Any] = {}
    for given, array in weights.items():
        name = ".".join(part for part in given.split(".") if part not in WRAPPERS)
        if name in arrays:
            raise UserError(f"{family}: expected one array {cut(name)}, got two, one of them with a prefix")
        arrays[name] = array
    return arrays
