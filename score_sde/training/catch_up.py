"""Work due at a step, and its completion after a kill between a checkpoint and the rest of its step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from score_sde.evaluation.pictures import draw_samples, picture_path
from score_sde.experiment import Experiment, Schedule
from score_sde.runtime import distributed
from score_sde.training import snapshots
from score_sde.training.state import TrainState


def is_due(schedule: Schedule, step: int, every: int) -> bool:
    """Returns whether work done every `every` steps (0: never), and after the last, is due after this step."""
    return every > 0 and (step % every == 0 or step >= schedule.num_steps)


def catch_up(
    experiment: Experiment, workdir: Path, state: TrainState, interrupted: Callable[[], Any] = lambda: None
) -> None:
    """Makes the stored averages and the picture of the step that a run goes on from, where they are missing.

    Args:
      experiment: the parts of the run.
      workdir: its folder.
      state: restored, on the host.
      interrupted: as for `draw_samples`.
    """
    step, schedule, lengths = int(state.step), experiment.schedule, experiment.averages.lengths
    if step == 0:
        return
    stored = distributed.is_main_process() and lengths and is_due(schedule, step, schedule.snapshot_every)
    if stored and not snapshots.are_whole(workdir, step, lengths):
        snapshots.save(workdir, step, state.averages, lengths)
    picture_due = is_due(schedule, step, schedule.sample_every)
    if distributed.any_process(picture_due and not picture_path(experiment, workdir, step).exists()):
        draw_samples(experiment, state.ema_params, step, workdir, interrupted)
