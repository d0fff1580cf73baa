"""Keeping the predicted x0 in the data's range: denoiser -> denoiser.

The x0 is moved and eps follows from it, eps = (x - alpha x0) / sigma, so that the pair still makes x_t. The derivative
is that of the denoiser, as if nothing had been moved (straight-through, Bengio et al. 2013, Section 4): a clip has the
derivative 0, with which `dps` and `pigdm` could not move a clipped x0 towards y.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from score_sde.conditioned import conditioned
from score_sde.errors import UserError
from score_sde.parameterization import Denoiser, move_x0
from score_sde.sde import SDE, lift

Threshold = Callable[[Denoiser, SDE], Denoiser]


def none() -> Threshold:
    """x0 as it is."""
    return lambda denoiser, sde: denoiser


def clip_x0(low: float = -1.0, high: float = 1.0) -> Threshold:
    """Clips x0 to [low, high] (Ho et al. 2020's code).

    Raises:
      UserError: low is not below high.
    """
    if not low < high:
        raise UserError(f"clip: need low < high, got {low} and {high}")
    return _moving(lambda x0: jnp.clip(x0, low, high))


def dynamic_threshold(percentile: float = 99.5, largest: float = math.inf) -> Threshold:
    """Clips each example's x0 to [-s, s] and divides it by s, its percentile of |x0| but at least 1.

    Saharia et al. 2022, "Photorealistic Text-to-Image Diffusion Models ..." (Imagen), Section 2.3.

    Args:
      percentile: of the example's |x0|, in (0, 100].
      largest: s is at most this; at least 1.

    Raises:
      UserError: percentile or largest is out of range.
    """
    if not (0 < percentile <= 100 and largest >= 1):
        raise UserError(f"dynamic: need 0 < percentile <= 100 and largest >= 1, got {percentile} and {largest}")

    def move(x0):
        s = jnp.percentile(jnp.abs(x0), percentile, axis=tuple(range(1, x0.ndim)))
        s = lift(jnp.clip(s, 1.0, largest), x0)
        return jnp.clip(x0, -s, s) / s

    return _moving(move)


def _moving(move: Callable[[jax.Array], jax.Array]) -> Threshold:
    straight_through = jax.custom_jvp(move)
    straight_through.defjvp(lambda primals, tangents: (move(*primals), *tangents))

    def threshold(denoiser, sde):
        def moved(x, t, denoiser):
            pair = denoiser(x, t)
            kept = straight_through(pair.x0)
            return move_x0(pair, kept - pair.x0, t, sde)._replace(x0=kept)

        return conditioned(moved, denoiser)

    return threshold


THRESHOLDS = {"none": none, "clip": clip_x0, "dynamic": dynamic_threshold}
