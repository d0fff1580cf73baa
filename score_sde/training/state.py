"""Everything that changes while training, as one pytree."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class TrainState(NamedTuple):
    """All that a checkpoint holds: data and noise are functions of the seed and the step."""

    step: jax.Array  # () int32, finished steps
    params: Any
    ema_params: Any
    optimizer_state: Any


def initial_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step; the moving average starts at the parameters."""
    return TrainState(jnp.zeros((), jnp.int32), params, jax.tree.map(jnp.copy, params), optimizer.init(params))
