"""Loading of parameters from a run, and their export."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from score_sde.models import pretrained
from score_sde.runtime import distributed
from score_sde.training.checkpoints import has_checkpoint, restore_newest, restore_step
from score_sde.training.data_record import class_names
from score_sde.training.ema import EMAConfig
from score_sde.training.setup import TrainingSetup
from score_sde.training.snapshots import reconstruct_ema
from score_sde.training.uncertainty import without_uncertainty
from score_sde.training.workdir import prepare


class CheckpointSpec(NamedTuple):
    """A checkpoint and an EMA of its parameters.

    Attributes:
      step: Step of the checkpoint; None for the newest.
      ema_decay: Decay of the EMA.
      ema_length: Relative length of a post-hoc EMA; 0 for none.
    """

    step: int | None
    ema_decay: float
    ema_length: float = 0.0

    def record(self, step: int, seed: int) -> dict[str, Any]:
        """Return the metadata of a result: the step of the checkpoint, the EMA and the seed."""
        average = {"length": self.ema_length} if self.ema_length else {"decay": self.ema_decay}
        return {"step": step, "average": average, "seed": seed}


def default_spec(config: Mapping[str, Any], ema: EMAConfig) -> CheckpointSpec:
    """Return the newest checkpoint with the EMA of config.sampling."""
    sampling = config["sampling"]
    return CheckpointSpec(None, sampling["ema_decay"] or ema.decay, sampling["ema_length"])


def load_params(
    setup: TrainingSetup, config: Mapping[str, Any], workdir: Path, spec: CheckpointSpec | None = None
) -> tuple[Any, int]:
    """Return an EMA of a checkpoint's parameters, and its step.

    Without a checkpoint it returns the parameters of a pretrained or analytic network, and step 0.

    Args:
      setup: Parts of the run.
      config: Resolved config of the run.
      workdir: Folder of the run.
      spec: Checkpoint and EMA; None for `default_spec`.

    Raises:
      UserError: if the folder has no checkpoint, or none of that step.
    """
    spec = spec or default_spec(config, setup.ema)
    pretrained_only = bool(config["model"]["pretrained"]) and not has_checkpoint(workdir)
    if pretrained_only or not setup.trainable:
        prepare(workdir, config)  # no training made the folder
        return setup.init_params(), 0
    state = restore_newest(workdir) if spec.step is None else restore_step(workdir, spec.step)
    step = int(state["step"])
    if spec.ema_length:
        return reconstruct_ema(workdir, step, spec.ema_length), step
    if spec.ema_decay != setup.ema.decay:
        return state["averages"][f"decay_{setup.ema.decays.index(spec.ema_decay)}"], step
    return state["ema_params"], step


def export(setup: TrainingSetup, config: Mapping[str, Any], workdir: Path) -> Path:
    """Write the parameters of `load_params` as safetensors, with the config of their network; return the path."""
    params, step = load_params(setup, config, workdir)
    path = workdir / f"ema_{step:08d}.safetensors"
    if distributed.is_main_process():
        write_weights(path, without_uncertainty(params), config, class_names(workdir))
    return path


def write_weights(path: Path, params: Any, config: Mapping[str, Any], names: Sequence[str] = ()) -> None:
    """Write parameters as safetensors, with the model, process, objective and standardization of the config."""
    kept = ("image_size", "channels", "sigma_data", "standardize", "mean", "std")
    data = {name: config["data"][name] for name in kept} | {"class_names": list(names)}
    process = {"sde": config["sde"], "objective": config["loss"]["objective"]}
    pretrained.save(path, params, config["model"], process | data)
