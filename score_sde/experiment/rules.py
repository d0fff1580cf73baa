"""Rules on single values and across fields of a config, checked before anything is computed."""

import math
from typing import Any

import flax.linen as nn
from ml_collections import ConfigDict

from score_sde import models
from score_sde.data.augmentation import AUGMENT_DIM
from score_sde.errors import UserError, lookup
from score_sde.experiment.flags import naming_flags
from score_sde.likelihood import DIVERGENCES
from score_sde.model import DiffusionModel
from score_sde.sde import SDE
from score_sde.solvers import ODE_METHODS, SPACINGS
from score_sde.training.workdir import flatten


def check_numbers(config: ConfigDict) -> None:
    """Raise UserError unless numbers that several parts share are in range."""
    check_evaluation(config)
    for name in ("num_samples", "batch_size", "samples_per_measurement", "particles"):
        check_number("sampling", name, config.sampling[name])
    check_number("sampling", "num_steps", config.sampling.num_steps, most=10**6)
    check_number("data", "image_size", config.data.image_size, least=0, most=2**16)
    check_number("data", "channels", config.data.channels, most=2**16)
    for group, name in (("training", "ema_decays"), ("training", "ema_lengths"), ("sampling", "guidance_interval")):
        check_reals(group, name, config[group][name])
    check_number("data", "num_threads", config.data.num_threads)
    check_number("data", "num_workers", config.data.num_workers, least=0)
    check_seed(config.seed, "--config.seed")
    for path, value in flatten(config.to_dict()):
        if isinstance(value, float) and not math.isfinite(value) and "kwargs" not in path and "clip_norm" not in path:
            raise UserError(f"{path}: expected a finite number, got {value}", f"--config.{path}")
    if config.data.random_flip and config.data.image_size == 0:
        raise UserError("only images can be flipped", "--config.data.random_flip=False")
    if config.data.sigma_data <= 0:
        raise UserError(f"need sigma_data > 0, got {config.data.sigma_data}", "--config.data.sigma_data")


def check_likelihood(config: ConfigDict, sde: SDE) -> None:
    """Raise UserError unless config.likelihood fits the SDE."""
    options = config.likelihood
    if not 0 <= options.t_min < sde.t_max:
        raise UserError(
            f"likelihood: need 0 <= t_min < {sde.t_max:g}, got {options.t_min}", "--config.likelihood.t_min"
        )
    for name in ("num_probes", "num_dequantizations", "num_examples", "batch_size", "max_steps"):
        check_number("likelihood", name, options[name])
    with naming_flags(config, "likelihood"):
        lookup("divergence", dict.fromkeys(DIVERGENCES), options.divergence)
        lookup("method", ODE_METHODS, options.method)
    check_number("likelihood", "flow_map_steps", options.flow_map_steps, least=0)
    if not (options.rtol > 0 and options.atol > 0 and options.vlb_num_steps >= 0):
        raise UserError(
            f"likelihood: need rtol > 0, atol > 0 and vlb_num_steps >= 0, got {options.rtol}, {options.atol} and "
            f"{options.vlb_num_steps}",
            "--config.likelihood",
        )
    if options.flow_map_steps and options.importance_weighted:
        raise UserError(
            "the likelihood in jumps has no importance-weighted bound", "--config.likelihood.importance_weighted=False"
        )
    if options.importance_weighted and options.divergence != "exact":
        raise UserError(
            "the importance-weighted bound takes log mean exp of log p, which the noise of Hutchinson's estimate would "
            "raise above the truth",
            "--config.likelihood.divergence=exact",
            "--config.likelihood.importance_weighted=False",
        )


def check_evaluation(config: ConfigDict) -> None:
    """Raise UserError unless config.evaluation is in range and chooses checkpoints in one way."""
    options = config.evaluation
    check_number("evaluation", "num_repeats", options.num_repeats)
    for name in ("num_samples", "num_real", "neighbor_pool_size"):
        check_number("evaluation", name, options[name], least=2)
    check_number("evaluation", "num_neighbors", options.num_neighbors, least=0)
    for name in ("diagnostics_levels", "diagnostics_images"):
        check_number("evaluation", name, options[name], least=2)
    for step in options.steps:
        check_number("evaluation", "steps", step, least=0)
    if options.steps and options.every_checkpoint:
        raise UserError("one of --config.evaluation.steps and --config.evaluation.every_checkpoint can be chosen")


def check_certify(config: ConfigDict) -> None:
    """Raise UserError unless config.certify has a reference, budgets and resolutions to compare."""
    options = config.certify
    check_number("certify", "num_samples", options.num_samples)
    for name in ("nfe", "sde_num_steps"):
        for number in options[name]:
            check_number("certify", name, number)
    for name in options.spacings:
        with naming_flags(config, spacing="certify.spacings"):
            lookup("spacing", SPACINGS, name)
    if options.reference_steps < 2 or not options.nfe or len(set(options.sde_num_steps)) < 3:
        raise UserError(
            "certify: need reference_steps >= 2, some nfe >= 1 and three different sde_num_steps >= 1, got "
            f"{options.reference_steps}, {options.nfe} and {options.sde_num_steps}",
            "--config.certify",
        )


