"""Before a sweep starts: every trial is built, the metrics are looked up, and what it will take is estimated."""

import json
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from score_sde.errors import UserError, nearest
from score_sde.evaluation.names import figure_names
from score_sde.experiment import Experiment, make_experiment
from score_sde.flops import flops_of
from score_sde.plan import shapes_of_batches, shapes_of_state
from score_sde.sweeps.trials import Trial, label
from score_sde.training.preparation import train_step_of

TRAINING = ("loss", "gradient_norm", "steps_per_second", "images_per_second")  # of metrics.jsonl


class Estimate(NamedTuple):
    """What a trial's training takes."""

    parameters: int
    flops: float  # of all its steps
    seconds: float  # at the rate of a matrix product on this machine, which no training reaches


def metric_of(asked: str) -> tuple[str, bool]:
    """A metric's name, and whether more of it is better."""
    name, _, direction = asked.partition(":")
    if direction not in ("", "min", "max"):
        raise UserError(f"a metric is better at its min or max, got {asked!r} (set --config.metrics)")
    return name, direction == "max"


def check(trials: list[Trial], sweep: ConfigDict) -> None:
    """Builds every trial's experiment, which refuses what can't be run, and looks for its metrics.

    Raises:
      UserError: naming the trial, or the metric with those that are nearest.
    """
    names: dict[str, set[str]] = {}
    for trial in trials:
        try:
            experiment = make_experiment(trial.config, jax.local_devices()[:1])
            key = json.dumps([trial.config.data.to_dict(), trial.config.evaluation.to_dict()], default=str)
            if key not in names:
                names[key] = figure_names(experiment, tuple(sweep.modes))
        except UserError as error:
            raise UserError(f"the trial {label(trial.overrides)!r} can't be run: {error}") from error
        known = names[key] | ({f"train.{name}" for name in TRAINING} if "train" in sweep.modes else set())
        for asked in sweep.metrics:
            name, _ = metric_of(asked)
            if name not in known:
                raise UserError(
                    f"no mode of {', '.join(sweep.modes)} writes {name!r} (set --config.metrics).{nearest(name, known)}"
                )
    if sweep.stop_metric and sweep.stop_metric not in TRAINING:
        raise UserError(
            f"no training logs {sweep.stop_metric!r}; it logs {', '.join(TRAINING)} (set --config.stop_metric)"
        )


def estimates(trials: list[Trial], sweep: ConfigDict) -> list[Estimate]:
    """What each trial takes; networks that are the same are traced once."""
    rate, traced = _matmul_rate(), {}
    found = []
    for trial in trials:
        config = trial.config
        parts = [config[group].to_dict() for group in ("data", "model", "sde", "loss", "optimizer")]
        key = json.dumps([*parts, config.training.batch_size, config.training.accumulate], default=str)
        if key not in traced:
            traced[key] = _of_a_step(make_experiment(config, jax.local_devices()[:1]))
        parameters, flops = traced[key]
        flops *= config.training.num_steps if "train" in sweep.modes else 0
        found.append(Estimate(parameters, flops, flops / rate))
    return found


def listing(trials: list[Trial], sweep: ConfigDict) -> str:
    """The trials with their overrides and estimates, one a line: what --dry_run prints."""
    rows = []
    for trial, estimate in zip(trials, estimates(trials, sweep), strict=True):
        rows.append(
            f"{label(trial.overrides)}, seed {trial.seed}: {estimate.parameters:,} parameters, "
            f"{estimate.flops / 1e12:.3g} TFLOP, at least {estimate.seconds:.0f} s -> {trial.folder}"
        )
    return "\n".join([*rows, f"{len(trials)} trials: {', '.join(sweep.modes)}; nothing was run"])


def _of_a_step(experiment: Experiment) -> tuple[int, float]:
    """(parameters, FLOPs of a train step)."""
    params = jax.eval_shape(experiment.init_params)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    if not experiment.trainable:
        return count, 0.0
    levels = experiment.source("train").levels
    batches = shapes_of_batches(experiment, experiment.batch_size, levels)
    batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), batches)  # of one step
    return count, flops_of(train_step_of(experiment, levels, None), shapes_of_state(experiment), batch)


def _matmul_rate(size: int = 1024) -> float:
    """FLOP/s of a matrix product here."""
    x = jnp.ones((size, size))
    product = jax.jit(jnp.dot)
    product(x, x).block_until_ready()
    begun = time.perf_counter()
    for _ in range(5):
        product(x, x).block_until_ready()
    return 5 * 2 * size**3 / (time.perf_counter() - begun)
