"""Optimizers by name, with clipping of the gradient's global norm, warm-up and learning-rate schedules."""

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
    """Return Muon (Jordan et al. 2024) for kernels, as matrices from inputs to outputs, and Adam for other parameters.

    The updates of the matrices have the root mean square of Adam's (Liu et al. 2025), so both share a learning rate.
    """

    def matrices(params):
        def dimension_numbers(path, leaf):
            if path[-1].key not in KERNELS or leaf.ndim < 2:
                return None
            return contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)

        return jax.tree_util.tree_map_with_path(dimension_numbers, params)

    return contrib.muon(
        learning_rate,
        beta=beta,
        ns_steps=ns_steps,
        weight_decay=weight_decay,
        adam_weight_decay=weight_decay,
        muon_weight_dimension_numbers=matrices,
        consistent_rms=0.2,
    )


def prodigy(
    learning_rate: optax.Schedule, weight_decay: float = 0.0, safeguard_warmup: bool = True
) -> optax.GradientTransformation:
    """Return Prodigy (Mishchenko and Defazio 2024), which estimates the rate that `learning_rate` (1) scales."""

    def positive(step):  # Prodigy divides by sums of the rates
        return jnp.maximum(learning_rate(step), 1e-6)

    return contrib.prodigy(positive, weight_decay=weight_decay, safeguard_warmup=safeguard_warmup)


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adam": optax.adam,
    "adamw": optax.adamw,
    "lion": optax.lion,
    "muon": muon,
    "ademamix": contrib.ademamix,
    "adopt": contrib.adopt,
    "prodigy": prodigy,
}


def constant() -> optax.Schedule:
    """Return the factor 1 at every step."""
    return lambda step: jnp.ones(())


def cosine(decay_steps: int, final: float = 0.0) -> optax.Schedule:
    """Return a factor that falls from 1 to `final` in decay_steps along half a cosine (Loshchilov and Hutter 2017).

    Without decay_steps, `make_optimizer` lets it fall from the end of the warm-up to the last train step.
    """
    return lambda step: final + (1 - final) * 0.5 * (1 + jnp.cos(math.pi * _progress(step, decay_steps)))


def linear(decay_steps: int, final: float = 0.0) -> optax.Schedule:
    """Return a factor that falls linearly from 1 to `final` in decay_steps, by default as for `cosine`."""
    return lambda step: 1 - (1 - final) * _progress(step, decay_steps)


def inverse_sqrt(reference_steps: int) -> optax.Schedule:
    """Return the factor 1 up to reference_steps, then sqrt(reference_steps / step) (Karras et al. 2024).

    Without reference_steps, `make_optimizer` sets them to a tenth of the train steps, but at least to the warm-up.
    """
    return lambda step: jnp.sqrt(reference_steps / jnp.maximum(step, reference_steps))


LR_SCHEDULES: dict[str, Callable[..., optax.Schedule]] = {
    "constant": constant,
    "cosine": cosine,
    "linear": linear,
    "inverse_sqrt": inverse_sqrt,
}


def _progress(step: jax.Array, decay_steps: int) -> jax.Array:
    """Return the fraction of decay_steps that is done, from 0 to 1."""
    return jnp.clip(step / decay_steps, 0.0, 1.0)


def make_optimizer(
    name: str,
    learning_rate: float,
    warmup_steps: int,
    clip_norm: float,
    kwargs: Mapping[str, Any],
    schedule: str = "constant",
    schedule_kwargs: Mapping[str, Any] | None = None,
    num_steps: int = 0,
) -> optax.GradientTransformation:
    """Return an optimizer that clips the gradient, updates the parameters and keeps the networks' constraints.

    The learning rate at step n is learning_rate * min(n / warmup_steps, 1) * schedule(n) (Song et al. 2021, Appendix
    H.1).

    Args:
      name: Name of the optimizer in `OPTIMIZERS`.
      learning_rate: Peak learning rate.
      warmup_steps: Number of steps of the linear warm-up; 0 for none.
      clip_norm: Maximum norm of the gradient of all parameters together.
      kwargs: Further keyword arguments of the optimizer.
      schedule: Name of the learning-rate schedule in `LR_SCHEDULES`.
      schedule_kwargs: Keyword arguments of the schedule.
      num_steps: Number of train steps, from which a schedule takes its default length; 0 if unknown.

    Raises:
      UserError: if a value is out of range, or a name or keyword argument is unknown.
    """
    if not (0 < learning_rate < math.inf and clip_norm > 0 and warmup_steps >= 0):
        raise UserError(
            f"optimizer: need a finite learning_rate > 0, clip_norm > 0 and warmup_steps >= 0, got {learning_rate}, "
            f"{clip_norm} and {warmup_steps}",
            "learning_rate",
            "clip_norm",
            "warmup_steps",
        )
    if "learning_rate" in kwargs:
        raise UserError("optimizer: learning_rate is a separate argument, not one of kwargs", "learning_rate")
    schedule_kwargs = dict(schedule_kwargs or {})
    if any(not isinstance(value, int | float) or value < 0 for value in schedule_kwargs.values()) or 0 in (
        schedule_kwargs.get("decay_steps"),
        schedule_kwargs.get("reference_steps"),
    ):
        raise UserError(f"schedule {schedule!r}: expected numbers >= 0 and numbers of steps > 0, got {schedule_kwargs}")
    start = 0  # of the decay
    if schedule in ("cosine", "linear"):
        if not schedule_kwargs.get("decay_steps") and num_steps > warmup_steps:
            start, schedule_kwargs["decay_steps"] = warmup_steps, num_steps - warmup_steps
        elif schedule_kwargs.get("decay_steps", math.inf) <= warmup_steps or "decay_steps" not in schedule_kwargs:
            raise UserError(
                f"schedule {schedule!r}: expected a warm-up shorter than the decay and the training, got warmup_steps="
                f"{warmup_steps}, decay_steps={schedule_kwargs.get('decay_steps')} and num_steps={num_steps}",
                "warmup_steps",
            )
    elif schedule == "inverse_sqrt":
        schedule_kwargs.setdefault("reference_steps", max(num_steps // 10, warmup_steps, 1))
    decay = build("schedule", LR_SCHEDULES, schedule, schedule_kwargs)

    def rate(step):
        warmup = jnp.minimum(step / warmup_steps, 1.0) if warmup_steps else 1.0
        return learning_rate * warmup * decay(step - start)

    method = build("optimizer", OPTIMIZERS, name, {**kwargs, "learning_rate": rate})
    return optax.chain(optax.clip_by_global_norm(clip_norm), method, constrained())


def constrained() -> optax.GradientTransformation:
    """Return a transformation of updates that keeps the networks' constraints (`models.constraints`)."""
    return optax.GradientTransformation(
        lambda params: optax.EmptyState(), lambda updates, state, params: (constrain(updates, params), state)
    )
