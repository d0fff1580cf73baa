"""A module and its parameters as a function of images and noise levels."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax


def network(model: nn.Module, params: Any, keys: jax.Array | None = None, **told: jax.Array | None) -> Callable:
    """(x, noise_level) -> output; with keys, one an example, in training mode, with dropout from each example's key.

    What the network is told beside the noise level, `labels` or `augment`, is batch-first; None: nothing.
    """
    known: dict[str, Any] = {name: value for name, value in told.items() if value is not None}
    variables = {"params": params}
    dropout = getattr(model, "dropout", 0.0) or getattr(model, "label_dropout", 0.0)
    if keys is None or not dropout:
        return lambda x, level: model.apply(variables, x, level, train=keys is not None, **known)

    def one(x, level, key, told):
        alone = {name: value[None] for name, value in told.items()}
        return model.apply(variables, x[None], level[None], train=True, rngs={"dropout": key}, **alone)[0]

    return lambda x, level: jax.vmap(one)(x, level, keys, known)
