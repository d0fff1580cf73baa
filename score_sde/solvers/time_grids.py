"""Grids of times, from the prior down to the data."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from score_sde.errors import UserError, build, lookup
from score_sde.sde import SDE, t_from_log_snr

MAX_NOISE_LEVEL = (
    80.0  # sigma / alpha from which noise levels are counted where the SDE's own is infinite (EDM's largest)
)


def uniform():
    """Equal steps in t."""
    return lambda sde, t_min, fraction: sde.t_max + fraction * (t_min - sde.t_max)


def quadratic():
    """Equal steps in sqrt(t), finer towards the data (Song et al. 2021, "Denoising Diffusion Implicit Models", D.2)."""
    return lambda sde, t_min, fraction: (np.sqrt(sde.t_max) + fraction * (np.sqrt(t_min) - np.sqrt(sde.t_max))) ** 2


def karras(rho: float = 7.0):
    """Equal steps in (sigma / alpha)^(1 / rho) (Karras et al. 2022, eq. 5); 1 is uniform in sigma / alpha.

    Where alpha = 0 at t_max, so that sigma / alpha is infinite, the levels are counted from 80 and the first time is
    t_max itself: the first step then doesn't shrink as steps are added.

    Raises:
      UserError: rho is not positive.
    """
    if rho <= 0:
        raise UserError(f"karras: need rho > 0, got {rho}", "rho")

    def place(sde, t_min, fraction):
        first, last = (level ** (1 / rho) for level in _noise_levels(sde, t_min))
        return _times_of(sde, -2 * rho * np.log(first + fraction * (last - first)))

    return place


def log_snr():
    """Equal steps in log-SNR (Lu et al. 2022, "DPM-Solver", Section 3.4); the first as in `karras`."""

    def place(sde, t_min, fraction):
        first, last = np.log(_noise_levels(sde, t_min))
        return _times_of(sde, -2 * (first + fraction * (last - first)))

    return place


SPACINGS = {"uniform": uniform, "quadratic": quadratic, "karras": karras, "log_snr": log_snr}
ENDS = ("t_min", "zero")


def max_noise_level(sde: SDE) -> float:
    """sigma / alpha at t_max, or 80 where that is infinite."""
    with np.errstate(divide="ignore"):
        level = float(_on_host(sde.sigma, sde.t_max) / _on_host(sde.alpha, sde.t_max))
    return level if np.isfinite(level) else MAX_NOISE_LEVEL


def _noise_levels(sde: SDE, t_min: float) -> np.ndarray:
    """sigma / alpha at the first and the last time."""
    return np.array([max_noise_level(sde), _on_host(sde.sigma, t_min) / _on_host(sde.alpha, t_min)])


def _times_of(sde: SDE, level: np.ndarray) -> np.ndarray:
    return _on_host(lambda level: t_from_log_snr(sde, level), level)


def _on_host(function, argument: np.ndarray | float) -> np.ndarray:
    """A function of JAX in float64, so that a fine grid keeps its steps apart."""
    with jax.enable_x64(True), jax.ensure_compile_time_eval():
        return np.array(function(jnp.asarray(argument, jnp.float64)))


def time_grid(
    sde: SDE,
    num_steps: int,
    spacing: str = "uniform",
    end: str = "t_min",
    t_min: float | None = None,
    spacing_kwargs: Mapping[str, Any] | None = None,
) -> np.ndarray:
    """The times of num_steps steps from sde.t_max down.

    Args:
      sde: the forward process.
      num_steps: the number of steps; at least 1.
      spacing: a key of `SPACINGS`.
      end: "t_min", or "zero": the last step goes from t_min to 0, as Karras et al. 2022 do (where sigma(0) = 0 `solve`
        makes it x = E[x0 | x]).
      t_min: where the noise is taken to end; None: sde.t_min.
      spacing_kwargs: of the spacing's function, as {"rho": 7.0}.

    Returns:
      (num_steps + 1,) strictly descending, in float64 on the host, so that `solve` can check them before it compiles.

    Raises:
      UserError: num_steps is below 1, t_min is out of range, or spacing, its arguments or end are unknown.
    """
    if num_steps < 1:
        raise UserError(f"a grid needs at least 1 step, got {num_steps}", "num_steps")
    t_min = sde.t_min if t_min is None else t_min
    if not 0 < t_min < sde.t_max and not (t_min == 0 == sde.t_min):
        raise UserError(f"a grid needs 0 < t_min < {sde.t_max}, got t_min={t_min}")
    place = build("spacing", SPACINGS, spacing, dict(spacing_kwargs or {}))
    to_zero = lookup("end of a grid", {name: name == "zero" for name in ENDS}, end, "end")
    to_zero = to_zero and t_min > 0
    if to_zero and num_steps == 1:
        return np.array([sde.t_max, 0.0])
    times = place(sde, t_min, np.linspace(0.0, 1.0, num_steps + (not to_zero)))
    times[0], times[-1] = sde.t_max, t_min  # exactly
    return np.append(times, 0.0) if to_zero else times


def snap_to_timesteps(times: np.ndarray, num_indices: int) -> np.ndarray:
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
            f"a chain of {num_indices} indices has no grid of {len(times) - 1} steps: at most {last}", "num_steps"
        )
    rank = np.arange(len(times))
    index = np.rint(times[::-1] * last).astype(int)
    index = np.maximum.accumulate(index - rank) + rank  # each above the one before ...
    return (np.minimum(index, last - rank[::-1]) / last)[::-1]  # ... with room for those that follow
