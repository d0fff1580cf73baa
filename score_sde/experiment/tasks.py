"""Inverse problems by name, as a config asks for them: an operator, what was measured, and the way to answer."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from score_sde import operators
from score_sde.data.decoding import decode
from score_sde.errors import UserError, build, lookup, not_none
from score_sde.inverse import METHODS, Problem, change, check_strength, sdedit
from score_sde.operators import Operator
from score_sde.parameterization import Denoiser, Prediction
from score_sde.randomness import sample_keys
from score_sde.sde import SDE
from score_sde.solvers import Solution, Solver, solve
from score_sde.thresholding import Threshold, none

Shape = tuple[int, ...]


def inpaint(event_shape: Shape, mask: str = "box", share: float = 0.5) -> Operator:
    """`operators.mask`.

    Args:
      event_shape: of one example.
      mask: "box", a square in the middle is hidden; "half", the right side; "random", single pixels; or a file, .npy
        of ones where pixels are seen, or a picture that is white there.
      share: of the height and width (box), of the width (half), or of the pixels (random) that is hidden.
    """
    return operators.mask(_seen(event_shape, mask, share), event_shape)


def colorize(event_shape: Shape) -> Operator:
    """`operators.grey`."""
    return operators.grey(event_shape)


def super_resolve(event_shape: Shape, factor: int = 2) -> Operator:
    """`operators.pool`."""
    return operators.pool(factor, event_shape)


def deblur(event_shape: Shape, std: float = 1.0, size: int = 5) -> Operator:
    """`operators.blur` with a Gaussian of a standard deviation in pixels."""
    return operators.blur(operators.gaussian_kernel(std, size), event_shape)


def sdedit_task(event_shape: Shape, strength: float = 0.5) -> float:
    """`inverse.sdedit`: no operator, but its strength."""
    check_strength(strength)
    return strength


TASKS: dict[str, Callable[..., Any]] = {
    "inpaint": inpaint,
    "colorize": colorize,
    "super_resolve": super_resolve,
    "deblur": deblur,
    "sdedit": sdedit_task,
}


class Task(NamedTuple):
    """Which images are asked for, given what."""

    name: str
    operator: Operator | None  # None: the images themselves are shown
    noise: float  # standard deviation of the measurement, on the data's scale
    completions: int  # samples an image
    # (solver, sde, times, denoiser, x, keys, y, threshold, trajectory, denoise) -> Solution; threshold: of the x0 that
    # the solver gets
    run: Callable[..., Solution]


def make_task(
    name: str,
    kwargs: Mapping[str, Any],
    noise: float,
    method: str,
    method_kwargs: Mapping[str, Any],
    completions: int,
    num_samples: int,
    event_shape: Shape,
) -> Task | None:
    """A task from the settings of config.sampling; None of the name "".

    Args:
      name: a key of `TASKS`, or "".
      kwargs: of the function it stands for.
      noise: standard deviation of what is added to each measured number; 0 or more.
      method: a key of `inverse.METHODS`.
      method_kwargs: of the function it stands for.
      completions: samples an image.
      num_samples: of all images, a multiple of the completions.
      event_shape: of one example.

    Raises:
      UserError: a name or number is unknown or out of range.
    """
    where = "--config.sampling"
    if not name:
        if kwargs or method_kwargs or noise:
            raise UserError(f"there is no task, so its settings would not be read (set {where}.task)")
        return None
    lookup("task", TASKS, name, f"{where}.task")
    if len(event_shape) != 3:
        raise UserError(f"tasks are of images, the data have the shape {event_shape} (set {where}.task='')")
    table = {known: partial(make, event_shape) for known, make in TASKS.items()}
    made = build("task", table, name, kwargs, where, "task", "task_kwargs")
    lookup("method", METHODS, method, f"{where}.method")
    if noise < 0:
        raise UserError(f"task: need noise >= 0, got {noise} (set {where}.task_noise)")
    if num_samples % completions:
        raise UserError(
            f"task: {num_samples} samples are no whole number of images with {completions} completions each (set "
            f"{where}.num_samples or {where}.completions)"
        )
    if name == "sdedit":
        if noise or method_kwargs:
            raise UserError(f"sdedit measures nothing, so task_noise and method_kwargs would not be read (set {where})")
        return Task(name, None, noise, completions, partial(_edit, strength=made))
    return Task(
        name, made, noise, completions, partial(_restore, operator=made, noise=noise, method=method, how=method_kwargs)
    )


def check_task(task: Task, solver: Solver, sde: SDE, times: np.ndarray, event_shape: Shape) -> None:
    """Refuses a method that can't answer, by tracing it with a denoiser of no network."""
    x = jax.ShapeDtypeStruct((1, *event_shape), jnp.float32)

    def run(x):
        y = x if task.operator is None else task.operator.forward(x)
        keys = sample_keys(jax.random.key(0), 1)
        return task.run(solver, sde, times, lambda x, t: Prediction(x, x), x, keys, y, none(), False, False)

    jax.eval_shape(run, x)


