"""Training objectives: the denoising loss, its weightings, and the samplers of training times."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from score_sde.errors import lookup
from score_sde.parameterization import Denoiser
from score_sde.sde import SDE, marginal


def denoising(
    denoiser: Denoiser, sde: SDE, x0: jax.Array, t: jax.Array, epsilon: jax.Array, weighting: str = "simple"
) -> jax.Array:
    """The denoising score matching loss of each example (Vincent 2011; Song et al. 2021, eq. 7).

    The squared error of the score, |s(x_t, t) - grad log p(x_t | x0)|^2 = |eps_hat - eps|^2 / sigma^2, times a weighting.

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
    "likelihood": lambda sde, t: (sde.diffusion(t) / sde.sigma(t)) ** 2,  # lambda = g^2 (Song et al. 2021b, eq. 8)
}


def uniform_times(key: jax.Array, indices: jax.Array, batch_size: int) -> jax.Array:
    """Fractions in [0, 1), independent and uniform: example i's is drawn with fold_in(key, i).

    Args:
      key: the key of the training step.
      indices: (n,) positions of these examples in the global batch.
      batch_size: the size of the global batch.

    Returns:
      (n,) fractions.
    """
    del batch_size
    return jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i)))(indices)


def stratified_times(key: jax.Array, indices: jax.Array, batch_size: int) -> jax.Array:
    """One uniform offset u for the whole batch, then (u + i / batch_size) mod 1 (Kingma et al. 2021, Appendix I.1).

    Each fraction is uniform on its own, the batch covers [0, 1) evenly: the loss has the same mean and less variance.
    Arguments and result are those of `uniform_times`.
    """
    return (jax.random.uniform(key) + indices / batch_size) % 1.0


TIME_SAMPLERS = {"uniform": uniform_times, "stratified": stratified_times}
