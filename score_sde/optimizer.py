"""Optimizers, by name: clipping of the gradient's global norm, then the method, with a linear warm-up."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from score_sde.errors import UserError, build
from score_sde.models.edm2 import KERNEL, normalize

OPTIMIZERS = {"adam": optax.adam, "adamw": optax.adamw}


def make_optimizer(
    name: str, learning_rate: float, warmup_steps: int, clip_norm: float, kwargs: Mapping[str, Any]
) -> optax.GradientTransformation:
    """Clips the gradient to clip_norm, then steps; the learning rate rises linearly over warmup_steps, then stays.

    At step n of the warm-up the rate is n / warmup_steps of the whole, so 0 at first (Song et al. 2021, Appendix H.1).

    Raises:
      UserError: a number is out of its range, or the name or a keyword is unknown.
    """
    if not (learning_rate > 0 and clip_norm > 0 and warmup_steps >= 0):
        raise UserError(
            "optimizer: need learning_rate > 0, clip_norm > 0 and warmup_steps >= 0, got "
            f"{learning_rate}, {clip_norm} and {warmup_steps} (set --config.optimizer)"
        )
    if "learning_rate" in kwargs:
        raise UserError("optimizer: the learning rate is --config.optimizer.learning_rate, not one of the kwargs")
    rate = optax.linear_schedule(0.0, learning_rate, warmup_steps) if warmup_steps else learning_rate
    method = build("optimizer", OPTIMIZERS, name, {**kwargs, "learning_rate": rate}, "--config.optimizer")
    return optax.chain(optax.clip_by_global_norm(clip_norm), method, constrained())


def constrained() -> optax.GradientTransformation:
    """Updates that leave what is never trained as it is, and EDM2's kernels at unit root mean square.

    Random frequencies get no gradient, but weight decay would move them. Magnitude-preserving kernels would grow and so
    learn more and more slowly (Karras et al. 2024, "forced weight normalization").
    """

    def update(updates, state, params):
        def of_leaf(path, update, param):
            name = path[-1].key
            if name in ("frequencies", "phases"):
                return jnp.zeros_like(update)
            return normalize(param + update, range(param.ndim - 1)) - param if name == KERNEL else update

        return jax.tree_util.tree_map_with_path(of_leaf, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
