"""Detection of a nonfinite loss or gradient; the run stops with a record that reproduces the step."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from score_sde.errors import UserError
from score_sde.runtime import distributed
from score_sde.runtime.disk import write_atomically
from score_sde.training.checkpoints import finish
from score_sde.training.metrics import MetricAccumulator
from score_sde.training.setup import TrainingSetup

MAX_CONSECUTIVE_SKIPS = 100


def check_finite(
    accumulator: MetricAccumulator,
    step: int,
    setup: TrainingSetup,
    batches: Callable[[int], Iterator],
    workdir: Path,
    manager,
) -> None:
    """Raise UserError if a step since the last log was not finite; call it before anything is saved.

    With on_nonfinite=skip it raises only after many consecutive skips. DIR/nonfinite_<step>.json then holds the step,
    its key and the indices of its examples.

    Args:
      accumulator: Metrics since the last log.
      step: Number of finished steps.
      setup: Parts of the run.
      batches: Function from a step to the batches from there on.
      workdir: Folder of the run.
      manager: Checkpoint manager.
    """
    first, count, consecutive = accumulator.nonfinite(step)
    skipping = setup.skip_nonfinite
    if count == 0 or (skipping and consecutive < MAX_CONSECUTIVE_SKIPS):
        return
    first = step - consecutive if skipping else first
    finish(manager)
    saved = manager.latest_step()
    path = workdir / f"nonfinite_{first:08d}.json"
    if distributed.is_main_process():
        batch = next(batches(first))
        record = {
            "step": first,
            "step_key": jax.random.key_data(jax.random.fold_in(setup.key, first)).tolist(),
            "examples": batch["index"][0].tolist(),
            "last_checkpoint": saved,
        }
        write_atomically(path, json.dumps(record) + "\n")
    subject = "every step" if skipping else "the loss or its gradient"
    checkpoint = "No checkpoint was saved" if saved is None else f"The last checkpoint is of step {saved}"
    raise UserError(
        f"{subject} is not finite from step {first} on; {path} has its examples and key. {checkpoint}. The same "
        "command resumes from there and reaches the same step again. A smaller learning_rate or clip_norm, or more "
        "warmup_steps may help",
        "learning_rate",
        "clip_norm",
        "warmup_steps",
        "on_nonfinite=skip",
    )
