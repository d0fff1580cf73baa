"""Moving averages of the parameters: of a fixed decay, and EDM2's of a length, which can be chosen afterwards.

Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models", Section 3: an average of
relative length s over a run of t steps weighs the parameters of step u by u^gamma, whose standard deviation is s t.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from score_sde.errors import UserError

LONGEST = 0.28  # the standard deviation of the weights u^0, all equal, is 1 / sqrt(12) = 0.289


class Averages(NamedTuple):
    """Which moving averages a run keeps beside its parameters."""

    decay: float = 0.9999  # of the average that is sampled
    decays: tuple[float, ...] = ()  # of further ones
    lengths: tuple[float, ...] = ()  # of power functions


def check_averages(averages: Averages) -> Averages:
    """Refuses what is no decay or length.

    Raises:
      UserError: with the numbers.
    """
    for name, decay in [("ema_decay", averages.decay), *(("ema_decays", decay) for decay in averages.decays)]:
        if not 0 <= decay < 1:
            raise UserError(f"need 0 <= {name} < 1, got {decay}", name)
    for length in averages.lengths:
        exponent(length, "ema_lengths")
    return averages


def check_choice(averages: Averages, decay: float, length: float, argument: str = "ema_decay") -> None:
    """Refuses to sample an average that the run doesn't keep.

    Raises:
      UserError: with those that there are.
    """
    if decay and decay not in averages.decays:
        kept = ", ".join(map(str, averages.decays)) or "none"
        raise UserError(
            f"no average of decay {decay} is kept beside training.ema_decay: ema_decays has {kept}", argument
        )
    if length:
        exponent(length)
    if length and decay:
        raise UserError("one of ema_decay and ema_length can be chosen, got both", "ema_decay", "ema_length")


def first_averages(averages: Averages, params: Any) -> dict[str, Any]:
    """All but the first, at the start: copies of the parameters, named by their place in the config."""
    names = [f"decay_{i}" for i in range(len(averages.decays))] + [f"length_{i}" for i in range(len(averages.lengths))]
    return {name: jax.tree.map(jnp.copy, params) for name in names}


def update(
    averages: Averages, kept: tuple[Any, dict[str, Any]], params: Any, step: jax.Array
) -> tuple[Any, dict[str, Any]]:
    """The averages after a step: (the first, the others).

    Args:
      averages: which they are.
      kept: (the first, the others) before.
      params: after the step.
      step: () how many steps were finished before it.
    """
    shares = {f"decay_{i}": fixed_share(decay, step) for i, decay in enumerate(averages.decays)}
    shares |= {f"length_{i}": power_share(exponent(length), step) for i, length in enumerate(averages.lengths)}
    first, others = kept
    moved = {name: optax.incremental_update(params, others[name], share) for name, share in shares.items()}
    return optax.incremental_update(params, first, fixed_share(averages.decay, step)), moved


def fixed_share(decay: float, step: jax.Array) -> jax.Array:
    """Of the new parameters: 1 - decay, the decay warmed up as min(decay, (1 + n) / (10 + n)) at step n."""
    return 1 - jnp.minimum(decay, (1.0 + step) / (10.0 + step))


def power_share(gamma: float, step: jax.Array) -> jax.Array:
    """Of the new parameters, 1 - (1 - 1 / t)^(gamma + 1) at the t-th step (Karras et al. 2024, Section 3.1)."""
    return -jnp.expm1((gamma + 1) * jnp.log1p(-1.0 / (step + 1.0)))  # log(0) at the first step: all of them


def exponent(length: float, argument: str = "ema_length") -> float:
    """The power gamma of an average of a relative length: length = sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3)).

    The largest root of (gamma + 2)^2 (gamma + 3) length^2 = gamma + 1 (Karras et al. 2024, Section 3.1).

    Raises:
      UserError: the length is out of range.
    """
    if not 0 < length <= LONGEST:
        raise UserError(f"an average's length is a share of the run, 0 < length <= {LONGEST}, got {length}", argument)
    inverse = length**-2
    return float(np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse]).real.max())


def reconstruction(steps: Sequence[int], lengths: Sequence[float], step: int, length: float) -> np.ndarray:
    """Weights (n,) of stored averages whose sum is nearest to the average of another length.

    Nearest as functions of time, by least squares (Karras et al. 2024, Section 3.2 and Algorithm 3): the stored average
    of step a and power p weighs time u by (p + 1) u^p / a^(p + 1) up to a, and the products of two such weights have a
    closed form. The weights are then divided by their sum, as in the authors' code, so that parameters that never move
    are their own average.

    Args:
      steps: when each was stored.
      lengths: of each.
      step: the time of the average that is wanted; every one of `steps` is at most that.
      length: its length.
    """
    times = np.array([*steps, step], np.float64) / step
    powers = np.array([exponent(each) for each in [*lengths, length]])
    early = np.minimum(times[:, None], times)
    own = (early / times[:, None]) ** powers[:, None]  # of the first at the end of the earlier: a share, so no overflow
    both = powers[:, None] + powers + 1
    products = own * own.T * early / np.outer(times, times) * np.outer(powers + 1, powers + 1) / both
    weights = np.linalg.lstsq(products[:-1, :-1], products[:-1, -1], rcond=None)[0]
    return weights / weights.sum()
