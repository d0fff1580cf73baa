"""What an exact score fulfils at every noise level, measured of any denoiser: a number an example, 0 where it holds.

All are made dimensionless, so that levels, processes and data sets can be laid side by side: errors of eps, whose every
component has the variance 1, per dimension.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import softmax

from score_sde.parameterization import Denoiser, score_fn
from score_sde.randomness import fold_each, signs
from score_sde.sde import SDE, log_snr, slope

EXACT = 16  # dimensions up to which a divergence is taken along every axis
PROBES = 2  # above them, directions of an estimate


def per_dimension(x: jax.Array) -> jax.Array:
    """The mean over an example's numbers: (batch, *event) -> (batch,)."""
    return jnp.mean(x.reshape(len(x), -1), axis=1)


def stein(sde: SDE, denoiser: Denoiser, x: jax.Array, t: jax.Array) -> jax.Array:
    """1 + <score, x - mean> / d, whose mean over x ~ p_t is 0: E[<score, f>] = -E[div f], f being x less a constant.

    Stein's identity, by integration by parts. The batch is the sample: the mean is its own, corrected by n / (n - 1).

    Args:
      sde: the forward process.
      denoiser: of its score.
      x: (batch, *event) from p_t, batch > 1.
      t: () time.

    Returns:
      (batch,).
    """
    centred = (x - jnp.mean(x, axis=0, keepdims=True)) * (len(x) / (len(x) - 1))
    return 1 + per_dimension(score_fn(denoiser, sde)(x, t) * centred)


def curl(sde: SDE, denoiser: Denoiser, x: jax.Array, t: jax.Array, keys: jax.Array) -> jax.Array:
    """|sigma (J - J^T) / 2|^2 / d of the Jacobian J of eps: a score is a gradient, and its Jacobian symmetric.

    sigma J of an exact denoiser has eigenvalues of at most 1, so this is a share. The squared Frobenius norm is taken
    along a random direction of signs for each example, without bias.

    Args:
      sde: the forward process.
      denoiser: of eps.
      x: (batch, *event).
      t: () time.
      keys: (batch,).

    Returns:
      (batch,).
    """

    def epsilon(x):
        return denoiser(x, t).epsilon

    direction = signs(keys, x)
    _, forward = jax.jvp(epsilon, (x,), (direction,))
    _, pull = jax.vjp(epsilon, x)
    (backward,) = pull(direction)
    return per_dimension((sde.sigma(t) * (forward - backward) / 2) ** 2)


def fokker_planck(sde: SDE, denoiser: Denoiser, x: jax.Array, t: jax.Array, keys: jax.Array) -> jax.Array:
    """The squared residual of the score's Fokker-Planck equation, in eps per unit of log-SNR, per dimension.

    d score / dt = grad (g^2 (div score + |score|^2) / 2 - <f, score>) (Lai et al. 2023, eq. 6). Where the divergence is
    estimated, two independent estimates are multiplied, so that their noise adds nothing on average.

    Args:
      sde: the forward process.
      denoiser: of eps, differentiable three times.
      x: (batch, *event).
      t: () time with alpha(t) > 0.
      keys: (batch,).

    Returns:
      (batch,), negative too where the divergence is estimated.
    """
    score = score_fn(denoiser, sde)
    half = sde.diffusion(t) ** 2 / 2

    def potential(x, directions):  # summed over examples, of which each bears on its own gradient alone
        divergence: Any = sum(jnp.sum(v * jax.jvp(lambda x: score(x, t), (x,), (v,))[1]) for v in directions)
        if x[0].size > EXACT:
            divergence /= len(directions)
        here = score(x, t)
        return half * (divergence + jnp.sum(here**2)) - jnp.sum(sde.drift(x, t) * here)

    _, moved = jax.jvp(lambda t: score(x, t), (t,), (jnp.ones_like(t),))
    scale = sde.sigma(t) / slope(lambda t: log_snr(sde, t), t)
    residuals = [scale * (moved - jax.grad(potential)(x, directions)) for directions in _two_sets(keys, x)]
    return per_dimension(residuals[0] * residuals[1])


def make_empirical(
    sde: SDE, images: np.ndarray, labels: np.ndarray | None = None
) -> Callable[[np.ndarray, float, np.ndarray | None], np.ndarray]:
    """The exact E[x0 | x] where the data are a training set and nothing else: what a network that memorizes gives.

    Args:
      sde: the forward process.
      images: (n, *event), all of them.
      labels: (n,), where the network is told classes.

    Returns:
      (x (batch, *event), t, labels (batch,) or None) -> x0 (batch, *event), in float64: with little noise the nearest
      image decides, by differences that float32 doesn't hold.
    """
    flat = np.asarray(images, np.float64).reshape(len(images), -1)
    norms = np.sum(flat**2, axis=1)

    def x0(x, t, told=None):
        alpha, sigma = (float(function(jnp.float32(t))) for function in (sde.alpha, sde.sigma))
        logits = (2 * np.asarray(x, np.float64).reshape(len(x), -1) @ flat.T / alpha - norms) * (alpha / sigma) ** 2 / 2
        if labels is not None:
            logits = np.where(labels[None] == told[:, None], logits, -np.inf)
        return (softmax(logits, axis=1) @ flat).reshape(x.shape)

    return x0


def _two_sets(keys: jax.Array, x: jax.Array) -> list[list[jax.Array]]:
    """Directions for two independent estimates of a divergence; every axis twice where there are few."""
    size = x[0].size
    if size <= EXACT:
        axes = [jnp.broadcast_to(axis.reshape(x.shape[1:]), x.shape) for axis in jnp.eye(size, dtype=x.dtype)]
        return [axes, axes]
    return [[signs(fold_each(keys, PROBES * n + i), x) for i in range(PROBES)] for n in (0, 1)]
