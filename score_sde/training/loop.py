"""The training loop: batch, step, and now and then a log, a picture, a checkpoint."""

import math
import sys
from pathlib import Path

import jax

from score_sde.errors import UserError
from score_sde.evaluation.pictures import draw_samples, picture_path
from score_sde.experiment import Experiment
from score_sde.settings import check_divides
from score_sde.training import checkpoints
from score_sde.training.interrupt import interruptible
from score_sde.training.metrics import MetricsLog, Window, progress_bar
from score_sde.training.state import TrainState, initial_state
from score_sde.training.step import make_train_step, on_all_devices, replicate, unreplicate
from score_sde.training.workdir import prepare


def train(experiment: Experiment, workdir: Path, devices: list[jax.Device]) -> str:
    """Trains from the newest checkpoint in the folder, or from the start, to the last step or a signal.

    Returns:
      A sentence on where the run stands and what it left behind.

    Raises:
      UserError: the devices don't share the batch evenly, the data set is missing, the folder cannot be written, the
        checkpoint doesn't fit the schedule, or the loss is no longer finite.
    """
    schedule = experiment.schedule
    check_divides("training", experiment.batch_size, len(devices))
    source = experiment.source("train")
    if experiment.dequantized and source.levels is None:
        raise UserError(
            "only pixels can be dequantized, these data are real numbers (set --config.data.dequantize=False)"
        )
    if 0 < experiment.num_classes < source.num_classes:
        raise UserError(
            f"the network knows {experiment.num_classes} classes, the data have {source.num_classes} (set "
            f"--config.model.kwargs.num_classes={source.num_classes})"
        )
    prepare(workdir, experiment.config)
    if not experiment.trainable:
        draw_samples(experiment, experiment.init_params(), 0, workdir)
        return f"this network is exact, there is nothing to train; pictures are in {workdir / 'samples'}"
    manager = checkpoints.open_checkpoints(workdir / "checkpoints", schedule.keep_checkpoints)
    state = _first_state(experiment, manager)
    step = int(state.step)
    _describe(experiment, source, state, devices)
    if step >= schedule.num_steps:
        if not picture_path(workdir, step).exists():  # killed after the last save
            draw_samples(experiment, state.ema_params, step, workdir)
        return f"{workdir} has finished its {step} steps; pictures are in {workdir / 'samples'}"
    if step % schedule.steps_per_call:
        raise UserError(
            f"the checkpoint in {workdir} is of step {step}, no multiple of steps_per_call={schedule.steps_per_call}: "
            "go on with --config.training.steps_per_call=1, which gives the same parameters"
        )

    train_step = make_train_step(
        experiment.loss_fn,
        experiment.optimizer,
        experiment.training_key,
        experiment.ema_decay,
        source.levels,
        dequantized=experiment.dequantized,
        labelled=bool(experiment.num_classes),
    )
    run_steps = on_all_devices(train_step, devices)
    state = replicate(state, devices)
    batches = experiment.batches(source, step)
    log = MetricsLog(workdir, first_step=step)
    window = Window(experiment.batch_size)
    metrics = None

    with (
        interruptible() as interrupted,
        progress_bar(schedule.num_steps, step, "step", workdir.name) as bar,
    ):
        while step < schedule.num_steps and not interrupted():
            previous = metrics
            state, metrics = run_steps(state, next(batches))
            jax.block_until_ready(previous)  # one call ahead of the devices, so that a signal doesn't wait for more
            step += schedule.steps_per_call
            window.add(metrics, schedule.steps_per_call)
            bar.update(schedule.steps_per_call)
            last = step == schedule.num_steps
            log_due, save_due, sample_due = (
                step % every == 0 or last
                for every in (schedule.log_every, schedule.checkpoint_every, schedule.sample_every)
            )
            if log_due or save_due:
                _check_finite(metrics, step, manager)
            if log_due:
                record = window.summary()
                log.write(step, record)
                bar.set_postfix_str(_postfix(record), refresh=False)
            window.pause()
            if save_due:
                checkpoints.save(manager, unreplicate(state))
            if sample_due and not interrupted():
                draw_samples(experiment, unreplicate(state).ema_params, step, workdir)
            window.resume()
        if interrupted():
            if metrics is not None:  # the signal may come before the first step ends
                _check_finite(metrics, step, manager)
            checkpoints.save(manager, unreplicate(state))
        manager.wait_until_finished()
    manager.close()
    log.close()
    if step < schedule.num_steps:
        return f"stopped by {interrupted()} and saved at step {step}; the same command goes on from there"
    return f"trained {step} steps; pictures are in {workdir / 'samples'}"


def _first_state(experiment: Experiment, manager) -> TrainState:
    """The newest checkpoint, or a fresh state where there is none."""

    def fresh():
        return initial_state(experiment.init_params(), experiment.optimizer)

    if manager.latest_step() is None:
        return fresh()
    return checkpoints.restore(manager, jax.eval_shape(fresh))


def _describe(experiment: Experiment, source, state: TrainState, devices: list[jax.Device]) -> None:
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    batch = experiment.batch_size
    print(
        f"{parameters:,} parameters; {len(source.examples):,} {_what(source)}; "
        f"{len(devices)} {devices[0].platform} device(s), batch {batch}, "
        f"{batch // len(devices)} a device; from step {int(state.step)}",
        file=sys.stderr,
    )


def _what(source) -> str:
    shape = "x".join(map(str, source.image_shape))
    return f"points of {shape} features" if source.levels is None else f"images of {shape}, {source.levels} levels"


def _postfix(record: dict[str, float]) -> str:
    rate = f"{record['images_per_second']:.0f} images/s, " if "images_per_second" in record else ""
    return f"{rate}loss {record['loss']:.4f}"


def _check_finite(metrics, step: int, manager) -> None:
    """Raises, before anything is saved, where the last step's loss or gradient is not finite; a NaN stays for good."""
    loss = float(metrics["loss"])
    if math.isfinite(loss) and math.isfinite(float(metrics["gradient_norm"])):
        return
    saved = manager.latest_step()
    manager.wait_until_finished()
    raise UserError(
        f"the loss is {loss} at step {step}; "
        f"{'no checkpoint was saved' if saved is None else f'the last checkpoint is of step {saved}'}. A smaller "
        "--config.optimizer.learning_rate, a longer --config.optimizer.warmup_steps or a smaller "
        "--config.optimizer.clip_norm may help"
    )
