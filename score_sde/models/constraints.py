"""Constraints on parameters that every update of an optimizer must keep."""

from typing import Any

import jax
import jax.numpy as jnp

from score_sde.models.edm2 import KERNEL, normalize

FROZEN = ("frequencies", "phases")  # random Fourier features
KERNELS = ("kernel", KERNEL)  # names of weight matrices


def constrain(updates: Any, params: Any) -> Any:
    """Return updates that keep frozen parameters, and EDM2's kernels at unit root mean square.

    Frozen parameters get no gradient, but weight decay would move them. Magnitude-preserving kernels would grow and
    therefore learn more and more slowly (Karras et al. 2024, "forced weight normalization").
    """

    def constrain_leaf(path, update, param):
        name = path[-1].key
        if name in FROZEN:
            return jnp.zeros_like(update)
        return normalize(param + update, range(param.ndim - 1)) - param if name == KERNEL else update

    return jax.tree_util.tree_map_with_path(constrain_leaf, updates, params)
