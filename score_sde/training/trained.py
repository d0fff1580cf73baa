"""What a run has learned so far."""

from pathlib import Path
from typing import Any

from score_sde.experiment import Experiment
from score_sde.training.checkpoints import restore_newest
from score_sde.training.workdir import prepare


def trained(experiment: Experiment, workdir: Path) -> tuple[Any, int]:
    """The moving average of the newest checkpoint's parameters, and its step; of an exact network nothing, and 0.

    Raises:
      UserError: the network has parameters and the folder no checkpoint.
    """
    if not experiment.trainable:
        prepare(workdir, experiment.config)  # there was no run that made the folder
        return experiment.init_params(), 0
    state = restore_newest(workdir)
    return state["ema_params"], int(state["step"])
