"""Checks before a sweep starts: every trial can be built, its metrics exist, and its cost is estimated."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from score_sde import models
from score_sde.errors import UserError, did_you_mean
from score_sde.evaluation.generalization import loss_names
from score_sde.evaluation.metric_names import metric_names
from score_sde.experiment import Experiment, make_experiment
from score_sde.planning.flops import count_flops
from score_sde.planning.plan import shapes_of_batches, shapes_of_state
from score_sde.sweeps.trials import Trial, label
from score_sde.training.metrics import progress_bar
from score_sde.training.setup import build_train_step

TRAINING_METRICS = ("loss", "gradient_norm", "steps_per_second", "images_per_second")  # in metrics.jsonl


class Estimate(NamedTuple):
    """Cost of a trial's training."""

    parameters: int
    flops: float  # total of all steps
    seconds: float  # a lower bound, from the FLOP/s of a matrix product on this machine


def parse_metric(spec: str) -> tuple[str, bool]:
    """Return the name of a metric "NAME", "NAME:min" or "NAME:max", and whether larger values are better."""
    name, _, direction = spec.partition(":")
    if direction not in ("", "min", "max"):
        raise UserError(f"metrics: expected NAME, NAME:min or NAME:max, got {spec!r}", "metrics")
    return name, direction == "max"


def check(trials: list[Trial], sweep: ConfigDict) -> None:
    """Raise UserError unless every trial can run and writes the metrics of the sweep.

    Raises:
      UserError: if a trial can't be built, with its overrides; if no mode writes a metric, with the closest name.
    """
    names: dict[str, set[str]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    seeds, settings = set(), set()
    for trial in _with_progress_bar(trials, "check"):
        config = trial.config
        if config.seed in seeds and _key(config, "seed") in settings:
            continue
        seeds.add(config.seed)
        settings.add(_key(config, "seed"))
        groups = [group.to_dict() for group in (config.data, config.evaluation, config.likelihood)]
        weighted = config.sampling.particles > 1
        settings_of_names = [weighted, config.loss.objective, config.sampling.allow_off_grid_times]
        key = json.dumps([*groups, *settings_of_names], default=str)
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
                    weighted,
                    loss_names(
                        experiment.model, experiment.load("train"), experiment.evaluation, config.data.dequantize
                    ),
                )
        except UserError as error:
            raise UserError(f"the trial {label(trial.overrides)!r} can't be run: {error}") from error
        known = names[key] | ({f"train.{name}" for name in TRAINING_METRICS} if "train" in sweep.modes else set())
        for spec in sweep.metrics:
            name, _ = parse_metric(spec)
            if name not in known:
                modes = ", ".join(sweep.modes)
                raise UserError(f"no mode of {modes} writes {name!r}.{did_you_mean(name, known)}", "metrics")
    if sweep.stop_metric and sweep.stop_metric not in TRAINING_METRICS:
        raise UserError(f"no training logs {sweep.stop_metric!r}; it logs {', '.join(TRAINING_METRICS)}", "stop_metric")


def estimates(trials: list[Trial], sweep: ConfigDict) -> list[Estimate]:
    """Estimate the cost of each trial; trials that share a network trace it once."""
    rate, traced = _matmul_rate(), {}
    result = []
    for trial in _with_progress_bar(trials, "estimate"):
        config = trial.config
        # The FLOPs are those of the network's products, which depend on neither the SDE nor the prediction.
        model = {key: value for key, value in config.model.to_dict().items() if key != "prediction"}
        groups = [_without_numbers(group) for group in (config.data.to_dict(), model, config.loss.to_dict())]
        groups.append(_without_numbers(config.optimizer.to_dict(), int | float))
        key = json.dumps([*groups, config.training.batch_size, config.training.grad_accum_steps], default=str)
        if key not in traced:
            traced[key] = _step_cost(make_experiment(config, jax.local_devices()[:1]))
        parameters, flops = traced[key]
        flops *= config.training.num_steps if "train" in sweep.modes else 0
        result.append(Estimate(parameters, flops, flops / rate))
    return result


def listing(trials: list[Trial], sweep: ConfigDict) -> str:
    """Return the text of a dry run: one line per trial with its overrides and estimate."""
    rows = []
    for trial, estimate in zip(trials, estimates(trials, sweep), strict=True):
        rows.append(
            f"{label(trial.overrides)}, seed {trial.seed}: {estimate.parameters:,} parameters, "
            f"{estimate.flops / 1e12:.3g} TFLOP, at least {estimate.seconds:.0f} s -> {trial.folder}"
        )
    return "\n".join([*rows, f"{len(trials)} trials: {', '.join(sweep.modes)}; nothing was run"])


def _with_progress_bar(trials: list[Trial], activity: str) -> Iterator[Trial]:
    """Iterate over the trials with a progress bar."""
    with progress_bar(len(trials), 0, "trial", activity) as bar:
        for trial in trials:
            yield trial
            bar.update()


def _key(config: ConfigDict, ignored: str) -> str:
    return json.dumps({group: value for group, value in config.to_dict().items() if group != ignored}, default=str)


def _without_numbers(value: Any, numbers: Any = float) -> Any:
    """Replace real numbers in a config by whether they differ from 0.

    Their values change no array's shape, but 0 may disable a component.
    """
    if isinstance(value, dict):
        return {key: _without_numbers(item, numbers) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_numbers(item, numbers) for item in value]
    return bool(value) if isinstance(value, numbers) else value


@contextmanager
def _network_traced_once(config: ConfigDict, shapes: dict[str, tuple[int, ...]], reuse: bool) -> Iterator[None]:
    """Replace the output of a network that an earlier trial has traced by zeros during the block.

    Tracing a network takes longer than all other checks of an experiment.

    Args:
      config: Config of the trial.
      shapes: Output shapes of the networks so far, without the batch, by the config values that decide the network.
      reuse: Whether zeros may replace the network; if false, it is traced again.
    """
    key = json.dumps([config.data.to_dict(), config.model.to_dict(), config.loss.objective], default=str)
    network = models.MODELS.get(config.model.name, ())
    others = config.model.pretrained, config.sampling.guidance_weights, config.loss.objective_kwargs.get("teacher")
    known = reuse and key in shapes and not any(others)

    def intercept(call, args, kwargs, context):
        if context.method_name != "__call__" or not isinstance(context.module, network):
            return call(*args, **kwargs)
        if known:
            return jnp.zeros((args[0].shape[0], *shapes[key]))
        output = call(*args, **kwargs)
        shapes[key] = output.shape[1:]
        return output

    with nn.intercept_methods(intercept):
        yield


def _step_cost(experiment: Experiment) -> tuple[int, float]:
    """Return the number of parameters and the FLOPs of a train step."""
    params = jax.eval_shape(experiment.training.init_params)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    if not experiment.training.trainable:
        return count, 0.0
    levels = experiment.load("train").levels
    batches = shapes_of_batches(experiment, experiment.training.batch_size, levels)
    batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), batches)  # one step
    return count, count_flops(build_train_step(experiment.training, levels, None), shapes_of_state(experiment), batch)


def _matmul_rate(size: int = 1024) -> float:
    """Measure the FLOP/s of a matrix product on this machine."""
    x = jnp.ones((size, size))
    product = jax.jit(jnp.dot)
    product(x, x).block_until_ready()
    begun = time.perf_counter()
    for _ in range(5):
        product(x, x).block_until_ready()
    return 5 * 2 * size**3 / (time.perf_counter() - begun)
