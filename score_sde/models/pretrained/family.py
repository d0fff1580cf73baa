"""Interface of a family of pretrained networks: its config, its weights and their training setup."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from score_sde.errors import UserError, cut


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
      image_size: Function config -> height and width in pixels; 0 for data that are vectors.
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
