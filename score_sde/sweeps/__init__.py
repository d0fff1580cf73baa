"""Ablations: many trials of one experiment, on a laptop or on a cluster, and the table they end in."""

from score_sde.sweeps.axes import axis, chain, product, where, zipped
from score_sde.sweeps.settings import sweep

__all__ = ["axis", "chain", "product", "sweep", "where", "zipped"]
