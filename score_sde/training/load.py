"""What a run has learned so far."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from score_sde.experiment import Experiment
from score_sde.models import pretrained
from score_sde.runtime import distributed
from score_sde.training.checkpoints import has_checkpoint, restore_newest, restore_step
from score_sde.training.snapshots import reconstruct
from score_sde.training.workdir import prepare


class Chosen(NamedTuple):
    """A checkpoint, and a moving average of its parameters."""

    step: int | None  # None: the newest
    ema_decay: float
    ema_length: float  # of one that is put together from the stored ones; 0: none


def chosen_by_config(experiment: Experiment) -> Chosen:
    """The newest checkpoint, and the average that config.sampling names."""
    sampling = experiment.config["sampling"]
    return Chosen(None, sampling["ema_decay"] or experiment.averages.decay, sampling["ema_length"])


def trained(experiment: Experiment, workdir: Path, chosen: Chosen | None = None) -> tuple[Any, int]:
    """A moving average of a checkpoint's parameters, and its step.

    Without a checkpoint: of an exact network nothing, of a pretrained one what was loaded; and 0.

    Args:
      experiment: the parts of a run.
      workdir: its folder.
      chosen: which; None: `chosen_by_config`.

    Raises:
      UserError: the network has parameters and the folder no checkpoint, or none of that step.
    """
    chosen = chosen or chosen_by_config(experiment)
    untrained = not experiment.trainable or (experiment.pretrained and not has_checkpoint(workdir))
    if untrained:
        prepare(workdir, experiment.config)  # there was no run that made the folder
        return experiment.init_params(), 0
    state = restore_newest(workdir) if chosen.step is None else restore_step(workdir, chosen.step)
    step = int(state["step"])
    if chosen.ema_length:
        return reconstruct(workdir, step, chosen.ema_length), step
    if chosen.ema_decay != experiment.averages.decay:
        place = experiment.averages.decays.index(chosen.ema_decay)
        return state["averages"][f"decay_{place}"], step
    return state["ema_params"], step


def export(experiment: Experiment, workdir: Path) -> Path:
    """Writes what `trained` gives as safetensors, with all that is needed to use it elsewhere; returns the file."""
    params, step = trained(experiment, workdir)
    path = workdir / f"ema_{step:08d}.safetensors"
    if distributed.is_main_process():
        write_weights(path, params, experiment.config)
    return path


def write_weights(path: Path, params: Any, config: Mapping[str, Any]) -> None:
    """Parameters as safetensors, with what of a run's config decides what they are."""
    shown = {name: config["data"][name] for name in ("image_size", "channels", "sigma_data")}
    process = {"sde": config["sde"], "objective": config["loss"]["objective"]}
    pretrained.save(path, params, config["model"], process | shown)
