"""Checks of groups of settings, before anything is computed."""

from collections.abc import Mapping
from typing import Any

from score_sde.data.augmentation import AUGMENT_DIM
from score_sde.errors import UserError, lookup
from score_sde.likelihood import DIVERGENCES
from score_sde.solvers import METHODS, SPACINGS


def check_likelihood(how: Mapping[str, Any], t_max: float) -> None:
    """Refuses settings that `log_likelihood` would refuse."""
    where = "--config.likelihood"
    if not 0 <= how["t_min"] < t_max:
        raise UserError(f"likelihood: need 0 <= t_min < {t_max:g}, got {how['t_min']} (set {where}.t_min)")
    for name in ("num_probes", "num_draws", "num_examples", "batch_size", "max_steps"):
        check_number("likelihood", name, how[name])
    for name, table in (("divergence", dict.fromkeys(DIVERGENCES)), ("method", METHODS)):
        lookup(name, table, how[name], f"{where}.{name}")
    if not (how["rtol"] > 0 and how["atol"] > 0 and how["chain_steps"] >= 0):
        raise UserError(f"likelihood: need rtol > 0, atol > 0 and chain_steps >= 0, got {how} (set {where})")
    if how["importance"] and how["divergence"] != "exact":
        raise UserError(
            "the importance-weighted bound takes log mean exp of log p, which the noise of Hutchinson's estimate would "
            f"raise above the truth (set {where}.divergence=exact, or {where}.importance=False)"
        )


def check_evaluation(how: Mapping[str, Any]) -> None:
    """Refuses numbers that are none, and checkpoints chosen twice."""
    for name in ("num_samples", "num_real", "num_draws", "neighbours_among"):
        check_number("evaluation", name, how[name])
    check_number("evaluation", "neighbours", how["neighbours"], least=0)
    for name in ("health_levels", "health_images"):
        check_number("evaluation", name, how[name], least=2)
    for step in how["steps"]:
        check_number("evaluation", "steps", step, least=0)
    if how["steps"] and how["every_checkpoint"]:
        raise UserError("one of --config.evaluation.steps and --config.evaluation.every_checkpoint can be chosen")


def check_certify(how: Mapping[str, Any]) -> None:
    """Refuses settings that leave nothing to certify, or nothing to certify it by."""
    check_number("certify", "num_samples", how["num_samples"])
    for name in ("nfe", "refinements"):
        for number in how[name]:
            check_number("certify", name, number)
    for name in how["spacings"]:
        lookup("spacing", SPACINGS, name, "--config.certify.spacings")
    enough = how["reference_steps"] >= 2 and how["nfe"] and min(how["nfe"]) >= 1 and len(set(how["refinements"])) >= 3
    if not enough or min(how["refinements"]) < 1:
        raise UserError(
            "certify: need reference_steps >= 2, some nfe >= 1 and three different refinements >= 1, got "
            f"{how['reference_steps']}, {how['nfe']} and {how['refinements']} (set --config.certify)"
        )


def check_training(how: Mapping[str, Any]) -> None:
    """Refuses a schedule that can't be kept, and choices that there are not."""
    every = ("log_every", "checkpoint_every", "sample_every", "snapshot_every")
    for name in ("num_steps", "steps_per_call", "keep_checkpoints", "accumulate", *every):
        check_number("training", name, how[name])
    for name in ("keep_every", "keep_best"):
        check_number("training", name, how[name], least=0)
    for name in ("num_steps", *(name for name in every if name != "snapshot_every" or how["ema_lengths"])):
        if how[name] % how["steps_per_call"]:
            raise UserError(
                f"training: {name}={how[name]} is not a multiple of steps_per_call={how['steps_per_call']} (set "
                f"--config.training.{name} or --config.training.steps_per_call)"
            )
    if how["keep_every"] % how["checkpoint_every"]:
        raise UserError(
            f"training: keep_every={how['keep_every']} is not a multiple of checkpoint_every="
            f"{how['checkpoint_every']}: none of those steps would be saved (set --config.training.keep_every)"
        )
    lookup("choice", dict.fromkeys(("stop", "skip")), how["on_nonfinite"], "--config.training.on_nonfinite")


def check_augment(probability: float, augment_dim: int, event_shape: tuple[int, ...]) -> None:
    """Refuses augmentations that the network isn't told of, as they would leak into what it draws."""
    if not 0 <= probability <= 1:
        raise UserError(f"need 0 <= augment <= 1, got {probability} (set --config.data.augment)")
    if probability and (augment_dim != AUGMENT_DIM or len(event_shape) != 3):
        raise UserError(
            f"augmentations are of images, and are told to the network as {AUGMENT_DIM} numbers (set --config.data."
            f"augment=0.0, or --config.model.kwargs.augment_dim={AUGMENT_DIM} on a U-Net)"
        )


def check_seed(seed: Any, where: str) -> None:
    """Raises UserError unless a seed is an integer that JAX takes without wrapping it."""
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise UserError(f"the seed must be 0 or more and below 2**32, got {seed} (set {where})")


def check_number(group: str, name: str, value: Any, least: int = 1, most: int = 2**31 - 1) -> None:
    """Raises UserError unless `value` is an integer from `least` to `most`."""
    if not (isinstance(value, int) and value >= least):
        raise UserError(
            f"{group}: {name} must be an integer of at least {least}, got {value} (set --config.{group}.{name})"
        )
    if value > most:
        raise UserError(f"{group}: {name} must be at most {most}, got {value} (set --config.{group}.{name})")


def check_reals(group: str, name: str, values: Any) -> None:
    """Raises UserError unless `values` are real numbers."""
    if not all(isinstance(value, int | float) for value in values):
        raise UserError(f"{group}: {name} must be numbers, got {values} (set --config.{group}.{name})")


def check_divides(group: str, batch_size: int, num_devices: int, accumulate: int = 1) -> None:
    """Refuses a global batch that the devices, and the parts it is worked through in, don't share evenly."""
    parts = num_devices * accumulate
    if batch_size < 1 or batch_size % parts:
        times = f" times {accumulate} parts" if accumulate > 1 else ""
        raise UserError(
            f"{group}: the global batch of {batch_size} doesn't divide among {num_devices} devices{times}; take a "
            f"multiple of {parts} (set --config.{group}.batch_size)"
        )
