"""Time grids, from the prior to the data."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from score_sde.errors import UserError, build, lookup
from score_sde.sde import SDE, t_from_log_snr

MAX_NOISE_LEVEL = 80.0  # sigma / alpha at the start of a grid if that of the SDE is infinite (sigma_max of EDM)


def uniform():
    """Return the spacing that is uniform in t."""
    return lambda sde, t_min, fraction: sde.t_max + fraction * (t_min - sde.t_max)


def quadratic():
    """Return the spacing that is uniform in sqrt(t) (Song et al. 2020, "Denoising Diffusion Implicit Models", D.2)."""
    return lambda sde, t_min, fraction: (np.sqrt(sde.t_max) + fraction * (np.sqrt(t_min) - np.sqrt(sde.t_max))) ** 2


def karras(rho: float = 7.0):
    """Return the spacing that is uniform in (sigma / alpha)^(1 / rho) (Karras et al. 2022, eq. 5).

    If alpha = 0 at t_max, sigma / alpha is infinite there. Then the levels start at 80 and the first time is t_max, so
    that the first step does not shrink as the grid is refined.

    Args:
      rho: Exponent, positive; 1 is uniform in sigma / alpha.

    Raises:
      UserError: if rho is not positive.
    """
    if rho <= 0:
        raise UserError(f"karras: expected rho > 0, got {rho}", "rho")

    def times_at(sde, t_min, fraction):
        first, last = (level ** (1 / rho) for level in _noise_levels(sde, t_min))
        return _times_of(sde, -2 * rho * np.log(first + fraction * (last - first)))

    return times_at


def log_snr():
    """Return the spacing that is uniform in log-SNR (Lu et al. 2022, "DPM-Solver", Section 3.4).

    See `karras` for the first step if alpha = 0 at t_max.
    """

    def times_at(sde, t_min, fraction):
        first, last = np.log(_noise_levels(sde, t_min))
        return _times_of(sde, -2 * (first + fraction * (last - first)))

    return times_at


SPACINGS = {"uniform": uniform, "quadratic": quadratic, "karras": karras, "log_snr": log_snr}
ENDS = ("t_min", "zero")


def max_noise_level(sde: SDE) -> float:
    """Return sigma / alpha at t_max, or 80 if it is infinite."""
    with np.errstate(divide="ignore"):
        level = float(_on_host(sde.sigma, sde.t_max) / _on_host(sde.alpha, sde.t_max))
    return level if np.isfinite(level) else MAX_NOISE_LEVEL


def _noise_levels(sde: SDE, t_min: float) -> np.ndarray:
    """Return sigma / alpha at the first and the last time."""
    return np.array([max_noise_level(sde), _on_host(sde.sigma, t_min) / _on_host(sde.alpha, t_min)])


def _times_of(sde: SDE, level: np.ndarray) -> np.ndarray:
    padded = np.pad(level, (0, -len(level) % 256), mode="edge")  # grids of different lengths share compiled operations
    return _on_host(lambda level: t_from_log_snr(sde, level), padded)[: len(level)]


def _on_host(function, argument: np.ndarray | float) -> np.ndarray:
    """Evaluate a JAX function in float64, so that the times of a fine grid are distinct."""
    with jax.enable_x64(True), jax.ensure_compile_time_eval():
        return np.array(function(jnp.asarray(argument, jnp.float64)))


def time_grid(
    sde: SDE,
    num_steps: int,
    spacing: str = "uniform",
    end: str = "t_min",
    t_min: float | None = None,
    spacing_kwargs: Mapping[str, Any] | None = None,
    t_max: float | None = None,
) -> np.ndarray:
    """Return strictly descending times, (num_steps + 1,).

    Args:
      sde: Forward process.
      num_steps: Number of steps, at least 1.
      spacing: Spacing, a key of `SPACINGS`.
      end: "t_min", or "zero" for a last step from t_min to 0 as in Karras et al. 2022. If sigma(0) = 0, `solve` makes
        it x = E[x0 | x], or, for a flow map, the jump to t_min.
      t_min: Last time with noise; None is sde.t_min.
      spacing_kwargs: Keyword arguments of the spacing, for example {"rho": 7.0}.
      t_max: First time; None is sde.t_max.

    Returns:
      Times in float64 on the host, so that `solve` can check them before it is compiled.

    Raises:
      UserError: if num_steps is below 1, t_min or t_max is out of range, or spacing, its arguments or end are unknown.
    """
    if num_steps < 1:
        raise UserError(f"time_grid: expected num_steps >= 1, got {num_steps}", "num_steps")
    t_min = sde.t_min if t_min is None else t_min
    if t_max is not None:
        if not 0 < t_max <= sde.t_max:
            raise UserError(f"time_grid: expected 0 < t_max <= {sde.t_max}, got {t_max}", "t_max")
        sde = sde._replace(t_max=t_max)
    if not 0 < t_min < sde.t_max and not (t_min == 0 == sde.t_min):
        raise UserError(f"time_grid: expected 0 < t_min < {sde.t_max}, got {t_min}", "t_min")
    times_at = build("spacing", SPACINGS, spacing, dict(spacing_kwargs or {}))
    to_zero = lookup("end of a grid", {name: name == "zero" for name in ENDS}, end, "end")
    to_zero = to_zero and t_min > 0
    if to_zero and num_steps == 1:
        return np.array([sde.t_max, 0.0])
    times = times_at(sde, t_min, np.linspace(0.0, 1.0, num_steps + (not to_zero)))
    times[0], times[-1] = sde.t_max, t_min  # without rounding
    return np.append(times, 0.0) if to_zero else times


def snap_to_timesteps(times: np.ndarray, num_indices: int) -> np.ndarray:
    """Round times to distinct multiples of 1 / (num_indices - 1), the times of a discrete schedule.

    Args:
      times: Descending times in [0, 1], (num_steps + 1,).
      num_indices: Number of timesteps of the schedule.

    Raises:
      UserError: if there are more times than timesteps.
    """
    last = num_indices - 1
    if len(times) > num_indices:
        raise UserError(
            f"time_grid: expected at most {last} steps for a schedule of {num_indices} timesteps, got {len(times) - 1}",
            "num_steps",
        )
    rank = np.arange(len(times))
    index = np.rint(times[::-1] * last).astype(int)
    index = np.maximum.accumulate(index - rank) + rank  # increasing ...
    return (np.minimum(index, last - rank[::-1]) / last)[::-1]  # ... and small enough for the following ones
