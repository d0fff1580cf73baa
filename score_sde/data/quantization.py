"""Conversion between pixel levels, the integers 0 .. levels - 1, and real numbers in [-1, 1]."""

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from score_sde.errors import UserError
from score_sde.randomness import sample_keys

Pixels = TypeVar("Pixels", np.ndarray, jax.Array)


def to_unit_range(images: Pixels, levels: int | None) -> Pixels:
    """Map pixel levels to [-1, 1], as float32.

    Args:
      images: Integers 0 .. levels - 1 of any shape, or real numbers, which only change their type.
      levels: Number of levels; None for real numbers.
    """
    if levels is None:
        return images.astype("float32")
    return images.astype("float32") * (2.0 / (levels - 1)) - 1.0


def to_levels(images: ArrayLike, levels: int) -> np.ndarray:
    """Round values in [-1, 1] to the nearest pixel level, as uint8; the inverse of `to_unit_range`, with clipping.

    Args:
      images: Real numbers of any shape.
      levels: Number of levels, at most 256.
    """
    return np.clip(np.round((np.asarray(images) + 1.0) * (0.5 * (levels - 1))), 0, levels - 1).astype(np.uint8)


def dequantize(
    key: jax.Array, images: jax.Array | np.ndarray, levels: int = 256, data_range: tuple[float, float] = (-1.0, 1.0)
) -> jax.Array:
    """Add uniform noise of one level and map [0, levels] to data_range (Uria et al. 2013; Theis et al. 2016).

    Args:
      key: PRNG key, folded with the example's position, or one key per example, (batch,).
      images: Integers 0 .. levels - 1, (batch, *event).
      levels: Number of levels.
      data_range: Image of [0, levels].

    Returns:
      Dequantized images in float32, of the same shape.

    Raises:
      UserError: unless images are integers 0 .. levels - 1.
    """
    if not jnp.issubdtype(images.dtype, jnp.integer):
        raise UserError(f"dequantize: expected integers 0 .. {levels - 1}, got {images.dtype}")
    if not isinstance(images, jax.core.Tracer):
        least, most = int(np.min(images)), int(np.max(images))  # Python integers, because 256 overflows uint8
        if least < 0 or most >= levels:
            raise UserError(f"dequantize: expected integers 0 .. {levels - 1}, got {least} .. {most}")
    keys = sample_keys(key, len(images))
    uniform = jax.vmap(lambda key: jax.random.uniform(key, images.shape[1:]))(keys)
    low, high = data_range
    return low + (high - low) * (jnp.asarray(images, jnp.float32) + uniform) / levels


def centered_range(levels: int) -> tuple[float, float]:
    """Return the data range where level v is an interval centered at 2 v / (levels - 1) - 1 (`to_unit_range`)."""
    half = 1.0 / (levels - 1)
    return -1.0 - half, 1.0 + half
