"""The work due at a step, and its completion if a run was killed after the checkpoint of the step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from score_sde.runtime import distributed
from score_sde.training import snapshots
from score_sde.training.setup import TrainingSchedule, TrainingSetup
from score_sde.training.state import TrainState


class Pictures(NamedTuple):
    """A callback that plots samples.

    Attributes:
      path: Function from a step to the path of its plot.
      draw: Function (params, step, interrupted) that writes the plot; it may stop early once `interrupted()` is true.
    """

    path: Callable[[int], Path]
    draw: Callable[[Any, int, Callable[[], Any]], Any]


def is_due(schedule: TrainingSchedule, step: int, every: int) -> bool:
    """Return whether work is due that is done every `every` steps (0: never) and after the last step."""
    return every > 0 and (step % every == 0 or step >= schedule.num_steps)


def catch_up(
    setup: TrainingSetup,
    workdir: Path,
    state: TrainState,
    pictures: Pictures,
    interrupted: Callable[[], Any] = lambda: None,
) -> None:
    """Write the EMA snapshots and the sample plot of the restored step, if they are missing.

    Args:
      setup: Parts of the run.
      workdir: Folder of the run.
      state: Restored state, on the host.
      pictures: Callback that plots samples.
      interrupted: Function that returns whether to stop.
    """
    step, schedule, lengths = int(state.step), setup.schedule, setup.ema.lengths
    if step == 0:
        return
    snapshots_due = distributed.is_main_process() and lengths and is_due(schedule, step, schedule.snapshot_every)
    if snapshots_due and not snapshots.are_whole(workdir, step, lengths):
        snapshots.save(workdir, step, state.averages, lengths)
    sample_due = is_due(schedule, step, schedule.sample_every)
    if distributed.any_process(sample_due and not pictures.path(step).exists()):
        pictures.draw(state.ema_params, step, interrupted)
