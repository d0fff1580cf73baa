"""Langevin dynamics at one noise level: correctors, and annealed Langevin dynamics on a grid of levels."""

import jax.numpy as jnp

from score_sde.errors import UserError, lookup
from score_sde.parameterization import score_fn
from score_sde.randomness import noise, split_rng
from score_sde.sde import lift
from score_sde.solvers.base import OneStepState, Solver

NORMS = ("example", "batch")


def langevin(snr: float = 0.16, num_steps: int = 1, norms: str = "example") -> Solver:
    """Return Langevin steps at t_next of normalized size; num_steps NFE (Song et al. 2021, Algorithms 4 and 5).

        x <- x + epsilon score + sqrt(2 epsilon) z,    epsilon = 2 a (snr |z| / |score|)^2

    The step size h of `energy.langevin` is 2 epsilon.

    For ve a = 1 (Algorithm 4). For vp Algorithm 5 has a = alpha_i = 1 - beta_i of a discrete schedule, and the
    published code uses a schedule of 1,000 timesteps for any grid. Here a = (alpha(t) / alpha(t_next))^2, the alpha_i
    of the current grid. It equals alpha_i on the timesteps of the schedule and 1 for ve, and tends to 1 as the grid is
    refined.

    For data N(0, s^2 I) in many dimensions the stationary distribution is N(0, s^2 (1 + a snr^2) I). In d dimensions
    the step size grows with |z|, which widens the distribution by a factor of about (d + 2) / (d - 2): E[1 / |x|^2] is
    1 / ((d + 2) s^2) instead of 1 / ((d - 2) s^2). `annealed_langevin` is better in few dimensions.

    Args:
      snr: Signal-to-noise ratio r of the paper, positive.
      num_steps: Number of Langevin steps per noise level, at least 1.
      norms: "example" for |z| and |score| of each example, or "batch" for their means over the batch, as in the
        published code, which makes a sample depend on its batch.

    Raises:
      UserError: if snr or num_steps is out of range, or norms is unknown.
    """
    _check("langevin", snr, num_steps)
    average = lookup("norms", {"example": False, "batch": True}, norms, "norms")

    def norm(x):
        example_norms = jnp.sqrt(jnp.sum(x**2, axis=tuple(range(1, x.ndim))))
        return jnp.mean(example_norms) if average else example_norms

    def step_size(sde, score, z, t, t_next):
        score_norm = norm(score)
        score_norm = jnp.where(score_norm > 0, score_norm, jnp.inf)  # no step at a mode
        return 2 * _grid_alpha(sde, t, t_next) * (snr * norm(z) / score_norm) ** 2

    return _dynamics(step_size, num_steps)


def annealed_langevin(snr: float = 0.16, num_steps: int = 1) -> Solver:
    """Return Langevin steps at t_next with epsilon = 2 a (snr sigma)^2; num_steps NFE.

    Song and Ermon 2019, Algorithm 1; "ald" in the code of Song et al. 2021. See `langevin` for arguments and errors.
    """
    _check("annealed_langevin", snr, num_steps)

    def step_size(sde, score, z, t, t_next):
        return 2 * _grid_alpha(sde, t, t_next) * (snr * sde.sigma(t_next)) ** 2

    return _dynamics(step_size, num_steps)


def _grid_alpha(sde, t, t_next):
    """Return a of `langevin`, the alpha_i of the grid."""
    return (sde.alpha(t) / sde.alpha(t_next)) ** 2


def _dynamics(step_size, num_steps: int) -> Solver:
    """Return the solver of x <- x + epsilon score + sqrt(2 epsilon) z."""

    def step(sde, denoiser, state, t, t_next, rng):
        x = state.x
        for step_rng in split_rng(rng, num_steps):
            score, z = score_fn(denoiser, sde)(x, t_next), noise(step_rng, x)
            epsilon = lift(step_size(sde, score, z, t, t_next), x)
            x = x + epsilon * score + jnp.sqrt(2 * epsilon) * z
        return OneStepState(x)

    return Solver(init=OneStepState, step=step, nfe_per_step=num_steps, stochastic=True, reverse_sde=False)


def _check(name: str, snr: float, num_steps: int) -> None:
    if not (snr > 0 and isinstance(num_steps, int) and num_steps >= 1):
        raise UserError(f"{name}: expected snr > 0 and num_steps >= 1, got snr={snr}, num_steps={num_steps}")
