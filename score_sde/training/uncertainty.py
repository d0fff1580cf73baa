"""Uncertainty weighting: the log of the loss is learned as a function u of the noise level, and divides the loss.

The loss l becomes l / exp(u) + u (Karras et al. 2024, eq. 14), which u = log E[l | noise level] minimizes. The first
term then has mean 1 at every noise level, so all have about the same gradient, whatever the weighting.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

NAME = "uncertainty"  # of the weights of u among a run's parameters
NUM_FEATURES = 128
LEVEL_SCALE = 8.0  # log-SNR per unit of EDM's noise level, log(sigma) / 4
MAX_LEVEL = 30.0  # largest log-SNR; it is infinite where alpha or sigma is 0

_rng = np.random.default_rng(0)
FREQUENCIES = _rng.standard_normal(NUM_FEATURES).astype(np.float32)
PHASES = _rng.uniform(size=NUM_FEATURES).astype(np.float32)


def with_uncertainty(params: Any) -> Any:
    """Return the parameters of a network and those of u = 0."""
    return {**params, NAME: jnp.zeros(NUM_FEATURES)}


def without_uncertainty(params: Any) -> Any:
    """Return the parameters of the network alone."""
    return {name: value for name, value in params.items() if name != NAME}


def log_uncertainty(params: Any, level: jax.Array) -> jax.Array:
    """Return u at log-SNRs (batch,), linear in fixed random Fourier features."""
    scaled = jnp.clip(level, -MAX_LEVEL, MAX_LEVEL) / LEVEL_SCALE
    features = jnp.cos(2 * jnp.pi * (scaled[:, None] * FREQUENCIES[None] + PHASES[None]))
    return features @ params[NAME]


def weigh(losses: jax.Array, params: Any, level: jax.Array) -> jax.Array:
    """Return l / exp(u) + u for losses (batch,) at log-SNRs (batch,)."""
    u = log_uncertainty(params, level)
    return losses * jnp.exp(-u) + u
