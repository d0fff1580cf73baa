"""Sources of images and the input pipeline; they know neither models nor SDEs."""

from score_sde.data.examples import Source, images_of
from score_sde.data.pipeline import batches, examples, to_levels, to_unit_range
from score_sde.data.sources import SOURCES, SPLITS, load

__all__ = ["SOURCES", "SPLITS", "Source", "batches", "examples", "images_of", "load", "to_levels", "to_unit_range"]
