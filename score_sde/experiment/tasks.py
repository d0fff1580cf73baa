"""Inverse problems by name: the measurement operator of config.sampling.task, and its measurements."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from score_sde import operators
from score_sde.data.decoding import decode
from score_sde.errors import UserError, lookup, not_none
from score_sde.experiment.flags import build_part, naming_flags, plain
from score_sde.inverse import INVERSE_METHODS, TWISTED, check_strength
from score_sde.operators import Operator
from score_sde.sampling import InverseTask

Shape = tuple[int, ...]


def inpaint(event_shape: Shape, mask: str = "box", share: float = 0.5) -> Operator:
    """Return the operator that observes some pixels.

    Args:
      event_shape: Shape of one example.
      mask: "box" hides a square in the middle, "half" the right side, "random" single pixels. Otherwise a file: .npy
        with ones for observed pixels, or an image that is white there.
      share: Hidden fraction of the height and width (box), of the width (half), or of the pixels (random).
    """
    return operators.mask(_mask(event_shape, mask, share), event_shape)


def deblur(event_shape: Shape, std: float = 1.0, size: int = 5) -> Operator:
    """Return the blur by a Gaussian kernel of `size` pixels with a standard deviation of `std` pixels."""
    return operators.blur(operators.gaussian_kernel(std, size), event_shape)


def super_resolve(event_shape: Shape, factor: int = 2) -> Operator:
    """Return the average over squares of factor x factor pixels."""
    return operators.pool(factor, event_shape)


def sdedit(event_shape: Shape, strength: float = 0.5) -> float:
    """Return the fraction of the steps that SDEdit takes."""
    check_strength(strength)
    return strength


TASKS: dict[str, Callable[..., Any]] = {
    "inpaint": inpaint,
    "colorize": operators.grayscale,
    "super_resolve": super_resolve,
    "deblur": deblur,
    "sdedit": sdedit,
}


def build_task(config: ConfigDict, event_shape: Shape) -> InverseTask | None:
    """Return the inverse problem of config.sampling, None if there is none.

    Raises:
      UserError: if a name or number is unknown or out of range.
    """
    options = config.sampling
    name, kwargs, noise = options.task, plain(options.method_kwargs), options.task_noise
    if not name:
        if options.task_kwargs or kwargs or noise:
            raise UserError("there is no task, so its settings have no effect", "--config.sampling.task")
        return None
    with naming_flags(config, "sampling"):
        lookup("task", TASKS, name)
        lookup("method", dict.fromkeys((*INVERSE_METHODS, TWISTED)), options.method)
    if len(event_shape) != 3:
        raise UserError(f"tasks are of images, the data have the shape {event_shape}", "--config.sampling.task=''")
    table = {known: partial(make, event_shape) for known, make in TASKS.items()}
    made = build_part(config, "task", table, "sampling.task", "sampling.task_kwargs")
    if noise < 0:
        raise UserError(f"task: need noise >= 0, got {noise}", "--config.sampling.task_noise")
    if options.num_samples % options.samples_per_measurement:
        raise UserError(
            f"task: {options.num_samples} samples are no whole number of images with {options.samples_per_measurement} "
            "completions each",
            "--config.sampling.num_samples",
            "--config.sampling.samples_per_measurement",
        )
    if name == "sdedit":
        if noise or kwargs:
            raise UserError(
                "sdedit measures nothing, so task_noise and method_kwargs have no effect", "--config.sampling"
            )
        return InverseTask(name, None, samples_per_measurement=options.samples_per_measurement, strength=made)
    return InverseTask(name, made, noise, options.samples_per_measurement, options.method, kwargs)


def measure(task: InverseTask, x0: jax.Array, keys: jax.Array) -> jax.Array:
    """Return y = A x0 + noise z, with z in the range of A; for SDEdit x0 itself.

    Args:
      task: The inverse problem.
      x0: (n, *event) images.
      keys: (n,) keys, one per image.
    """
    if task.operator is None:
        return x0
    y = task.operator.forward(x0)
    z = jax.vmap(lambda key: jax.random.normal(key, y.shape[1:], y.dtype))(keys)
    svd = not_none(task.operator.svd)
    return y + task.noise * svd.u(svd.ut(z))


def _mask(event_shape: Shape, mask: str, share: float) -> np.ndarray:
    if Path(mask).suffix in (".npy", ".png"):
        return _read_mask(Path(mask), event_shape)
    lookup("mask", dict.fromkeys(("box", "half", "random")), mask, "mask, also to a file")
    if not 0 < share < 1:
        raise UserError(f"inpaint: need 0 < share < 1, got {share}", "share")
    height, width = event_shape[:2]
    observed = np.ones((height, width))
    if mask == "random":
        observed = (np.random.default_rng(0).random((height, width)) >= share).astype(float)
    elif mask == "half":
        observed[:, width - round(share * width) :] = 0
    else:
        top, left = (round(0.5 * (1 - share) * size) for size in (height, width))
        observed[top : top + round(share * height), left : left + round(share * width)] = 0
    return observed


def _read_mask(path: Path, event_shape: Shape) -> np.ndarray:
    """Read a mask: 1 where pixels are observed, of the event's shape or (height, width).

    Raises:
      UserError: if the file can't be read, or holds something else.
    """
    if path.suffix == ".png":
        observed = (decode(path, 1)[..., 0] > 127).astype(float)
    else:
        try:
            observed = np.load(path, allow_pickle=False)
        except Exception as error:  # a damaged file makes NumPy raise errors of many kinds
            raise UserError(f"no mask in {path}: {error}", "mask") from error
    if not isinstance(observed, np.ndarray) or observed.dtype.kind not in "biuf":
        kind = getattr(observed, "dtype", "several")
        raise UserError(f"mask: expected an array of zeros and ones, got {kind} in {path}", "mask")
    if observed.shape not in (event_shape, event_shape[:-1]):
        raise UserError(f"mask: its shape is {observed.shape}, the data's {event_shape}, in {path}", "mask")
    if not np.isin(observed, (0, 1)).all():
        low, high = observed.min(), observed.max()
        raise UserError(f"mask: expected zeros and ones, got numbers from {low} to {high} in {path}", "mask")
    return observed
