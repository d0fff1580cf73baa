"""Thresholding: denoisers whose predicted x0 is restricted to the range of the data.

eps is recomputed from the restricted x0, eps = (x - alpha x0) / sigma, so that the pair is consistent with x_t. The
derivative is that of the original denoiser (straight-through estimator, Bengio et al. 2013, Section 4). The derivative
of clipping is 0, with which `dps` and `pigdm` could not move a clipped x0 towards y.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from score_sde.conditioned import conditioned
from score_sde.errors import UserError
from score_sde.parameterization import Denoiser, shift_x0
from score_sde.sde import SDE, lift

Threshold = Callable[[Denoiser, SDE], Denoiser]


def none() -> Threshold:
    """Return the threshold that leaves x0 unchanged."""
    return lambda denoiser, sde: denoiser


def clip_x0(low: float = -1.0, high: float = 1.0) -> Threshold:
    """Return the threshold that clips x0 to [low, high] (code of Ho et al. 2020).

    Raises:
      UserError: unless low < high.
    """
    if not low < high:
        raise UserError(f"clip: expected low < high, got {low} and {high}")
    return _straight_through(lambda x0: jnp.clip(x0, low, high))


def dynamic_threshold(percentile: float = 99.5, largest: float = math.inf) -> Threshold:
    """Return the dynamic threshold: x0 is clipped to [-s, s] and divided by s, where s is a percentile of |x0|.

    Saharia et al. 2022, "Photorealistic Text-to-Image Diffusion Models ..." (Imagen), Section 2.3.

    Args:
      percentile: Percentile of |x0| per example that gives s, in (0, 100]. s is at least 1.
      largest: Upper bound of s, at least 1.

    Raises:
      UserError: if percentile or largest is out of range.
    """
    if not (0 < percentile <= 100 and largest >= 1):
        raise UserError(f"dynamic: need 0 < percentile <= 100 and largest >= 1, got {percentile} and {largest}")

    def restrict(x0):
        s = jnp.percentile(jnp.abs(x0), percentile, axis=tuple(range(1, x0.ndim)))
        s = lift(jnp.clip(s, 1.0, largest), x0)
        return jnp.clip(x0, -s, s) / s

    return _straight_through(restrict)


def _straight_through(restrict: Callable[[jax.Array], jax.Array]) -> Threshold:
    """Return the threshold that applies `restrict` to x0, with the identity as its derivative."""
    restrict_x0 = jax.custom_jvp(restrict)
    restrict_x0.defjvp(lambda primals, tangents: (restrict(*primals), *tangents))

    def threshold(denoiser, sde):
        def thresholded(x, t, denoiser):
            pair = denoiser(x, t)
            x0 = restrict_x0(pair.x0)
            return shift_x0(pair, x0 - pair.x0, t, sde)._replace(x0=x0)

        return conditioned(thresholded, denoiser)

    return threshold


THRESHOLDS = {"none": none, "clip": clip_x0, "dynamic": dynamic_threshold}
