"""Sampling from a model: `sample` as a pure function, `sample_batches` on all devices."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from operator import itemgetter
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from score_sde.conditioned import NULL_LABEL, conditioned
from score_sde.errors import UserError, build, not_none
from score_sde.guidance import (
    autoguided,
    class_log_prob,
    classifier_free_labeled,
    classifier_guided,
    together_labeled,
)
from score_sde.inverse import TWISTED, Problem, apply_method, measurement_potential, sdedit
from score_sde.model import DiffusionModel, NoisyClassifier
from score_sde.operators import Operator
from score_sde.parameterization import Denoiser, Prediction
from score_sde.particles import Target, check_weighted, product, solve_weighted, tilted, warn_clipped
from score_sde.runtime import distributed
from score_sde.runtime.periodic import announcing
from score_sde.sde import lift, prior_sample
from score_sde.solvers import Solution, Solver, check_finite, most_evaluations, solve
from score_sde.solvers.base import CONSTRAINT_NOT_MET
from score_sde.thresholding import Threshold, none


class Guidance(NamedTuple):
    """Options of guided sampling.

    Attributes:
      scale: Guidance scale. 0 is the unguided prediction (unconditional, or that of the weaker network), 1 is the
        conditional one, above 1 is sharper.
      interval: (low, high) of t in which to guide; None for everywhere. Unused with a classifier.
      rescale: Fraction, in [0, 1], by which x0 is rescaled to the conditional contrast. Unused with a classifier.
      guide: Classifier, or weaker network for autoguidance; None for classifier-free guidance.
    """

    scale: float = 1.0
    interval: tuple[float, float] | None = None
    rescale: float = 0.0
    guide: DiffusionModel | NoisyClassifier | None = None


class InverseTask(NamedTuple):
    """An inverse problem without its measurement.

    Attributes:
      name: Name of the task.
      operator: Measurement operator A; None for SDEdit, whose measurement is the guide image itself.
      noise: Standard deviation of the measurement noise.
      samples_per_measurement: Number of samples for each measurement.
      method: Key of `inverse.INVERSE_METHODS`, or "twisted" for weighted particles.
      method_kwargs: Keyword arguments of the method.
      strength: Fraction of the steps that SDEdit takes.
    """

    name: str
    operator: Operator | None
    noise: float = 0.0
    samples_per_measurement: int = 1
    method: str = "pigdm"
    method_kwargs: Mapping[str, Any] = {}
    strength: float = 0.5


def guided_denoiser(
    model: DiffusionModel,
    params: Any,
    labels: jax.Array | None = None,
    guidance: Guidance = Guidance(),  # noqa: B008
    guide_params: Any = None,
) -> Denoiser:
    """Return the denoiser of a model with its labels and guidance; see `sample` for the arguments."""
    scale, interval, rescale, guide = guidance
    if labels is not None and not (model.num_classes or (guide is not None and guide.num_classes)):
        raise UserError("sample: got labels, but neither the network nor a guide has classes", "labels")
    model_labels = labels if model.num_classes else None
    if isinstance(guide, NoisyClassifier):
        if labels is None:
            raise UserError("sample: expected labels for guidance by a classifier, got none", "labels")
        log_prob_fn = class_log_prob(guide.logits(guide_params), labels)
        return classifier_guided(model.denoiser(params, labels=model_labels), log_prob_fn, model.sde, scale)
    if guide is not None:
        weaker = guide.denoiser(guide_params, labels=labels if guide.num_classes else None)
        return autoguided(model.denoiser(params, labels=model_labels), weaker, scale, interval, rescale, model.sde)
    if model_labels is None:
        if not (isinstance(scale, int | float) and scale == 1 and interval is None and rescale == 0):
            raise UserError("sample: guidance has no effect without labels or a guide", "labels", "guidance")
        return model.denoiser(params)
    return classifier_free_labeled(
        lambda labels: model.denoiser(params, labels=labels), model_labels, scale, interval, rescale, model.sde
    )


def sample(
    model: DiffusionModel,
    params: Any,
    keys: jax.Array,
    *,
    solver: Solver | Callable[..., Solution],
    times: Any = None,
    labels: jax.Array | None = None,
    guidance: Guidance = Guidance(),  # noqa: B008
    guide_params: Any = None,
    threshold: Threshold = none(),  # noqa: B008
    task: InverseTask | None = None,
    measurement: jax.Array | None = None,
    denoise: bool = False,
    trajectory: bool = False,
    particles: int = 1,
) -> Solution:
    """Sample from a model, from the prior to data.

    Args:
      model: Diffusion model.
      params: Parameters of its network.
      keys: (batch,) keys. Example i is a function of keys[i], its label and its measurement only.
      solver: Solver of `solvers.SOLVERS`, or one of `solvers.ADAPTIVE`, which chooses its own times.
      times: Descending times of the steps (`solvers.time_grid`); None for an adaptive solver. For a network of discrete
        time they must be among its timesteps (`solvers.snap_to_timesteps`).
      labels: (batch,) classes, -1 for none.
      guidance: Options of guidance.
      guide_params: Parameters of `guidance.guide`.
      threshold: Function of `thresholding.THRESHOLDS` that bounds the predicted x0.
      task: Inverse problem to solve; None samples from the prior.
      measurement: (batch, *measured) measurements of the inverse problem; for SDEdit the guide images.
      denoise: Whether to return E[x0 | x] in place of the last x.
      trajectory: Whether to return all x; not available from an adaptive solver.
      particles: Number of weighted particles per sample. The sample is one of them, drawn by weight. Above 1, guidance
        and the method "twisted" sample exactly in the limit of many particles and steps (`particles`).

    Returns:
      A Solution with x of the shape (batch, *event_shape). With weighted particles it also has the effective sample
      size, (batch,), averaged over the steps.

    Raises:
      UserError: if labels, guidance, the inverse problem or the trajectory can't be combined with the model or solver.
    """
    sde = model.sde
    if task is not None and measurement is None:
        raise UserError(f"sample: expected a measurement for the task {task.name!r}, got none", "measurement")
    if not isinstance(solver, Solver) and (task is not None or trajectory):
        raise UserError(
            "sample: an adaptive solver chooses its own times, so it has no trajectory and solves no inverse problem",
            "solver",
        )
    guided = guided_denoiser(model, params, labels, guidance, guide_params)
    denoiser = threshold(guided, sde)
    if is_weighted(task, particles):
        if trajectory:
            raise UserError("sample: weighted particles have no single trajectory", "trajectory")
        check_particles(model, solver, guidance, task, particles, threshold=denoiser is not guided)
        # Every particle has the label and the measurement of its sample.
        of_particles, y, keys = jax.tree.map(
            lambda leaf: jnp.repeat(leaf, particles, axis=0),
            (labels, measurement, keys),
        )
        target = weighted_target(model, params, of_particles, guidance, guide_params, threshold, task, y)
        return _sample_weighted(model, solver, target, times, keys, particles, denoise)
    if isinstance(solver, Solver) and solver.jumps:
        _check_jumps(model, guidance=guidance != Guidance(), threshold=denoiser is not guided, task=task is not None)
        denoiser = model.denoiser(params, labels=labels if model.num_classes else None)
    prior_keys, solver_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    x = _prior(model, prior_keys, times)
    if not isinstance(solver, Solver):
        return _adaptive_solution(solver, sde, denoiser, x, solver_keys, denoise)
    if task is not None and task.operator is None:
        y = not_none(measurement)
        return sdedit(solver, sde, denoiser, y, times, solver_keys, task.strength, trajectory, denoise)
    if task is not None:
        problem = Problem(not_none(task.operator), not_none(measurement), task.noise)
        solver, denoiser = apply_method(solver, denoiser, sde, problem, task.method, **task.method_kwargs)
        denoiser = threshold(denoiser, sde)  # again, since the method shifts x0
    return solve(solver, sde, denoiser, x, times, solver_keys, trajectory=trajectory, denoise=denoise)


def weighted_target(
    model: DiffusionModel,
    params: Any,
    labels: jax.Array | None,
    guidance: Guidance,
    guide_params: Any = None,
    threshold: Threshold = none(),  # noqa: B008
    task: InverseTask | None = None,
    measurement: jax.Array | None = None,
) -> Target:
    """Return the target of weighted particles for guidance and an inverse problem; see `sample` for the arguments."""
    sde, scale, guide = model.sde, guidance.scale, guidance.guide
    model_labels = labels if model.num_classes else None
    denoiser: Denoiser = model.denoiser(params, labels=model_labels)
    both: Any = None
    if isinstance(guide, DiffusionModel):
        weaker = guide.denoiser(guide_params, labels=labels if guide.num_classes else None)
        denoiser, both = (weaker, None) if scale == 0 else (denoiser, [denoiser, weaker])
    elif guide is None and model_labels is not None:
        if scale == 0:
            denoiser = model.denoiser(params, labels=jnp.full_like(model_labels, NULL_LABEL))
        both = together_labeled(lambda labels: model.denoiser(params, labels=labels), model_labels)
    if both is None or scale in (0, 1):
        target = product(sde, [threshold(denoiser, sde)], [1.0])
    else:
        target = product(sde, both, (scale, 1 - scale))
    if isinstance(guide, NoisyClassifier):
        log_prob_fn = class_log_prob(guide.logits(guide_params), not_none(labels))
        potential = conditioned(lambda x, t, x0, log_prob_fn: scale * log_prob_fn(x, t), log_prob_fn)
        target = tilted(sde, target, potential, threshold=threshold)
    if task is not None:
        problem = Problem(not_none(task.operator), not_none(measurement), task.noise)
        potential = build(
            "method", {TWISTED: partial(measurement_potential, sde, problem)}, TWISTED, dict(task.method_kwargs)
        )
        target = tilted(sde, target, potential, threshold=threshold)
    return target


def _prior(model: DiffusionModel, keys: jax.Array, times: Any) -> jax.Array:
    """Return one sample of N(0, sigma^2) per key, with sigma at the first time, or at t_max for an adaptive solver."""
    sde = model.sde if times is None else model.sde._replace(t_max=times[0])
    return jax.vmap(lambda key: prior_sample(sde, key, model.event_shape))(keys)


def _sample_weighted(model, solver, target, times, keys, particles: int, denoise: bool) -> Solution:
    """Return one particle of each population, drawn by weight; keys and the target have a row per particle."""
    batch = len(keys) // particles
    numbers = jnp.tile(jnp.arange(particles), batch)
    keys = jax.vmap(lambda key, number: jax.random.split(jax.random.fold_in(key, number), 3))(keys, numbers)
    x = _prior(model, keys[:, 0], times)
    solution = solve_weighted(solver, model.sde, target, x, times, keys[:, 1], particles, denoise=denoise)
    log_weights = not_none(solution.log_weights).reshape(batch, particles)
    chosen = jax.vmap(jax.random.categorical)(keys[::particles, 2], log_weights)
    unmet = jnp.all(log_weights == -jnp.inf, axis=1)
    x = solution.x[jnp.arange(batch) * particles + chosen]
    drawn = Solution(
        jnp.where(lift(unmet, x), jnp.nan, x),
        solution.nfe * particles,  # type: ignore[operator]
        None,
        jnp.where(jnp.any(unmet), CONSTRAINT_NOT_MET, not_none(solution.nonfinite_at)),
        effective_sample_size=jnp.mean(not_none(solution.effective_sample_size), axis=0),
    )
    if not isinstance(unmet, jax.core.Tracer):
        check_finite(drawn)
    return drawn


def is_weighted(task: InverseTask | None, particles: int) -> bool:
    """Return whether sampling uses weighted particles."""
    return particles > 1 or (task is not None and task.operator is not None and task.method == TWISTED)


def check_particles(
    model: DiffusionModel, solver: Any, guidance: Guidance, task: InverseTask | None, particles: int, threshold: bool
) -> None:
    """Raise UserError unless weighted particles support the solver, the guidance and the inverse problem.

    Args:
      model: Diffusion model.
      solver: Solver.
      guidance: Guidance.
      task: Inverse problem or None.
      particles: Number of particles per sample.
      threshold: Whether x0 is bounded.
    """
    by_classifier = isinstance(guidance.guide, NoisyClassifier)
    has_two = isinstance(guidance.guide, DiffusionModel) or (guidance.guide is None and model.num_classes > 0)
    composed = has_two and guidance.scale not in (0, 1)
    if particles == 1:
        raise UserError(f"particles: the method {TWISTED!r} requires several particles, got 1", "particles=16")
    changes = {
        "guidance_interval": guidance.interval is not None,
        "guidance_rescale": guidance.rescale != 0,
        # Clipping one model gives another valid prior; the weights of a product require unclipped densities.
        "threshold": composed and threshold,
    }
    given = [name for name, is_given in changes.items() if is_given]
    if given:
        raise UserError(
            f"particles: {' and '.join(given)} would change the guided denoiser, for which the weights are not valid",
            *(["threshold=none"] if "threshold" in given else []),
            "particles=1",
        )
    if task is not None and task.operator is None:
        raise UserError("particles: sdedit has no measurement and hence no weights", "particles=1")
    if task is not None and task.method != TWISTED:
        raise UserError(
            f"particles: the method {task.method!r} has no target density and hence no weights",
            f"method={TWISTED}",
            "particles=1",
        )
    if task is None and not composed and not (by_classifier and guidance.scale != 0):
        raise UserError("particles: without guidance or a task all weights are equal", "guidance_scale", "particles=1")
    if not isinstance(solver, Solver):
        raise UserError(
            "particles: an adaptive solver gives each particle its own times, so that their weights can't be compared",
            "solver=exponential_sde",
        )
    check_weighted(solver, tilted=task is not None or by_classifier)
    if threshold and len(model.event_shape) < 3:  # images lie within [-1, 1]
        warn_clipped("data that aren't images")


def _check_jumps(model: DiffusionModel, **changes: bool) -> None:
    """Raise UserError if the network takes one time only, or if an option would change its denoiser."""
    if not getattr(model.module, "two_times", False):
        raise UserError(
            "sample: flow_map_steps jumps with a flow map, and this network takes one time; train one with "
            "two_times=True, or use another solver",
            "solver",
        )
    given = [name for name, is_given in changes.items() if is_given]
    if given:
        raise UserError(
            f"sample: {' and '.join(given)} would change a denoiser, and flow_map_steps jumps with the flow map as it "
            "was trained; another solver takes the flow map's denoiser",
            "solver=ddim",
        )


def _adaptive_solution(solver, sde, denoiser, x, keys, denoise: bool) -> Solution:
    solution = solver(sde, denoiser, x, keys)
    if not denoise:
        return solution
    nfe = None if solution.nfe is None else solution.nfe + most_evaluations(denoiser, sde.t_min, sde.t_min)
    return solution._replace(x=denoiser(solution.x, sde.t_min).x0, nfe=nfe)


def _unchanged(x, t):
    return Prediction(x, x)


class _Identity(nn.Module):
    """A network without cost, to check a solver with."""

    two_times: bool = False

    @nn.compact
    def __call__(self, x, noise_level, labels=None, train=False, next_level=None):
        return x


def check_sampling(model: DiffusionModel, guidance: Guidance = Guidance(), **options: Any) -> None:  # noqa: B008
    """Raise UserError unless `sample(..., **options)` can run, by tracing it with a network without cost."""
    task = options.get("task")
    particles = options.get("particles", 1)
    if is_weighted(task, particles):
        threshold = options.get("threshold", none())
        changes = threshold(_unchanged, model.sde) is not _unchanged
        check_particles(model, options["solver"], guidance, task, particles, threshold=changes)
        if task is None:
            options |= {"particles": 1}  # the placeholder has no classes, so that its guidance can't be traced
    placeholder = model._replace(
        module=_Identity(getattr(model.module, "two_times", False)),
        prediction="epsilon",
        preconditioning="none",
        learned_variance=False,
    )
    task = options.get("task")
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))

    def run(keys, x):
        measured = {}
        if task is not None:
            measured = {"measurement": x if task.operator is None else task.operator.forward(x)}
        return sample(placeholder, {}, keys, **options, **measured)

    jax.eval_shape(run, keys, jax.ShapeDtypeStruct((1, *model.event_shape), jnp.float32))


class SampleBatch(NamedTuple):
    """A batch of samples on the host."""

    x: np.ndarray  # (batch, *event_shape) float32
    nfe: np.ndarray | None  # (batch,) network evaluations; None if the solver can't count them
    effective_sample_size: np.ndarray | None = None  # (batch,) mean over the steps; None without weighted particles


def mean_effective_sample_size(batches: Sequence[SampleBatch]) -> float | None:
    """Return the mean effective sample size of weighted particles over samples and steps, None without them."""
    sizes = [batch.effective_sample_size for batch in batches if batch.effective_sample_size is not None]
    return float(np.concatenate(sizes).mean()) if sizes else None


def sample_batches(
    sample_fn: Callable[..., Solution],
    key: jax.Array,
    num_samples: int,
    batch_size: int,
    devices: Sequence[jax.Device],
    *,
    arguments: Mapping[str, Any] | None = None,
    inputs: Callable[[np.ndarray], Mapping[str, Any]] | None = None,
    first: int = 0,
) -> Iterator[SampleBatch]:
    """Yield samples first .. num_samples - 1 in batches, computed on all devices of all processes.

    Sample i is a function of fold_in(key, i), whatever the batch and the devices. A second call with the same function
    and devices compiles nothing.

    Args:
      sample_fn: Function of (batch,) keys that returns a Solution, as `sample` with its other arguments fixed. With
        `arguments` or `inputs` all its arguments are passed by keyword, the keys as `keys`.
      key: Key of all samples.
      num_samples: Index after the last sample.
      batch_size: Number of samples at a time on all devices, rounded up to a multiple of their number.
      devices: Devices of this process. With several processes each computes its rows, and all get the whole.
      arguments: Arrays that all samples share, such as `params`; they are copied to every device.
      inputs: Function from (batch,) indices of samples to batch-first arrays, such as `labels`.
      first: Index of the first sample.

    Raises:
      UserError: if a sample is not finite.
    """
    num_devices = len(devices) * jax.process_count()
    batch_size = math.ceil(batch_size / num_devices) * num_devices
    compiled = _compile(sample_fn, tuple(devices))
    shared = distributed.replicate(dict(arguments or {}), devices)
    for start in range(first, num_samples, batch_size):
        # The last batch is computed whole and cut, so that nothing is compiled for its size.
        indices = np.arange(start, start + batch_size)[distributed.local_slice(batch_size)]
        rows = {"indices": indices} | dict(inputs(indices) if inputs else {})
        rows = jax.tree.map(lambda leaf: np.asarray(leaf).reshape(len(devices), -1, *np.shape(leaf)[1:]), rows)
        local = jax.tree.map(_flatten_devices, compiled(key, shared, rows))
        gathered = jax.tree.map(itemgetter(slice(num_samples - start)), distributed.all_gather(local))
        check_finite(gathered)  # all processes raise together
        yield SampleBatch(gathered.x, gathered.nfe, gathered.effective_sample_size)


@lru_cache(maxsize=4)  # each entry keeps a compiled program
def _compile(sample_fn: Callable[..., Solution], devices: tuple[jax.Device, ...]) -> Callable:
    """Return (key, arguments, rows) -> Solution with per-sample counts, mapped over devices."""

    def run(key, arguments, rows):
        rows = dict(rows)
        indices = rows.pop("indices")
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, indices)
        solution = sample_fn(keys=keys, **arguments, **rows) if arguments or rows else sample_fn(keys)
        per_sample = {"nfe": solution.nfe, "nonfinite_at": solution.nonfinite_at}
        return solution._replace(**jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, indices.shape), per_sample))

    return announcing(jax.pmap(run, in_axes=(None, 0, 0), devices=devices), "compiling the sampler")


def _flatten_devices(leaf: jax.Array) -> np.ndarray:
    return np.asarray(leaf).reshape(-1, *leaf.shape[2:])


class Measured(NamedTuple):
    """Images of an inverse problem, (n, *event), and their measurements, (n, *measured)."""

    truth: np.ndarray
    measurement: np.ndarray


class Sampler(NamedTuple):
    """A configured `sample`: everything but the parameters.

    Attributes:
      sample_fn: `sample` with its options fixed; takes keys, params, guide_params, labels and measurement.
      key: Key of all samples.
      num_samples: Number of samples of a grid.
      batch_size: Number of samples at a time.
      devices: Devices of this process.
      arguments: Function without arguments that returns the arrays, besides the parameters, that all samples share,
        such as a guide's parameters.
      labels: Function from (batch,) indices to labels, or to None without classes.
      task: Inverse problem; None samples from the prior.
      measured: Function without arguments that returns the images and measurements of the inverse problem.
      has_trajectory: Whether a sample has one trajectory along a fixed grid.
      particles: Weighted particles of each sample.
    """

    sample_fn: Callable[..., Solution]
    key: jax.Array
    num_samples: int
    batch_size: int
    devices: Sequence[jax.Device]
    arguments: Callable[[], Mapping[str, Any]]
    labels: Callable[[Any], Any]
    task: InverseTask | None
    measured: Callable[[], Measured]
    has_trajectory: bool
    particles: int = 1

    def inputs(self, indices: np.ndarray) -> dict[str, Any]:
        """Return the labels and measurements of the samples with these indices."""
        labels = self.labels(indices)
        rows = {} if labels is None else {"labels": labels}
        if self.task is None:
            return rows
        y = self.measured().measurement
        # Padded rows of a last batch repeat the last measurement.
        return rows | {"measurement": y[np.minimum(indices // self.task.samples_per_measurement, len(y) - 1)]}

    def batches(self, params: Any, num_samples: int | None = None, first: int = 0) -> Iterator[SampleBatch]:
        """Return the batches of `sample_batches` for these parameters."""
        return sample_batches(
            self.sample_fn,
            self.key,
            self.num_samples if num_samples is None else num_samples,
            self.batch_size,
            self.devices,
            arguments={"params": params, **self.arguments()},
            inputs=self.inputs,
            first=first,
        )

    def trajectory(self, params: Any, number: int) -> np.ndarray:
        """Return x at every time of the first samples, (num_steps + 1, number, *event_shape)."""
        indices = np.arange(number)
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(self.key, indices)
        run = jax.jit(partial(self.sample_fn, trajectory=True))
        solution = run(keys=keys, params=params, **self.arguments(), **self.inputs(indices))
        return np.asarray(solution.trajectory)
