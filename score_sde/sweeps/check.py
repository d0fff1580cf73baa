"""Before a sweep starts: every trial is built, the metrics are looked up, and what it will take is estimated."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from score_sde.errors import UserError, did_you_mean
from score_sde.evaluation.metric_names import metric_names
from score_sde.experiment import Experiment, make_experiment
from score_sde.planning.flops import flops_of
from score_sde.planning.plan import shapes_of_batches, shapes_of_state
from score_sde.sweeps.trials import Trial, label
from score_sde.training.metrics import progress_bar
from score_sde.training.setup import build_train_step

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
        raise UserError(f"a metric is better at its min or max, got {asked!r}")
    return name, direction == "max"


def check(trials: list[Trial], sweep: ConfigDict) -> None:
    """Builds every trial's experiment, which refuses what can't be run, and looks for its metrics.

    Raises:
      UserError: naming the trial, or the metric with those that are nearest.
    """
    names: dict[str, set[str]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    seeds, settings = set(), set()
    for trial in _shown(trials, "check"):
        config = trial.config
        if config.seed in seeds and _key(config, "seed") in settings:
            continue
        seeds.add(config.seed)
        settings.add(_key(config, "seed"))
        key = json.dumps([config.data.to_dict(), config.evaluation.to_dict()], default=str)
        try:
            with _network_traced_once(config, shapes, key in names):
                experiment = make_experiment(config, jax.local_devices()[:1])
            if key not in names:
                names[key] = metric_names(
                    experiment.load,
                    tuple(sweep.modes),
                    experiment.evaluation,
                    experiment.likelihood,
                    experiment.model.event_shape,
                )
        except UserError as error:
            raise UserError(f"the trial {label(trial.overrides)!r} can't be run: {error}") from error
        known = names[key] | ({f"train.{name}" for name in TRAINING} if "train" in sweep.modes else set())
        for asked in sweep.metrics:
            name, _ = metric_of(asked)
            if name not in known:
                modes = ", ".join(sweep.modes)
                raise UserError(f"no mode of {modes} writes {name!r}.{did_you_mean(name, known)}", "metrics")
    if sweep.stop_metric and sweep.stop_metric not in TRAINING:
        raise UserError(f"no training logs {sweep.stop_metric!r}; it logs {', '.join(TRAINING)}")


def estimates(trials: list[Trial], sweep: ConfigDict) -> list[Estimate]:
    """What each trial takes; networks that are the same are traced once."""
    rate, traced = _matmul_rate(), {}
    found = []
    for trial in _shown(trials, "estimate"):
        config = trial.config
        parts = [_without_numbers(config[group].to_dict()) for group in ("data", "model", "sde", "loss")]
        parts.append(_without_numbers(config.optimizer.to_dict(), int | float))
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


def _shown(trials: list[Trial], doing: str) -> Iterator[Trial]:
    """The trials, with a progress bar."""
    with progress_bar(len(trials), 0, "trial", doing) as bar:
        for trial in trials:
            yield trial
            bar.update()


def _key(config: ConfigDict, left_out: str) -> str:
    return json.dumps({group: value for group, value in config.to_dict().items() if group != left_out}, default=str)


def _without_numbers(value: Any, numbers: Any = float) -> Any:
    """A config's values, of real numbers only whether they are 0: they shape no array, but 0 may leave a part out."""
    if isinstance(value, dict):
        return {key: _without_numbers(each, numbers) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_numbers(each, numbers) for each in value]
    return bool(value) if isinstance(value, numbers) else value


@contextmanager
def _network_traced_once(config: ConfigDict, shapes: dict[str, tuple[int, ...]], reuse: bool) -> Iterator[None]:
    """Lets zeros stand in for the output of a network that an earlier trial has traced, within the block.

    Tracing a network takes longer than all else that an experiment checks.

    Args:
      config: the trial's.
      shapes: those of the outputs so far, without the batch, by what decides the network.
      reuse: false: trace it again.
    """
    key = json.dumps([config.data.to_dict(), config.model.to_dict(), config.loss.objective], default=str)
    known = reuse and key in shapes and not config.model.pretrained and not config.sampling.guide

    def intercept(call, args, kwargs, context):
        if context.method_name != "__call__" or isinstance(context.module.parent, nn.Module):
            return call(*args, **kwargs)
        if known:
            return jnp.zeros((args[0].shape[0], *shapes[key]))
        output = call(*args, **kwargs)
        shapes[key] = output.shape[1:]
        return output

    with nn.intercept_methods(intercept):
        yield


def _of_a_step(experiment: Experiment) -> tuple[int, float]:
    """(parameters, FLOPs of a train step)."""
    params = jax.eval_shape(experiment.training.init_params)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    if not experiment.training.trainable:
        return count, 0.0
    levels = experiment.load("train").levels
    batches = shapes_of_batches(experiment, experiment.training.batch_size, levels)
    batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), batches)  # of one step
    return count, flops_of(build_train_step(experiment.training, levels, None), shapes_of_state(experiment), batch)


def _matmul_rate(size: int = 1024) -> float:
    """FLOP/s of a matrix product here."""
    x = jnp.ones((size, size))
    product = jax.jit(jnp.dot)
    product(x, x).block_until_ready()
    begun = time.perf_counter()
    for _ in range(5):
        product(x, x).block_until_ready()
    return 5 * 2 * size**3 / (time.perf_counter() - begun)
