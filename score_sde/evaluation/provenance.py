"""Which parameters figures are of: what an evaluation asks for, and what is written beside every figure."""

from pathlib import Path
from typing import Any

from score_sde.errors import UserError
from score_sde.experiment import Experiment
from score_sde.training.checkpoints import saved_steps
from score_sde.training.ema import check_choice
from score_sde.training.load import Chosen, chosen_by_config


def subjects(experiment: Experiment, workdir: Path) -> list[Chosen]:
    """Every checkpoint and average that config.evaluation asks for: each of its steps with each of its averages.

    Raises:
      UserError: a checkpoint isn't there, or an average isn't kept.
    """
    how, usual = experiment.evaluation, chosen_by_config(experiment)
    averages = [(decay, 0.0) for decay in how["ema_decays"]] + [(0.0, length) for length in how["ema_lengths"]]
    for decay, length in averages:
        further = 0.0 if decay == experiment.averages.decay else decay
        check_choice(experiment.averages, further, length, "--config.evaluation.ema_decays")
    averages = averages or [(usual.ema_decay, usual.ema_length)]
    saved = saved_steps(workdir)
    steps = sorted(how["steps"]) or (saved if how["every_checkpoint"] else [None])
    missing = [step for step in steps if step not in (*saved, None)]
    if missing or not steps:
        raise UserError(
            f"{workdir} has checkpoints of the steps {', '.join(map(str, saved)) or 'none'}, not of "
            f"{', '.join(map(str, missing)) or 'any'} (set --config.evaluation.steps; which ones stay is said by "
            "--config.training.keep_checkpoints and keep_every when a run is trained)"
        )
    return [Chosen(step, *average) for step in steps for average in averages]


def provenance(experiment: Experiment, step: int, chosen: Chosen | None = None) -> dict[str, Any]:
    """What is written beside every figure: the checkpoint's step, the moving average, the seed."""
    chosen = chosen or chosen_by_config(experiment)
    average = {"length": chosen.ema_length} if chosen.ema_length else {"decay": chosen.ema_decay}
    return {"step": step, "average": average, "seed": experiment.config["seed"]}
