"""Data sets, the input pipeline, augmentation and (de)quantization."""

from score_sde.data.datasets import DATASETS, SPLITS, load
from score_sde.data.examples import Dataset, load_examples
from score_sde.data.pipeline import batches
from score_sde.data.quantization import centered_range, dequantize, to_levels, to_unit_range

__all__ = [
    "DATASETS",
    "SPLITS",
    "Dataset",
    "batches",
    "centered_range",
    "dequantize",
    "load",
    "load_examples",
    "to_levels",
    "to_unit_range",
]
