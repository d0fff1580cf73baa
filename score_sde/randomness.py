"""Keys such that neither the batch, nor a resume, nor the number of devices changes an example's noise."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from score_sde.errors import UserError


def sample_keys(key: jax.Array, batch: int) -> jax.Array:
    """(batch,) keys, one a sample: those given, or the one given folded by the sample's position in the batch."""
    if key.ndim == 1:
        return key
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(batch))


def fold_each(keys: jax.Array, n: ArrayLike) -> jax.Array:
    """(batch,) keys, each folded by the same number n."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, n)


def noise(source: jax.Array, x: jax.Array) -> jax.Array:
    """Standard normal noise of the shape of x: (batch, *event).

    source is (batch,) keys, one a sample, or the noise itself, given by who wants to choose it.
    """
    if not jnp.issubdtype(source.dtype, jax.dtypes.prng_key):
        return source
    return jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(source)


def signs(keys: jax.Array, x: jax.Array) -> jax.Array:
    """Random signs of the shape of x, (batch, *event); keys (batch,), one a sample."""
    return jax.vmap(lambda key: jax.random.rademacher(key, x.shape[1:], x.dtype))(keys)


def parts(source: jax.Array, number: int) -> list[jax.Array]:
    """Several sources of noise from one, for a step that draws more than once.

    Raises:
      UserError: the source is noise itself, which serves one draw.
    """
    if number == 1:
        return [source]
    if not jnp.issubdtype(source.dtype, jax.dtypes.prng_key):
        raise UserError(f"this solver draws {number} times a step: give solve(...) a key, not noise")
    return [fold_each(source, i) for i in range(number)]


class Draw(NamedTuple):
    """The randomness of n examples of a training step, each from fold_in(fold_in(seed_key, step), its global index).

    Neither a resume nor the number of devices changes an example's draw.
    """

    shared_key: jax.Array  # (): the same for all examples of the global batch
    time_keys: jax.Array  # (n,)
    noise_keys: jax.Array  # (n,)
    network_keys: jax.Array  # (n,): for dropout
    indices: jax.Array  # (n,): positions of the examples in the global batch
    batch_size: int  # of the global batch


def make_draw(seed_key: jax.Array, step: ArrayLike, indices: jax.Array, batch_size: int) -> Draw:
    """The draw of the examples `indices` (n,) of a global batch, at a step; seed_key is the run's."""
    step_key = jax.random.fold_in(seed_key, step)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(step_key, indices)
    time_keys, noise_keys, network_keys = jax.vmap(lambda key: jax.random.split(key, 3), out_axes=1)(keys)
    shared_key = jax.random.fold_in(step_key, batch_size)  # an index that no example has
    return Draw(shared_key, time_keys, noise_keys, network_keys, indices, batch_size)
