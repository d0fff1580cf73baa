"""From the settings of config.sampling to a sampler; what doesn't fit is refused before anything is computed."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from score_sde import ddpm
from score_sde.data import Source, images_of, to_unit_range
from score_sde.errors import UserError, build
from score_sde.experiment.guides import Guidance, Guide, make_guided
from score_sde.experiment.tasks import Task, check_task, make_task, measure
from score_sde.parameterization import Denoiser
from score_sde.sampling import Sampler, check_run, make_sampler, run_adaptive, run_on_grid
from score_sde.sde import SDE
from score_sde.solvers import ADAPTIVE, SOLVERS, Solver, evaluation_times, time_grid, to_chain
from score_sde.thresholding import THRESHOLDS, Threshold

WHERE = "--config.sampling"
MEASURING = 2**31 - 1  # an index that no sample has


class Prior(NamedTuple):
    """What samples are drawn from."""

    sde: SDE
    chain: ddpm.Schedule | None  # whose steps alone the network knows; None: it may be asked at any time
    denoiser: Callable[..., Denoiser]  # (params, labels=None) -> denoiser
    num_classes: int  # that the network is told
    hidden_labels: bool  # whether it knows the null label
    guide: Guide | None
    event_shape: tuple[int, ...]
    class_of: Callable[[jax.Array], jax.Array | None]  # indices of samples -> their classes
    test: Callable[[], Source]  # whose first images a task asks for


def task_of(settings: Mapping[str, Any], event_shape: tuple[int, ...]) -> Task | None:
    """The inverse problem that the settings ask for, if there is one."""
    return make_task(
        settings["task"],
        settings["task_kwargs"],
        settings["task_noise"],
        settings["method"],
        settings["method_kwargs"],
        settings["completions"],
        settings["num_samples"],
        event_shape,
    )


def sampler_of(
    settings: Mapping[str, Any],
    prior: Prior,
    task: Task | None,
    seed_key: jax.Array,
    devices: Sequence[jax.Device],
) -> Sampler:
    """The sampler of config.sampling, as plain values.

    Raises:
      UserError: a name, number or combination that can't be.
    """
    threshold = _threshold(settings, task)
    solver = build("solver", SOLVERS | ADAPTIVE, settings["solver"], settings["kwargs"], WHERE, "solver")
    how = Guidance(settings["guidance_scale"], tuple(settings["guidance_interval"]), settings["guidance_rescale"])
    guided = make_guided(
        prior.denoiser, prior.num_classes, prior.hidden_labels, prior.guide, prior.sde, how, prior.class_of
    )
    solve_for = _answer(settings, prior, task, solver, threshold)

    def run(params, beside, indices, x, keys, trajectory=False):
        denoiser = threshold(guided(params, beside["guide"], indices), prior.sde)
        # A last batch is drawn whole and cut: what is behind the last image asks for that image.
        y = None if task is None else beside["measured"][indices // task.completions]
        return solve_for(denoiser, x, keys, y, trajectory)

    def beside():
        found = {"guide": None if prior.guide is None else prior.guide.params}
        return found if task is None else found | _measured(task, prior, settings["num_samples"], seed_key)

    return make_sampler(
        prior.sde,
        run,
        prior.event_shape,
        seed_key,
        settings["batch_size"],
        devices,
        partial(run, trajectory=True) if isinstance(solver, Solver) else None,
        beside,
    )


def _threshold(settings: Mapping[str, Any], task: Task | None) -> Threshold:
    """The bounds of x0; "auto" are the data's where a method differentiates x0, of noise alone 1 / alpha too large."""
    name, kwargs = settings["threshold"], settings["threshold_kwargs"]
    name = ("none" if task is None else "clip") if name == "auto" else name
    return build("threshold", THRESHOLDS, name, kwargs, WHERE, "threshold", "threshold_kwargs")


def _answer(
    settings: Mapping[str, Any], prior: Prior, task: Task | None, solver: Any, threshold: Threshold
) -> Callable:
    """(denoiser, x, keys, y, trajectory) -> Solution, checked."""
    sde, denoise = prior.sde, settings["denoise"]
    if not isinstance(solver, Solver):
        if prior.chain is not None:
            _refuse_off_grid(settings, "chain's")
        if task is not None:
            raise UserError(
                f"task {task.name!r} steps along a grid, and solver {settings['solver']!r} chooses its own times (set "
                f"{WHERE}.solver)"
            )
        check_run(partial(run_adaptive, solver, sde, denoise=denoise), prior.event_shape)
        return lambda denoiser, x, keys, y, trajectory: run_adaptive(solver, sde, denoiser, x, keys, denoise)
    times = _times(settings, prior, solver)
    if task is None:
        check_run(partial(run_on_grid, solver, sde, times, denoise=denoise), prior.event_shape)
        return lambda denoiser, x, keys, y, trajectory: run_on_grid(
            solver, sde, times, denoiser, x, keys, denoise, trajectory
        )
    check_task(task, solver, sde, times, prior.event_shape)
    return lambda denoiser, x, keys, y, trajectory: task.run(
        solver, sde, times, denoiser, x, keys, y, threshold, trajectory, denoise
    )


def _measured(task: Task, prior: Prior, num_samples: int, seed_key: jax.Array) -> dict[str, np.ndarray]:
    """The first test images, and what is measured of them; image i's noise is a function of (seed, i)."""
    source, number = prior.test(), num_samples // task.completions
    if number > len(source.examples):
        raise UserError(
            f"task: {num_samples} samples are {number} images with {task.completions} completions each, and the test "
            f"split has {len(source.examples)} (set {WHERE}.num_samples)"
        )
    truth = to_unit_range(images_of(source, number)[0], source.levels)
    key = jax.random.fold_in(seed_key, MEASURING)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(number))
    measured = jax.jit(partial(measure, task))(truth, keys)
    return {"truth": truth, "measured": np.asarray(measured)}


def _times(settings: Mapping[str, Any], prior: Prior, solver: Solver) -> np.ndarray:
    """The grid; for a network that knows a chain's steps alone, among those."""
    times = time_grid(
        prior.sde,
        settings["num_steps"],
        settings["spacing"],
        settings["end"],
        spacing_kwargs=settings["spacing_kwargs"],
    )
    if prior.chain is None:
        return times
    times = to_chain(times, len(prior.chain.betas))
    index = evaluation_times(solver, prior.sde, times) * (len(prior.chain.betas) - 1)
    if np.abs(index - np.rint(index)).max() > 1e-2:
        _refuse_off_grid(settings, len(prior.chain.betas))
    return times


def _refuse_off_grid(settings: Mapping[str, Any], steps: Any) -> None:
    raise UserError(
        f"solver {settings['solver']!r} asks the network between the {steps} steps that it was trained at (set "
        f"{WHERE}.off_grid=True if it may, or another {WHERE}.solver)"
    )
