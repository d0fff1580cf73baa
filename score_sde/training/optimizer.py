"""Optimizers, by name: the gradient's global norm clipped, then the method, its rate warmed up and let decay."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from score_sde.errors import UserError, build
from score_sde.models.constraints import KERNELS, constrain


def muon(
    learning_rate: optax.Schedule, beta: float = 0.95, ns_steps: int = 5, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) of kernels, as matrices from all their inputs to their outputs; Adam of all else.

    The matrices' updates have Adam's root mean square (Liu et al. 2025), so that one learning rate serves both.
    """

    def matrices(params):
        def of_leaf(path, leaf):
            if path[-1].key not in KERNELS or leaf.ndim < 2:
                return None
            return contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)

        return jax.tree_util.tree_map_with_path(of_leaf, params)

    return contrib.muon(
        learning_rate,
        beta=beta,
        ns_steps=ns_steps,
        weight_decay=weight_decay,
        adam_weight_decay=weight_decay,
        muon_weight_dimension_numbers=matrices,
        consistent_rms=0.2,
    )


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adam": optax.adam,
    "adamw": optax.adamw,
    "lion": optax.lion,
    "muon": muon,
}


def constant() -> optax.Schedule:
    """1, always."""
    return lambda step: jnp.ones(())


def cosine(decay_steps: int, final: float = 0.0) -> optax.Schedule:
    """From 1 at the start to `final` at decay_steps along half a cosine (Loshchilov and Hutter 2017), then `final`."""
    return lambda step: final + (1 - final) * 0.5 * (1 + jnp.cos(math.pi * _passed(step, decay_steps)))


def linear(decay_steps: int, final: float = 0.0) -> optax.Schedule:
    """From 1 at the start to `final` at decay_steps along a line, then `final`."""
    return lambda step: 1 - (1 - final) * _passed(step, decay_steps)


def inverse_sqrt(reference_steps: int) -> optax.Schedule:
    """1 up to reference_steps, then sqrt(reference_steps / step) (Karras et al. 2024)."""
    return lambda step: jnp.sqrt(reference_steps / jnp.maximum(step, reference_steps))


LR_SCHEDULES: dict[str, Callable[..., optax.Schedule]] = {
    "constant": constant,
    "cosine": cosine,
    "linear": linear,
    "inverse_sqrt": inverse_sqrt,
}


def _passed(step: jax.Array, decay_steps: int) -> jax.Array:
    return jnp.minimum(step / decay_steps, 1.0)


def make_optimizer(
    name: str,
    learning_rate: float,
    warmup_steps: int,
    clip_norm: float,
    kwargs: Mapping[str, Any],
    schedule: str = "constant",
    schedule_kwargs: Mapping[str, Any] | None = None,
) -> optax.GradientTransformation:
    """Clips the gradient to clip_norm, then steps.

    At step n the rate is learning_rate * min(n / warmup_steps, 1) * schedule(n): 0 at first, where there is a warm-up
    (Song et al. 2021, Appendix H.1).

    Args:
      name: a key of `OPTIMIZERS`.
      learning_rate: the peak.
      warmup_steps: of the linear warm-up, 0 for none.
      clip_norm: of the gradient of all parameters together.
      kwargs: of the Optax function.
      schedule: a key of `LR_SCHEDULES`.
      schedule_kwargs: its numbers.

    Raises:
      UserError: a number is out of its range, or a name or a keyword is unknown.
    """
    if not (learning_rate > 0 and clip_norm > 0 and warmup_steps >= 0):
        raise UserError(
            f"optimizer: need learning_rate > 0, clip_norm > 0 and warmup_steps >= 0, got {learning_rate}, "
            f"{clip_norm} and {warmup_steps}",
            "learning_rate",
            "clip_norm",
            "warmup_steps",
        )
    if "learning_rate" in kwargs:
        raise UserError("optimizer: learning_rate is an argument of its own, not one of kwargs", "learning_rate")
    numbers = dict(schedule_kwargs or {})
    if any(not isinstance(value, int | float) or value < 0 for value in numbers.values()) or 0 in (
        numbers.get("decay_steps"),
        numbers.get("reference_steps"),
    ):
        raise UserError(f"schedule {schedule!r}: no such numbers as {numbers}")
    decay = build("schedule", LR_SCHEDULES, schedule, numbers)

    def rate(step):
        warmed = jnp.minimum(step / warmup_steps, 1.0) if warmup_steps else 1.0
        return learning_rate * warmed * decay(step)

    method = build("optimizer", OPTIMIZERS, name, {**kwargs, "learning_rate": rate})
    return optax.chain(optax.clip_by_global_norm(clip_norm), method, constrained())


def constrained() -> optax.GradientTransformation:
    """Return the transformation that keeps the networks' constraints (`models.constraints`)."""
    return optax.GradientTransformation(
        lambda params: optax.EmptyState(), lambda updates, state, params: (constrain(updates, params), state)
    )
