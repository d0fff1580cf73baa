"""The training loop: batches, steps, logs, sample plots and checkpoints."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from score_sde.data import Dataset
from score_sde.data.examples import MissingSplit
from score_sde.runtime import distributed
from score_sde.runtime.periodic import announcing
from score_sde.training import checkpoints, snapshots
from score_sde.training.catch_up import Pictures, catch_up, is_due
from score_sde.training.data_record import check_inputs
from score_sde.training.devices import make_strategy
from score_sde.training.interrupt import interruptible
from score_sde.training.metrics import MetricAccumulator, MetricsLog, progress_bar
from score_sde.training.nonfinite import check_finite
from score_sde.training.setup import (
    TrainingSetup,
    build_train_step,
    check_data,
    check_step,
    log_batch,
    log_summary,
    restore_or_init,
)
from score_sde.training.step import Metrics
from score_sde.training.workdir import check_config, prepare, sole_writer


def train(
    setup: TrainingSetup,
    load: Callable[[str], Dataset],
    batches: Callable[..., Iterator],
    pictures: Pictures,
    config: Mapping[str, Any],
    workdir: Path,
    devices: list[jax.Device],
) -> str:
    """Train from the newest readable checkpoint, or from the start, until the last step or a signal.

    Args:
      setup: Parts of the run.
      load: Function from a split to its data.
      batches: Function (source, first_step, rows) that iterates over batches.
      pictures: Callback that plots samples.
      config: Resolved config, which is written to the folder.
      workdir: Folder of the run, which all processes share.
      devices: Devices of all processes, in order of the processes.

    Returns:
      A sentence on the state of the run and its files.

    Raises:
      UserError: if the devices don't share the batch evenly, the data set is missing or differs from that of the run,
        the folder can't be written or another process trains there, the checkpoint doesn't fit the schedule, the disk
        is full, or the loss is not finite.
    """
    source = load("train")
    check_data(setup, source, len(devices))
    try:
        test = f"{len(load('test').examples):,} test examples"  # checks the labels of both splits
    except MissingSplit:
        test = "no test split"
    setup = setup._replace(notes=(test, *setup.notes))
    parallel = make_strategy(setup.strategy, devices)
    with sole_writer(workdir):
        check_config(workdir, config)  # another run may have begun here since the start
        prepare(workdir, config)
        if not setup.trainable:
            pictures.draw(setup.init_params(), 0, lambda: None)
            return f"this network is exact, there is nothing to train; pictures are in {workdir / 'samples'}"
        schedule = setup.schedule
        keep = schedule.keep_checkpoints, schedule.keep_every, schedule.keep_best
        manager = checkpoints.make_manager(workdir / "checkpoints", *keep)
        with checkpoints.closing(manager):
            return _train(setup, source, batches, pictures, workdir, devices, parallel, manager)


def _train(
    setup: TrainingSetup,
    source: Dataset,
    batches: Callable,
    pictures: Pictures,
    workdir: Path,
    devices,
    parallel,
    manager,
) -> str:
    schedule, lengths = setup.schedule, setup.ema.lengths
    state = restore_or_init(setup, manager)
    step = int(state.step)
    check_inputs(workdir, source, dict(setup.weights), resumed=step > 0)
    log_summary(setup, source, state, devices)
    if step >= schedule.num_steps:
        catch_up(setup, workdir, state, pictures)
        return f"{workdir} has finished its {step} steps; pictures are in {workdir / 'samples'}"

    check_step(schedule, workdir, step)

    train_step = build_train_step(setup, source.levels, parallel.axis_name, parallel.all_gather_params)
    run_steps = announcing(parallel.compile(train_step, state), "compiling the train step")
    calls = batches(source, step, distributed.local_slice(setup.batch_size))
    batch = next(calls)
    log_batch(batch)
    metrics_log, accumulator = MetricsLog(workdir, first_step=step), MetricAccumulator(setup.batch_size)
    metrics: Metrics | None = None
    losses: list[float] = []

    with (
        closing(metrics_log),
        interruptible() as interrupted,
        progress_bar(schedule.num_steps, step, "step", workdir.name) as bar,
    ):
        catch_up(setup, workdir, state, pictures, interrupted)
        state, batch = parallel.shard_state(state), parallel.shard_batch(_attach_stop_flag(batch, lambda: None))
        stopping = False
        while step < schedule.num_steps and not stopping:
            previous = metrics
            state, metrics = run_steps(state, batch)
            # The next batch is copied to the devices while they are busy.
            batch = parallel.shard_batch(_attach_stop_flag(next(calls), interrupted))
            jax.block_until_ready(previous)  # stay at most one call ahead, so that a signal is handled soon
            step += schedule.steps_per_call
            accumulator.add(metrics, schedule.steps_per_call)
            if previous is None:
                bar.unpause()  # its rate excludes the compilation
            bar.update(schedule.steps_per_call)
            stopping = _should_stop(interrupted, previous)
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
                check_finite(accumulator, step, setup, partial(batches, source), workdir, manager)
            if log_due:
                record = accumulator.summary()
                metrics_log.write(step, record)
                losses += [record["loss"]] if math.isfinite(record["loss"]) else []  # all steps may have been skipped
                bar.set_postfix_str(_postfix(record), refresh=False)
            accumulator.pause()
            if snapshot_due:  # before the checkpoint, so that a resumed run never misses an earlier snapshot
                snapshots.save(workdir, step, parallel.unshard(state.averages), lengths)
            if save_due or sample_due:  # before the plot, since the machine may be lost meanwhile
                checkpoints.save(manager, parallel.to_checkpoint(state), sum(losses) / len(losses) if losses else None)
                losses = []
            if sample_due and not stopping:
                pictures.draw(parallel.unshard(state.ema_params), step, interrupted)
            accumulator.resume()
        if stopping and step < schedule.num_steps:
            check_finite(accumulator, step, setup, partial(batches, source), workdir, manager)
            checkpoints.save(manager, parallel.to_checkpoint(state))
        checkpoints.finish(manager)
    if step < schedule.num_steps:
        by = interrupted() or "another process"
        return f"stopped by {by} and saved at step {step}; the same command resumes from there"
    if not pictures.path(step).is_file() and jax.process_count() == 1:
        return f"trained {step} steps; {interrupted()} came before the last picture, the same command draws it"
    return f"trained {step} steps; pictures are in {workdir / 'samples'}"


def _attach_stop_flag(batch: dict[str, np.ndarray], interrupted) -> dict[str, np.ndarray]:
    """Return the batch with this process's stop flag, which the others read from the step's metrics."""
    if jax.process_count() == 1:
        return batch
    return batch | {"stop": np.full(batch["index"].shape, bool(interrupted()), np.float32)}


def _should_stop(interrupted, metrics) -> bool:
    """Return whether to stop; several processes decide by the last call's metrics, all at the same step."""
    if jax.process_count() == 1:
        return bool(interrupted())
    return metrics is not None and float(metrics["stop"]) > 0


def _postfix(record: dict[str, float]) -> str:
    rate = f"{record['images_per_second']:.0f} images/s, " if "images_per_second" in record else ""
    return f"{rate}loss {record['loss']:.4f}"
