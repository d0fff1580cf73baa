"""What happens before the first step: checks, the state to start from, and lines that say what will run."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from score_sde.data import Source
from score_sde.errors import UserError
from score_sde.experiment import Experiment
from score_sde.experiment.rules import check_divides
from score_sde.runtime import distributed
from score_sde.training import checkpoints
from score_sde.training.state import TrainState, initial_state
from score_sde.training.step import make_train_step


def check_data(experiment: Experiment, source: Source, num_devices: int) -> None:
    """Refuses data that the config doesn't fit, and a batch that the devices don't share."""
    check_divides("training", experiment.batch_size, num_devices, experiment.step_options["accumulate"])
    if source.levels is None and experiment.step_options["dequantized"]:
        raise UserError("only pixels can be dequantized, these data are real numbers", "dequantize=False")
    _check_decoder(experiment, source)
    if 0 < experiment.num_classes < source.num_classes:
        raise UserError(
            f"the network knows {experiment.num_classes} classes, the data have {source.num_classes} (set "
            f"--config.model.kwargs.num_classes={source.num_classes})"
        )


def _check_decoder(experiment: Experiment, source: Source) -> None:
    """Raises UserError unless the decoder term of `ddpm_hybrid` has pixels on levels."""
    if experiment.config["loss"]["objective"] != "ddpm_hybrid":
        return
    if experiment.step_options["dequantized"]:
        raise UserError(
            "ddpm_hybrid: expected pixels on their levels for the decoder term, got dequantized ones",
            "dequantize=False",
        )
    if source.levels is None and "levels" not in experiment.config["loss"]["objective_kwargs"]:
        raise UserError(
            "ddpm_hybrid: expected pixels with a number of levels for the decoder term, got real numbers (set "
            "--config.loss.objective=ddpm and --config.model.kwargs.outputs=1)"
        )


def check_step(experiment: Experiment, workdir: Path, step: int) -> None:
    """Refuses to go on from a step that whole calls don't reach."""
    if step % experiment.schedule.steps_per_call:
        raise UserError(
            f"the checkpoint in {workdir} is of step {step}, no multiple of steps_per_call="
            f"{experiment.schedule.steps_per_call}: go on with --config.training.steps_per_call=1, which gives the "
            "same parameters"
        )


def first_state(experiment: Experiment, manager) -> TrainState:
    """The newest readable checkpoint, or a fresh state where there is none."""

    def fresh():
        return initial_state(experiment.init_params(), experiment.optimizer, experiment.averages)

    state = checkpoints.restore(manager, jax.eval_shape(fresh))
    return fresh() if state is None else state


def train_step_of(
    experiment: Experiment, levels: int | None, axis_name: str | None, gather: Callable = lambda params: params
) -> Callable:
    """The train step of an experiment on data of so many levels; axis_name and gather are a layout's."""
    loss_fn = experiment.loss_fn
    if experiment.config["loss"]["objective"] == "ddpm_hybrid":
        loss_fn = partial(loss_fn, levels=levels)
    return make_train_step(
        loss_fn,
        experiment.optimizer,
        experiment.training_key,
        experiment.averages,
        levels,
        axis_name,
        gather,
        **experiment.step_options,
    )


def describe(experiment: Experiment, source: Source, state: TrainState, devices: list[jax.Device]) -> None:
    """Prints what will train on what."""
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    batch, hosted = experiment.batch_size, jax.process_count()
    where = f"{len(devices)} {devices[0].platform} device(s)" + (f" of {hosted} processes" if hosted > 1 else "")
    accumulate = experiment.step_options["accumulate"]
    parts = f" in {accumulate} parts" if accumulate > 1 else ""
    say(
        f"{parameters:,} parameters; {len(source.examples):,} {_what(source)}; {where}, batch {batch}, "
        f"{batch // len(devices)} a device{parts}; from step {int(state.step)}"
    )


def describe_batch(batch: dict[str, np.ndarray]) -> None:
    """Prints what this process's first decoded batch looks like."""
    parts = (
        f"{name} {array.dtype} {'x'.join(map(str, array.shape[1:]))} from {array.min():g} to {array.max():g}"
        for name, array in batch.items()
    )
    say(f"the first batch: {', '.join(parts)}")


def say(words: Any) -> None:
    """To stderr, from one process."""
    if distributed.is_main_process():
        print(words, file=sys.stderr)


def _what(source: Source) -> str:
    shape = "x".join(map(str, source.image_shape))
    return f"points of {shape} features" if source.levels is None else f"images of {shape}, {source.levels} levels"