def measure(task: Task, x0: jax.Array, keys: jax.Array) -> jax.Array:
    """y = A x0 + noise z, z in what A can reach; of SDEdit x0 itself.

    Args:
      task: it has the operator.
      x0: (n, *event).
      keys: (n,), one an image.
    """
    if task.operator is None:
        return x0
    y = task.operator.forward(x0)
    drawn = jax.vmap(lambda key: jax.random.normal(key, y.shape[1:], y.dtype))(keys)
    svd = not_none(task.operator.svd)
    return y + task.noise * svd.u(svd.ut(drawn))


def _restore(
    solver: Solver,
    sde: SDE,
    times: np.ndarray,
    denoiser: Denoiser,
    x: jax.Array,
    keys: jax.Array,
    y: jax.Array,
    threshold: Threshold,
    trajectory: bool,
    denoise: bool,
    *,
    operator: Operator,
    noise: float,
    method: str,
    how: Mapping[str, Any],
) -> Solution:
    solver, denoiser = change(solver, denoiser, sde, Problem(operator, y, noise), method, **how)
    return solve(solver, sde, threshold(denoiser, sde), x, times, keys, trajectory, denoise)


def _edit(solver, sde, times, denoiser, x, keys, y, threshold, trajectory, denoise, *, strength) -> Solution:
    return sdedit(solver, sde, denoiser, y, times, keys, strength, trajectory, denoise)


def _seen(event_shape: Shape, mask: str, share: float) -> np.ndarray:
    if Path(mask).suffix in (".npy", ".png"):
        return _read(Path(mask), event_shape)
    lookup("mask", dict.fromkeys(("box", "half", "random")), mask, "--config.sampling.task_kwargs.mask, also to a file")
    if not 0 < share < 1:
        raise UserError(f"inpaint: need 0 < share < 1, got {share} (set --config.sampling.task_kwargs.share)")
    height, width = event_shape[:2]
    seen = np.ones((height, width))
    if mask == "random":
        seen = (np.random.default_rng(0).random((height, width)) >= share).astype(float)
    elif mask == "half":
        seen[:, width - round(share * width) :] = 0
    else:
        top, left = (round(0.5 * (1 - share) * size) for size in (height, width))
        seen[top : top + round(share * height), left : left + round(share * width)] = 0
    return seen


def _read(path: Path, event_shape: Shape) -> np.ndarray:
    """Reads a mask: 1 where pixels are observed, of the event's shape or (height, width).

    Raises:
      UserError: if the file can't be read, or holds something else.
    """
    if path.suffix == ".png":
        seen = (decode(path, 1)[..., 0] > 127).astype(float)
    else:
        try:
            seen = np.load(path, allow_pickle=False)
        except Exception as error:  # a damaged file makes NumPy raise errors of many kinds
            raise UserError(f"no mask in {path}: {error} (set --config.sampling.task_kwargs.mask)") from error
    where = f"in {path} (set --config.sampling.task_kwargs.mask)"
    if not isinstance(seen, np.ndarray) or seen.dtype.kind not in "biuf":
        raise UserError(f"mask: expected an array of zeros and ones, got {getattr(seen, 'dtype', 'several')} {where}")
    if seen.shape not in (event_shape, event_shape[:-1]):
        raise UserError(f"mask: its shape is {seen.shape}, the data's {event_shape}, {where}")
    if not np.isin(seen, (0, 1)).all():
        raise UserError(f"mask: expected zeros and ones, got numbers from {seen.min()} to {seen.max()} {where}")
    return seen
