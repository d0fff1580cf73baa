"""The training loop: batch, step, and now and then a log, a picture, a checkpoint."""

import math
from contextlib import closing
from pathlib import Path

import jax
import numpy as np

from score_sde.data import Source
from score_sde.evaluation.pictures import draw_samples
from score_sde.experiment import Experiment
from score_sde.runtime import distributed
from score_sde.training import checkpoints, snapshots
from score_sde.training.catch_up import catch_up, is_due
from score_sde.training.data_record import check_same_data
from score_sde.training.devices import make_layout
from score_sde.training.interrupt import interruptible
from score_sde.training.metrics import MetricsLog, Window, progress_bar
from score_sde.training.nonfinite import check_finite
from score_sde.training.setup import check_data, check_step, describe, describe_batch, first_state, train_step_of
from score_sde.training.step import Metrics
from score_sde.training.workdir import check_config, prepare, sole_writer


def train(experiment: Experiment, workdir: Path, devices: list[jax.Device]) -> str:
    """Trains from the newest readable checkpoint in the folder, or from the start, to the last step or a signal.

    Args:
      experiment: the parts of the run.
      workdir: its folder, which all processes share.
      devices: those of all processes, in order of the processes.

    Returns:
      A sentence on where the run stands and what it left behind.

    Raises:
      UserError: the devices don't share the batch evenly, the data set is missing or not that of the run, the folder
        cannot be written or another process trains there, the checkpoint doesn't fit the schedule, the disk is full,
        or the loss is no longer finite.
    """
    source = experiment.source("train")
    check_data(experiment, source, len(devices))
    layout = make_layout(experiment.strategy, devices)
    with sole_writer(workdir):
        check_config(workdir, experiment.config)  # another run may have begun here since the start
        prepare(workdir, experiment.config)
        if not experiment.trainable:
            draw_samples(experiment, experiment.init_params(), 0, workdir)
            return f"this network is exact, there is nothing to train; pictures are in {workdir / 'samples'}"
        schedule = experiment.schedule
        keep = schedule.keep_checkpoints, schedule.keep_every, schedule.keep_best
        manager = checkpoints.open_checkpoints(workdir / "checkpoints", *keep)
        with checkpoints.closing(manager):
            return _train(experiment, workdir, devices, source, layout, manager)


def _train(experiment: Experiment, workdir: Path, devices: list[jax.Device], source: Source, layout, manager) -> str:
    schedule, lengths = experiment.schedule, experiment.averages.lengths
    state = first_state(experiment, manager)
    step = int(state.step)
    check_same_data(workdir, source, resumed=step > 0)
    describe(experiment, source, state, devices)
    if step >= schedule.num_steps:
        catch_up(experiment, workdir, state)
        return f"{workdir} has finished its {step} steps; pictures are in {workdir / 'samples'}"

    check_step(experiment, workdir, step)

    train_step = train_step_of(experiment, source.levels, layout.axis_name, layout.gather)
    run_steps = layout.compile(train_step, state)
    batches = experiment.batches(source, step, distributed.local_slice(experiment.batch_size))
    batch = next(batches)
    describe_batch(batch)
    log, window = MetricsLog(workdir, first_step=step), Window(experiment.batch_size)
    metrics: Metrics | None = None
    losses: list[float] = []

    with (
        closing(log),
        interruptible() as interrupted,
        progress_bar(schedule.num_steps, step, "step", workdir.name) as bar,
    ):
        catch_up(experiment, workdir, state, interrupted)
        state, batch = layout.place(state), layout.put(_flagged(batch, lambda: None))
        stopping = False
        while step < schedule.num_steps and not stopping:
            previous = metrics
            state, metrics = run_steps(state, batch)
            batch = layout.put(_flagged(next(batches), interrupted))  # on their way while the devices are busy
            jax.block_until_ready(previous)  # one call ahead of the devices, so that a signal doesn't wait for more
            step += schedule.steps_per_call
            window.add(metrics, schedule.steps_per_call)
            bar.update(schedule.steps_per_call)
            stopping = _agreed(interrupted, previous)
            log_due, save_due, sample_due, snapshot_due = (
                is_due(schedule, step, every)
                for every in (
                    schedule.log_every,
                    schedule.checkpoint_every,
                    schedule.sample_every,
                    schedule.snapshot_every if lengths else 0,
                )
            )
            if log_due or save_due or sample_due:
                check_finite(window, step, experiment, source, workdir, manager)
            if log_due:
                record = window.summary()
                log.write(step, record)
                losses += [record["loss"]] if math.isfinite(record["loss"]) else []  # all steps may have been left out
                bar.set_postfix_str(_postfix(record), refresh=False)
            window.pause()
            if snapshot_due:  # before the checkpoint: a run never goes on behind a snapshot that is missing
                snapshots.save(workdir, step, layout.whole(state.averages), lengths)
            if save_due or sample_due:  # a picture takes a while, in which a machine may be taken away
                checkpoints.save(manager, layout.to_save(state), sum(losses) / len(losses) if losses else None)
                losses = []
            if sample_due and not stopping:
                draw_samples(experiment, layout.whole(state.ema_params), step, workdir, interrupted)
            window.resume()
        if stopping and step < schedule.num_steps:
            check_finite(window, step, experiment, source, workdir, manager)
            checkpoints.save(manager, layout.to_save(state))
        checkpoints.finish(manager)
    if step < schedule.num_steps:
        by = interrupted() or "another process"
        return f"stopped by {by} and saved at step {step}; the same command goes on from there"
    return f"trained {step} steps; pictures are in {workdir / 'samples'}"


def _flagged(batch: dict[str, np.ndarray], interrupted) -> dict[str, np.ndarray]:
    """The batch, and of several processes whether this one wants to stop: each learns it from the step's metrics."""
    if jax.process_count() == 1:
        return batch
    return batch | {"stop": np.full(batch["index"].shape, bool(interrupted()), np.float32)}


def _agreed(interrupted, metrics) -> bool:
    """Whether to stop: one process knows it at once, several from the last call's metrics, all at the same step."""
    if jax.process_count() == 1:
        return bool(interrupted())
    return metrics is not None and float(metrics["stop"]) > 0


def _postfix(record: dict[str, float]) -> str:
    rate = f"{record['images_per_second']:.0f} images/s, " if "images_per_second" in record else ""
    return f"{rate}loss {record['loss']:.4f}"