def check_schedule(config: ConfigDict) -> None:
    """Raise UserError unless the intervals of config.training fit each other."""
    training = config.training
    intervals = ("log_every", "checkpoint_every", "sample_every", "snapshot_every")
    for name in ("num_steps", "steps_per_call", "keep_checkpoints", "grad_accum_steps", *intervals):
        check_number("training", name, training[name])
    for name in ("keep_every", "keep_best"):
        check_number("training", name, training[name], least=0)
    used = [name for name in intervals if name != "snapshot_every" or training.ema_lengths]
    for name in ("num_steps", *used):
        if training[name] % training.steps_per_call:
            raise UserError(
                f"training: {name}={training[name]} is not a multiple of steps_per_call={training.steps_per_call}",
                f"--config.training.{name}",
                "--config.training.steps_per_call",
            )
    if training.keep_every % training.checkpoint_every:
        raise UserError(
            f"training: keep_every={training.keep_every} is not a multiple of checkpoint_every="
            f"{training.checkpoint_every}: none of those steps would be saved",
            "--config.training.keep_every",
        )
    with naming_flags(config, choice="training.on_nonfinite"):
        lookup("choice", dict.fromkeys(("stop", "skip")), training.on_nonfinite)


def notes(config: ConfigDict) -> tuple[str, ...]:
    """Return what the user should know before the first step."""
    optimizer, num_steps = config.optimizer, config.training.num_steps
    if optimizer.warmup_steps <= num_steps:
        return ()
    return (
        f"the warm-up of {optimizer.warmup_steps} steps outlasts the {num_steps} train steps; the learning rate ends "
        f"at {num_steps / optimizer.warmup_steps:.2g} of {optimizer.learning_rate:g} (see "
        "--config.optimizer.warmup_steps)",
    )


def check_augment(config: ConfigDict, module: nn.Module, event_shape: tuple[int, ...]) -> None:
    """Raise UserError if the network is not conditioned on augmentations, which would leak into its samples."""
    probability = config.data.augment
    if not 0 <= probability <= 1:
        raise UserError(f"need 0 <= augment <= 1, got {probability}", "--config.data.augment")
    if probability and (getattr(module, "augment_dim", 0) != AUGMENT_DIM or len(event_shape) != 3):
        raise UserError(
            f"augmentations are of images, and the network takes them as {AUGMENT_DIM} numbers",
            "--config.data.augment=0.0",
            f"--config.model.kwargs.augment_dim={AUGMENT_DIM} on a U-Net",
        )


def check_scaling(config: ConfigDict, module: nn.Module) -> None:
    """Raise UserError if a network that divides its output by sigma doesn't take log(sigma) as its noise level."""
    if getattr(module, "scale_by_sigma", False) and config.model.preconditioning != "log_sigma":
        raise UserError(
            f"model {config.model.name!r} divides its output by exp(noise level), which is sigma under "
            "preconditioning=log_sigma (with prediction=score) alone, not under "
            f"{config.model.preconditioning!r}",
            "--config.model.preconditioning=log_sigma",
        )


def check_objective(config: ConfigDict, module: nn.Module) -> None:
    """Raise UserError unless a classifier, and only a classifier, is trained by classification."""
    if isinstance(module, models.Classifier) != (config.loss.objective == "classification"):
        raise UserError(
            f"model {config.model.name!r} and objective {config.loss.objective!r}: expected both or neither for "
            "classification (set --config.model.name=classifier and --config.loss.objective=classification, or neither)"
        )


def check_exact(config: ConfigDict, model: DiffusionModel) -> None:
    """Raise UserError if an option has no effect on an exact network."""
    if model.is_exact and model.preconditioning != "none":
        raise UserError(
            f"model 'mixture' is exact and fixes its own input scaling: preconditioning {model.preconditioning!r} "
            "has no effect",
            "--config.model.preconditioning=none",
        )


def check_outputs(config: ConfigDict, shape: tuple[int, ...], model: DiffusionModel) -> None:
    """Raise UserError unless the network has one output of the data's shape, two if it learns a second quantity."""
    if model.learned_divergence and config.loss.objective != "progressive":
        raise UserError(
            "a network with two_times=True and outputs=2 learns the mean divergence, for which the objective must be "
            "progressive",
            "--config.loss.objective=progressive",
            "--config.model.kwargs.outputs=1",
        )
    outputs = 2 if model.learned_variance or model.learned_divergence else 1
    if shape != (*model.event_shape[:-1], outputs * model.event_shape[-1]):
        raise UserError(
            f"objective {config.loss.objective!r} takes {outputs} output(s) of the data's shape {model.event_shape}, "
            f"but the model's has the shape {shape}",
            f"--config.model.kwargs.outputs={outputs}",
        )


def check_seed(seed: Any, flag: str) -> None:
    """Raise UserError unless a seed is an integer that JAX takes without wrapping it."""
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise UserError(f"the seed must be 0 or more and below 2**32, got {seed}", flag)


def check_number(group: str, name: str, value: Any, least: int = 1, most: int = 2**31 - 1) -> None:
    """Raise UserError unless `value` is an integer from `least` to `most`."""
    flag = f"--config.{group}.{name}"
    if not (isinstance(value, int) and value >= least):
        raise UserError(f"{group}: {name} must be an integer of at least {least}, got {value}", flag)
    if value > most:
        raise UserError(f"{group}: {name} must be at most {most}, got {value}", flag)


def check_reals(group: str, name: str, values: Any) -> None:
    """Raise UserError unless `values` are real numbers."""
    if not all(isinstance(value, int | float) for value in values):
        raise UserError(f"{group}: {name} must be numbers, got {values}", f"--config.{group}.{name}")
