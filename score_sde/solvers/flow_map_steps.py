"""Jumps of a flow map along a grid."""

import jax.numpy as jnp

from score_sde.errors import UserError
from score_sde.flow_map import jump
from score_sde.randomness import noise
from score_sde.sde import t_from_log_snr
from score_sde.solvers.base import OneStepState, Solver


def flow_map_steps(gamma: float = 0.0) -> Solver:
    """Return jumps of a flow map from each time of the grid to the next; 1 NFE per step.

    With gamma > 0 a step jumps beyond the next time, to sqrt(1 - gamma^2) times its sigma / alpha, and adds noise up to
    it (Kim et al. 2024, "Consistency Trajectory Models", Algorithm 4). gamma = 1 jumps to the data and is the multistep
    sampling of consistency models (Song et al. 2023, Algorithm 1).

    Args:
      gamma: Share of new noise in [0, 1]; 0 is deterministic.

    Raises:
      UserError: if gamma is outside [0, 1].
    """
    if not 0.0 <= gamma <= 1.0:
        raise UserError(f"flow_map_steps: expected 0 <= gamma <= 1, got {gamma}", "gamma")

    def step(sde, flow_map, state, t, t_next, rng):
        if gamma == 0.0:
            return OneStepState(jump(flow_map, sde, state.x, t, t_next))
        alpha, sigma = sde.alpha(t_next), sde.sigma(t_next)
        ratio = jnp.maximum(jnp.sqrt(1 - gamma**2) * sigma / alpha, sde.sigma(sde.t_min) / sde.alpha(sde.t_min))
        r = t_from_log_snr(sde, -2 * jnp.log(ratio))
        x = alpha / sde.alpha(r) * jump(flow_map, sde, state.x, t, r)
        added = jnp.sqrt(jnp.maximum(sigma**2 - (alpha * ratio) ** 2, 0.0))
        return OneStepState(x + added * noise(rng, state.x))

    return Solver(init=OneStepState, step=step, nfe_per_step=1, stochastic=gamma > 0.0, jumps=True)
