"""PRNG keys per example: an example's noise depends on neither its batch, nor a resume, nor the number of devices."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from score_sde.errors import UserError


def sample_keys(key: jax.Array, batch: int) -> jax.Array:
    """Return one key per sample, (batch,): the given keys, or one key folded with each position in the batch."""
    if key.ndim == 1:
        return key
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(batch))


def fold_each(keys: jax.Array, n: ArrayLike) -> jax.Array:
    """Return the keys, (batch,), each folded with the same number n."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, n)


def noise(rng: jax.Array, x: jax.Array) -> jax.Array:
    """Return standard normal noise of the shape of x, (batch, *event).

    Args:
      rng: One key per sample, (batch,), or precomputed noise, which is returned unchanged.
      x: Array that gives the shape and the dtype.
    """
    if not jnp.issubdtype(rng.dtype, jax.dtypes.prng_key):
        return rng
    return jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(rng)


def rademacher(keys: jax.Array, x: jax.Array) -> jax.Array:
    """Return random signs of the shape of x, (batch, *event), from one key per sample, (batch,)."""
    return jax.vmap(lambda key: jax.random.rademacher(key, x.shape[1:], x.dtype))(keys)


def split_rng(rng: jax.Array, number: int) -> list[jax.Array]:
    """Split the `rng` of a solver step (see `noise`) into several, for a step that draws noise more than once.

    Raises:
      UserError: if `rng` is precomputed noise and number is not 1.
    """
    if number == 1:
        return [rng]
    if not jnp.issubdtype(rng.dtype, jax.dtypes.prng_key):
        raise UserError(f"solve: this solver draws noise {number} times per step; expected a key, got noise", "key")
    return [fold_each(rng, i) for i in range(number)]


class ExampleRngs(NamedTuple):
    """PRNG keys of n examples of a training step, each folded from the run's key, the step and the example's index."""

    shared_key: jax.Array  # (): the same for all examples of the global batch
    time_keys: jax.Array  # (n,)
    noise_keys: jax.Array  # (n,)
    network_keys: jax.Array  # (n,): for dropout
    indices: jax.Array  # (n,): positions of the examples in the global batch
    batch_size: int  # size of the global batch


def make_example_rngs(seed_key: jax.Array, step: ArrayLike, indices: jax.Array, batch_size: int) -> ExampleRngs:
    """Return the keys of some examples of a training step: fold_in(fold_in(seed_key, step), index), split.

    Args:
      seed_key: Key of the run.
      step: Number of the training step.
      indices: Positions of the examples in the global batch, (n,).
      batch_size: Size of the global batch.
    """
    step_key = jax.random.fold_in(seed_key, step)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(step_key, indices)
    time_keys, noise_keys, network_keys = jax.vmap(lambda key: jax.random.split(key, 3), out_axes=1)(keys)
    shared_key = jax.random.fold_in(step_key, batch_size)  # no example has this index
    return ExampleRngs(shared_key, time_keys, noise_keys, network_keys, indices, batch_size)
