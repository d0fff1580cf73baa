"""The interface of a family of pretrained networks."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from score_sde.errors import UserError, cut


class Target(NamedTuple):
    """The training setup of a network, in the terms of a config.

    Attributes:
      sde: Name of the SDE.
      sde_kwargs: Keyword arguments of the SDE.
      prediction: What the network estimates.
      preconditioning: Preconditioning of the network.
      model_kwargs: Keyword arguments of the network that the preconditioning requires.
      sigma_data: Standard deviation of the data, None if the preconditioning has none.
    """

    sde: str
    sde_kwargs: dict[str, Any]
    prediction: str
    preconditioning: str
    model_kwargs: dict[str, Any]
    sigma_data: float | None = None


class Family(NamedTuple):
    """The functions that describe a family.

    Attributes:
      model: config -> (name, kwargs) of the network in `models.MODELS`.
      sources: (config, names of the weights) -> {path of a parameter: WeightMapping}.
      target: config -> Target.
      arrays: Contents of a file -> arrays by name.
      unused: Name of an array -> whether it is not a parameter of the network.
      image_size: config -> height and width of the images; 0 for vectors.
      channels: (config, arrays) -> number of channels.
    """

    model: Callable
    sources: Callable
    target: Callable
    arrays: Callable
    unused: Callable
    image_size: Callable
    channels: Callable


@contextmanager
def report_missing_keys(family: str) -> Iterator[None]:
    """Raise UserError if a network's config lacks an option or has one of another type."""
    try:
        yield
    except UserError:
        raise
    except KeyError as error:
        raise UserError(f"{family}: the network's config lacks {cut(str(error))}") from error
    except (ArithmeticError, AttributeError, IndexError, MemoryError, RecursionError, TypeError, ValueError) as error:
        raise UserError(f"{family}: no network can be built from its config: {cut(str(error), 200)}") from error


def require_option(family: str, config: Mapping[str, Any], **known: tuple) -> None:
    """Raise UserError unless options have a known value; missing options have their first, which is the default."""
    for option, values in known.items():
        given = config.get(option, values[0])
        if given not in values:
            accepted = " or ".join(map(repr, values))
            raise UserError(f"{family}: {option}={cut(repr(given))} is not covered, only {accepted}")
