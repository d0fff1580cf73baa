"""What a run has learned so far."""

from pathlib import Path
from typing import Any

from score_sde import hosts
from score_sde.experiment import Experiment
from score_sde.models import pretrained
from score_sde.training.checkpoints import has_checkpoint, restore_newest
from score_sde.training.snapshots import reconstruct
from score_sde.training.workdir import prepare


def trained(experiment: Experiment, workdir: Path) -> tuple[Any, int]:
    """The moving average of the newest checkpoint's parameters that config.sampling chooses, and its step.

    Without a checkpoint: of an exact network nothing, of a pretrained one what was loaded; and 0.

    Raises:
      UserError: the network has parameters and the folder no checkpoint.
    """
    untrained = not experiment.trainable or (experiment.pretrained and not has_checkpoint(workdir))
    if untrained:
        prepare(workdir, experiment.config)  # there was no run that made the folder
        return experiment.init_params(), 0
    state = restore_newest(workdir)
    step, chosen = int(state["step"]), experiment.config["sampling"]
    if chosen["ema_length"]:
        return reconstruct(workdir, step, chosen["ema_length"]), step
    if chosen["ema_decay"]:
        place = experiment.averages.decays.index(chosen["ema_decay"])
        return state["averages"][f"decay_{place}"], step
    return state["ema_params"], step


def export(experiment: Experiment, workdir: Path) -> Path:
    """Writes what `trained` gives as safetensors, with all that is needed to use it elsewhere; returns the file."""
    params, step = trained(experiment, workdir)
    path = workdir / f"ema_{step:08d}.safetensors"
    if not hosts.first():
        return path
    config = experiment.config
    shown = {name: config["data"][name] for name in ("image_size", "channels", "sigma_data")}
    pretrained.save(path, params, config["model"], {"sde": config["sde"]} | shown)
    return path
