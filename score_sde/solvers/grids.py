"""Grids of times, from the prior down to the data."""

import numpy as np

from score_sde.errors import UserError, lookup
from score_sde.sde import SDE


def uniform(sde: SDE, fraction: np.ndarray) -> np.ndarray:
    """Equal steps in t."""
    return sde.t_max + fraction * (sde.t_min - sde.t_max)


def quadratic(sde: SDE, fraction: np.ndarray) -> np.ndarray:
    """Equal steps in sqrt(t), finer towards the data (Song et al. 2021, "Denoising Diffusion Implicit Models", D.2)."""
    return (np.sqrt(sde.t_max) + fraction * (np.sqrt(sde.t_min) - np.sqrt(sde.t_max))) ** 2


SPACINGS = {"uniform": uniform, "quadratic": quadratic}


def time_grid(sde: SDE, num_steps: int, spacing: str = "uniform") -> np.ndarray:
    """The times of num_steps steps from sde.t_max to sde.t_min.

    Args:
      sde: the forward process.
      num_steps: the number of steps; at least 1.
      spacing: a key of `SPACINGS`.

    Returns:
      (num_steps + 1,) strictly descending, in float64 on the host, so that `solve` can check them before it compiles.

    Raises:
      UserError: num_steps is below 1 or the spacing is unknown.
    """
    if num_steps < 1:
        raise UserError(f"a grid needs at least 1 step, got {num_steps} (set --config.sampling.num_steps)")
    place = lookup("spacing", SPACINGS, spacing, "--config.sampling.spacing")
    times = place(sde, np.linspace(0.0, 1.0, num_steps + 1))
    times[0], times[-1] = sde.t_max, sde.t_min  # exactly
    return times


def to_chain(times: np.ndarray, num_indices: int) -> np.ndarray:
    """Moves the times of a grid to those of a chain, n / (num_indices - 1), the nearest that leave no two the same.

    Args:
      times: (num_steps + 1,) descending in [0, 1].
      num_indices: the chain's number of steps.

    Raises:
      UserError: the grid has more times than the chain.
    """
    last = num_indices - 1
    if len(times) > num_indices:
        raise UserError(
            f"a chain of {num_indices} indices has no grid of {len(times) - 1} steps: at most {last} "
            "(set --config.sampling.num_steps)"
        )
    rank = np.arange(len(times))
    index = np.rint(times[::-1] * last).astype(int)
    index = np.maximum.accumulate(index - rank) + rank  # each above the one before ...
    return (np.minimum(index, last - rank[::-1]) / last)[::-1]  # ... with room for those that follow
