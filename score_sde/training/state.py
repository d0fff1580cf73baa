"""The training state as one pytree."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from score_sde.training.ema import EMAConfig, init_emas


class TrainState(NamedTuple):
    """All that changes during training and that a checkpoint holds; data and noise depend on the seed and the step.

    Attributes:
      step: () int32, number of finished steps.
      params: Parameters.
      ema_params: EMA with the decay `EMAConfig.decay`.
      averages: Further EMAs, by name.
      optimizer_state: State of the optimizer.
    """

    step: jax.Array
    params: Any
    ema_params: Any
    averages: dict[str, Any]
    optimizer_state: Any


def initial_state(params: Any, optimizer: optax.GradientTransformation, ema: EMAConfig) -> TrainState:
    """Return the state before the first step; all EMAs start at the parameters."""
    return TrainState(
        jnp.zeros((), jnp.int32),
        params,
        jax.tree.map(jnp.copy, params),
        init_emas(ema, params),
        optimizer.init(params),
    )
