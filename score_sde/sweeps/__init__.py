"""Ablations: many trials of one experiment on a laptop or a cluster, and a report of their results."""

from score_sde.sweeps.axes import axis, chain, product, where, zip_axes
from score_sde.sweeps.settings import sweep

__all__ = ["axis", "chain", "product", "sweep", "where", "zip_axes"]
