"""The sampler of config.sampling."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from score_sde import ddpm
from score_sde.data import Dataset, load_examples, to_unit_range
from score_sde.errors import UserError, not_none
from score_sde.experiment.flags import build_part, naming_flags, plain
from score_sde.experiment.from_data import sampled_classes
from score_sde.experiment.guides import build_guidance, load_guide
from score_sde.experiment.model import check_prior
from score_sde.experiment.tasks import build_task, measure
from score_sde.model import DiffusionModel
from score_sde.sampling import InverseTask, Measured, Sampler, check_sampling, is_weighted, sample
from score_sde.solvers import ADAPTIVE, SOLVERS, Solver, evaluation_times, snap_to_timesteps, time_grid
from score_sde.thresholding import THRESHOLDS, Threshold

MEASUREMENT = 2**31 - 1  # folded into the key of the measurements, an index that no sample has


def build_sampler(
    config: ConfigDict,
    model: DiffusionModel,
    schedule: ddpm.Schedule | None,
    key: jax.Array,
    devices: Sequence[jax.Device],
    load: Callable[[str], Dataset],
) -> Sampler:
    """Return the sampler of a model.

    Args:
      config: The config.
      model: Model to sample from.
      schedule: Discrete-time schedule of the SDE, if it has one.
      key: Key of all samples.
      devices: Devices of this process.
      load: Function from a split to its data; an inverse problem measures images of the test split.

    Raises:
      UserError: if a name, number or combination is invalid.
    """
    options = config.sampling
    guide, guide_params = load_guide(config, model, schedule)
    if isinstance(guide, DiffusionModel) and guide.timesteps is not None:
        model = model._replace(timesteps=guide.timesteps)
    task = build_task(config, model.event_shape)
    num_classes = _num_classes(model, guide)
    present = cache(partial(sampled_classes, config, num_classes, load))
    labels = sample_labels(config, num_classes, task is None, present)
    guidance = build_guidance(config, model, guide, unlabeled=task is not None and options.label < 0)
    threshold = build_threshold(config, task)
    solver = build_part(config, "solver", SOLVERS | ADAPTIVE, "sampling.solver", "sampling.kwargs")
    times = build_times(config, model, solver, task)
    fixed = {"solver": solver, "times": times, "task": task, "threshold": threshold, "denoise": options.denoise}
    fixed |= {"particles": options.particles}
    with naming_flags(config, "sampling", "sampling.method_kwargs", sde="sde.name"):
        check_sampling(model, guidance, **fixed)
    return Sampler(
        sample_fn=partial(sample, model, guidance=guidance, **fixed),
        key=key,
        num_samples=options.num_samples,
        batch_size=options.batch_size,
        devices=devices,
        arguments=cache(lambda: {} if guide is None else {"guide_params": jax.tree.map(jnp.asarray, guide_params)}),
        labels=labels,
        task=task,
        measured=cache(lambda: _measure(config, not_none(task), load, key)),
        has_trajectory=isinstance(solver, Solver) and not is_weighted(task, options.particles),
        particles=options.particles,
    )


def sample_labels(
    config: ConfigDict, num_classes: int, in_turn: bool, present: Callable[[], np.ndarray]
) -> Callable[[Any], Any]:
    """Return the function from indices of samples to their classes, or to None without classes.

    All samples have the class config.sampling.label. For -1 they have each of `present()` in turn, those with training
    examples, or the null label if not `in_turn`.

    Raises:
      UserError: if there is no such class.
    """
    label = config.sampling.label
    if label != -1 and not 0 <= label < num_classes:
        classes = (
            f"has the classes 0 to {num_classes - 1}; -1 selects each in turn, or no class for a task"
            if num_classes
            else "is unconditional"
        )
        raise UserError(f"label {label}: the network {classes}", "--config.sampling.label")
    if not num_classes:
        return lambda indices: None

    def labels(indices):
        if label < 0:
            return present()[indices % len(present())] if in_turn else np.full_like(indices, label)
        if label not in present():
            raise UserError(f"label {label}: this class has no training example", "--config.sampling.label")
        return np.full_like(indices, label)

    return labels


def build_threshold(config: ConfigDict, task: InverseTask | None) -> Threshold:
    """Return the thresholding of x0.

    "auto" clips for inverse problems, whose gradients through x0 grow as 1 / alpha at high noise.
    """
    if config.sampling.threshold == "auto":
        config = config.copy_and_resolve_references()
        config.sampling.threshold = "none" if task is None else "clip"
    return build_part(config, "threshold", THRESHOLDS, "sampling.threshold", "sampling.threshold_kwargs")


def build_times(config: ConfigDict, model: DiffusionModel, solver: Any, task: InverseTask | None) -> np.ndarray | None:
    """Return the times of the solver's steps, None for an adaptive solver.

    The times of a network of discrete time are among its timesteps.
    """
    options, schedule = config.sampling, model.timesteps
    if options.t_max:
        check_prior(model.sde, options.t_max, "sampling", "--config.sampling.t_max")
    if not isinstance(solver, Solver):
        if options.t_max:
            raise UserError(
                f"solver {options.solver!r} starts at the SDE's t_max, so t_max has no effect",
                "--config.sampling.t_max=0",
            )
        if schedule is not None:
            raise _between_timesteps(config, "chain's")
        if task is not None:
            raise UserError(
                f"task {task.name!r} steps along a grid, and solver {options.solver!r} chooses its own times",
                "--config.sampling.solver",
            )
        return None
    names = {name: f"sampling.{name}" for name in ("spacing", "end", "num_steps", "t_max")}
    with naming_flags(config, "sampling.spacing_kwargs", **names):
        times = time_grid(
            model.sde,
            options.num_steps,
            options.spacing,
            options.end,
            spacing_kwargs=plain(options.spacing_kwargs),
            t_max=options.t_max or None,
        )
        if schedule is None:
            return times
        times = snap_to_timesteps(times, len(schedule.betas))
    index = evaluation_times(solver, model.sde, times) * (len(schedule.betas) - 1)
    if np.abs(index - np.rint(index)).max() > 1e-2:
        raise _between_timesteps(config, len(schedule.betas))
    return times


def _between_timesteps(config: ConfigDict, steps: Any) -> UserError:
    return UserError(
        f"solver {config.sampling.solver!r} evaluates the network between the {steps} timesteps it was trained at",
        "--config.sampling.allow_off_grid_times=True if it may",
        "--config.sampling.solver to another",
    )


def _num_classes(model: DiffusionModel, guide: Any) -> int:
    """Return the number of classes that samples can have.

    Raises:
      UserError: if the network and its guide have different numbers of classes.
    """
    guided = 0 if guide is None else guide.num_classes
    if model.num_classes and guided and model.num_classes != guided:
        raise UserError(
            f"the network has {model.num_classes} classes and the guide {guided}: expected the same number",
            "--config.sampling.guidance_weights",
        )
    return model.num_classes or guided


def _measure(config: ConfigDict, task: InverseTask, load: Callable[[str], Dataset], key: jax.Array) -> Measured:
    """Return the first test images and their measurements; the noise of image i is a function of (key, i)."""
    source, number = load("test"), config.sampling.num_samples // task.samples_per_measurement
    if number > len(source.examples):
        raise UserError(
            f"task: {config.sampling.num_samples} samples are {number} images with {task.samples_per_measurement} "
            f"completions each, and the test split has {len(source.examples)}",
            "--config.sampling.num_samples",
        )
    truth = to_unit_range(load_examples(source, number)[0], source.levels)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.fold_in(key, MEASUREMENT), jnp.arange(number))
    measured = jax.jit(lambda truth, keys: measure(task, truth, keys))(truth, keys)
    return Measured(np.asarray(truth), np.asarray(measured))
