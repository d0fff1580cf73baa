"""Functions of x and the noise level from a Flax module and its parameters."""

from typing import Any

import flax.linen as nn
import jax
import numpy as np

from score_sde.conditioned import Conditioned, conditioned


def apply_fn(model: nn.Module, params: Any, keys: jax.Array | None = None, **labels: jax.Array | None) -> Conditioned:
    """Return the function (x, noise_level) -> output of a network, with its conditioning.

    A network of two times is also a function (x, noise_level, next_level).

    Args:
      model: Flax module, called as `model.apply(variables, x, noise_level, train=..., **labels)`.
      params: Parameters of the module.
      keys: Dropout keys, (batch,), one per example; None evaluates without dropout.
      **labels: Conditioning, `labels` (batch,) and `augment` (batch, augment_dim); None evaluates without it.
    """
    given = {name: value for name, value in labels.items() if value is not None}
    names, variables = tuple(given), {"params": params}
    dropout = getattr(model, "dropout", 0.0) or getattr(model, "label_dropout", 0.0)

    def named(values):  # a second time comes before the conditioning
        return dict(zip((*["next_level"] * (len(values) - len(names)), *names), values, strict=True))

    def apply(x, level, *values):
        return model.apply(variables, x, level, train=keys is not None, **named(values))

    def apply_with_dropout(x, level, *values):
        *later, keys = values[: len(values) - len(names)]

        def apply_one(x, level, key, values):
            inputs = {name: value[None] for name, value in named(values).items()}
            return model.apply(variables, x[None], level[None], train=True, rngs={"dropout": key}, **inputs)[0]

        return jax.vmap(apply_one)(x, level, keys, (*later, *values[len(values) - len(names) :]))

    function, first = (apply_with_dropout, (keys,)) if keys is not None and dropout else (apply, ())
    return conditioned(function, *first, *given.values(), evaluations=lambda level: np.ones(np.shape(level), int))
