"""A loss that is no longer finite: the run stops, names the step, and leaves what reproduces it."""

import json
from pathlib import Path

import jax

from score_sde.data import Source
from score_sde.errors import UserError
from score_sde.experiment import Experiment
from score_sde.runtime import distributed
from score_sde.runtime.disk import write_atomically
from score_sde.training.checkpoints import finish
from score_sde.training.metrics import Window

PATIENCE = 100  # steps that may be left out one after another


def check_finite(window: Window, step: int, experiment: Experiment, source: Source, workdir: Path, manager) -> None:
    """Looks at every step since the last log, before anything is saved.

    Args:
      window: the metrics since then.
      step: how many steps are finished.
      experiment, source, workdir, manager: of the run.

    Raises:
      UserError: the loss or the gradient was not finite, or under on_nonfinite=skip in so many steps without a break;
        DIR/nonfinite_<step>.json then holds the step, its key and its examples' places in the data.
    """
    first, count, unbroken = window.nonfinite(step)
    skipping = experiment.step_options["skip_nonfinite"]
    if count == 0 or (skipping and unbroken < PATIENCE):
        return
    first = step - unbroken if skipping else first
    finish(manager)
    saved = manager.latest_step()
    path = workdir / f"nonfinite_{first:08d}.json"
    if distributed.is_main_process():
        batch = next(experiment.batches(source, first))
        key = jax.random.fold_in(experiment.training_key, first)
        figures = {
            "step": first,
            "step_key": jax.random.key_data(key).tolist(),
            "examples": batch["index"][0].tolist(),
            "last_checkpoint": saved,
        }
        write_atomically(path, json.dumps(figures) + "\n")
    every = "every step" if skipping else "the loss or its gradient"
    raise UserError(
        f"{every} is not finite from step {first} on; {path} says with which examples and key. "
        f"{'No checkpoint was saved' if saved is None else f'The last checkpoint is of step {saved}'}: the same "
        "command goes on from there and comes to the same step again. A smaller --config.optimizer.learning_rate, a "
        "longer --config.optimizer.warmup_steps or a smaller --config.optimizer.clip_norm may help, or "
        "--config.training.on_nonfinite=skip"
    )
