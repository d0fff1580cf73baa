"""Training objectives: the denoising loss, its weightings, and the randomness of a training step."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from score_sde.errors import lookup
from score_sde.parameterization import Denoiser
from score_sde.sde import SDE, marginal


def denoising(
    denoiser: Denoiser, sde: SDE, x0: jax.Array, t: jax.Array, epsilon: jax.Array, weighting: str = "simple"
) -> jax.Array:
    """The denoising score matching loss of each example (Vincent 2011; Song et al. 2021, eq. 7).

    The squared error of the score, |s(x_t, t) - grad log p(x_t | x0)|^2 = |eps_hat - eps|^2 / sigma^2, weighted.

    Args:
      denoiser: (x, t) -> Prediction.
      sde: the forward process.
      x0: (batch, *event) data.
      t: (batch,) times.
      epsilon: the noise, of the shape of x0.
      weighting: a key of `WEIGHTINGS`.

    Returns:
      (batch,) losses, summed over the event.
    """
    weight = lookup("weighting", WEIGHTINGS, weighting, "--config.loss.weighting")
    predicted = denoiser(marginal(sde, x0, epsilon, t), t).epsilon
    return weight(sde, t) * jnp.sum((predicted - epsilon) ** 2, axis=tuple(range(1, x0.ndim)))


# The factor of the *epsilon* error |eps_hat - eps|^2; that of the score error is sigma^2 times it.
WEIGHTINGS: dict[str, Callable[[SDE, jax.Array], jax.Array]] = {
    "simple": lambda sde, t: jnp.ones_like(t),  # L_simple (Ho et al. 2020, eq. 14)
    "likelihood": lambda sde, t: (sde.diffusion(t) / sde.sigma(t)) ** 2,  # g^2 (Song, Durkan et al. 2021)
}


OBJECTIVES = {"denoising": denoising}


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


def make_draw(seed_key: jax.Array, step: jax.Array, indices: jax.Array, batch_size: int) -> Draw:
    """The draw of the examples `indices` (n,) of a global batch, at a step; seed_key is the run's."""
    step_key = jax.random.fold_in(seed_key, step)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(step_key, indices)
    time_keys, noise_keys, network_keys = jax.vmap(lambda key: jax.random.split(key, 3), out_axes=1)(keys)
    shared_key = jax.random.fold_in(step_key, batch_size)  # an index that no example has
    return Draw(shared_key, time_keys, noise_keys, network_keys, indices, batch_size)


def uniform_times(draw: Draw) -> jax.Array:
    """(n,) fractions in [0, 1), independent and uniform."""
    return jax.vmap(jax.random.uniform)(draw.time_keys)


def stratified_times(draw: Draw) -> jax.Array:
    """(n,) fractions (u + i / batch_size) mod 1 with one uniform u for the batch (Kingma et al. 2021, Appendix I.1).

    Each fraction is uniform on its own and the batch covers [0, 1) evenly: the loss keeps its mean, with less variance.
    """
    return (jax.random.uniform(draw.shared_key) + draw.indices / draw.batch_size) % 1.0


TIME_SAMPLERS = {"uniform": uniform_times, "stratified": stratified_times}
