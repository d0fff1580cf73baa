"""Everything that changes while training, as one pytree."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from score_sde.training.ema import Averages, first_averages


class TrainState(NamedTuple):
    """All that a checkpoint holds: data and noise are functions of the seed and the step."""

    step: jax.Array  # () int32, finished steps
    params: Any
    ema_params: Any  # the average of the config's ema_decay
    averages: dict[str, Any]  # all others, by name
    optimizer_state: Any


def initial_state(params: Any, optimizer: optax.GradientTransformation, averages: Averages) -> TrainState:
    """The state before the first step; the moving averages start at the parameters."""
    return TrainState(
        jnp.zeros((), jnp.int32),
        params,
        jax.tree.map(jnp.copy, params),
        first_averages(averages, params),
        optimizer.init(params),
    )
