"""Langevin dynamics at one noise level: correctors, and with a grid of levels annealed Langevin dynamics."""

import jax.numpy as jnp

from score_sde.errors import UserError, lookup
from score_sde.parameterization import score_fn
from score_sde.randomness import noise, split_rng
from score_sde.sde import lift
from score_sde.solvers.base import OneStepState, Solver

NORMS = ("example", "batch")


def langevin(snr: float = 0.16, num_steps: int = 1, norms: str = "example") -> Solver:
    """Langevin steps at t_next, their size set by norms; num_steps NFE (Song et al. 2021, Algorithms 4 and 5).

    x <- x + step score + sqrt(2 step) z,   step = 2 a (snr |z| / |score|)^2

    so that |score part| / |noise part| = snr sqrt(a). a is 1 for ve (Algorithm 4). For vp the paper's Algorithm 5 has
    a = alpha_i = 1 - beta_i of a chain, and the published code reads alpha_i from a chain of 1,000 steps, however many
    are taken. Here it is that of the grid at hand: one step of a chain keeps x_i = sqrt(alpha_i) x_(i-1) + noise, so
    the interval from t down to t_next keeps a = (alpha(t) / alpha(t_next))^2, which is alpha_i on the chain's own grid,
    1 for ve, and tends to 1 as the grid is refined. Of N(0, s^2) in many dimensions such steps make N(0, s^2 (1 + a
    snr^2)). In d dimensions a long |z| also makes its own step long: what is stationary then has E[1 / |x|^2] = 1 /
    ((d + 2) s^2) in place of 1 / ((d - 2) s^2), wider by a factor of about (d + 2) / (d - 2). For few dimensions take
    `annealed_langevin`. Here step multiplies the score; the step size h of `energy.langevin` is twice that.

    Args:
      snr: the ratio of the two parts; positive.
      num_steps: Langevin steps at each level; at least 1.
      norms: "example": each example's own |z| and |score|; "batch": their means over the batch, as the published code
        has it, so that a sample depends on its batch.

    Raises:
      UserError: snr or num_steps is out of range, or norms is unknown.
    """
    _check("langevin", snr, num_steps)
    average = lookup("norms", {"example": False, "batch": True}, norms, "norms")

    def norm(x):
        each = jnp.sqrt(jnp.sum(x**2, axis=tuple(range(1, x.ndim))))
        return jnp.mean(each) if average else each

    def size(sde, score, z, t, t_next):
        length = norm(score)
        length = jnp.where(length > 0, length, jnp.inf)  # at a mode there is no direction to go
        return 2 * _kept(sde, t, t_next) * (snr * norm(z) / length) ** 2

    return _dynamics(size, num_steps)


def annealed_langevin(snr: float = 0.16, num_steps: int = 1) -> Solver:
    """As `langevin` with step = 2 a (snr sigma)^2, no norms (Song and Ermon 2019, Algorithm 1; score_sde's "ald")."""
    _check("annealed_langevin", snr, num_steps)

    def size(sde, score, z, t, t_next):
        return 2 * _kept(sde, t, t_next) * (snr * sde.sigma(t_next)) ** 2

    return _dynamics(size, num_steps)


def _kept(sde, t, t_next):
    return (sde.alpha(t) / sde.alpha(t_next)) ** 2


def _dynamics(size, num_steps: int) -> Solver:
    def step(sde, denoiser, state, t, t_next, rng):
        x = state.x
        for part in split_rng(rng, num_steps):
            score, z = score_fn(denoiser, sde)(x, t_next), noise(part, x)
            length = lift(size(sde, score, z, t, t_next), x)
            x = x + length * score + jnp.sqrt(2 * length) * z
        return OneStepState(x)

    return Solver(init=OneStepState, step=step, nfe_per_step=num_steps, stochastic=True)


def _check(name: str, snr: float, num_steps: int) -> None:
    if not (snr > 0 and isinstance(num_steps, int) and num_steps >= 1):
        raise UserError(f"{name}: need snr > 0 and num_steps >= 1, got snr={snr}, num_steps={num_steps}")
