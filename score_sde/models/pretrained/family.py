"""What a family of networks has to say for its weights to be loaded."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from score_sde.errors import UserError, cut


class Target(NamedTuple):
    """The process and prediction that a network was trained for, in the words of a config."""

    sde: str
    sde_kwargs: dict[str, Any]
    prediction: str
    preconditioning: str
    model_kwargs: dict[str, Any]  # that the preconditioning makes necessary
    sigma_data: float | None = None  # of the preconditioning; None: it has none


class Family(NamedTuple):
    """One family."""

    model: Callable  # config -> (name, kwargs) of the network here
    sources: Callable  # (config, names of the weights) -> {path of a parameter: Source}
    target: Callable  # config -> Target
    arrays: Callable  # what a file holds -> names to arrays
    unused: Callable  # name -> whether an array of this name is none of the network's parameters
    image_size: Callable  # config -> height and width; 0: the data are not images but vectors
    channels: Callable  # (config, arrays) -> of the images


@contextmanager
def complete(family: str) -> Iterator[None]:
    """Raises a `UserError` where the config of a network lacks an option, or where one is of another type."""
    try:
        yield
    except UserError:
        raise
    except KeyError as error:
        raise UserError(f"{family}: the network's config lacks {cut(str(error))}") from error
    except (ArithmeticError, AttributeError, IndexError, MemoryError, RecursionError, TypeError, ValueError) as error:
        raise UserError(f"{family}: no network can be built from its config: {cut(str(error), 200)}") from error


def insist(family: str, config: Mapping[str, Any], **known: tuple) -> None:
    """Refuses options that no network here has; an option that the config lacks is held to be usual."""
    for option, values in known.items():
        given = config.get(option, values[0])
        if given not in values:
            accepted = " or ".join(map(repr, values))
            raise UserError(f"{family}: {option}={cut(repr(given))} is not covered, only {accepted}")
