"""Values of a config that follow from the data: the number of classes, and the scale of real-valued features."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from score_sde.data import Dataset
from score_sde.data.examples import mean_and_std
from score_sde.errors import UserError
from score_sde.training.workdir import flatten

FROM_DATA = -1  # value of num_classes
CLASSES = {"digits": 10, "mnist": 10, "fashion_mnist": 10, "cifar10": 10}  # known without the data
LABELED_FILES = ("image_folder", "npz", "idx")  # of which a class may lack examples


def resolve(config: ConfigDict, load: Callable[[str], Dataset], saved: Mapping[str, Any]) -> ConfigDict:
    """Replace num_classes=-1 by the number of classes, and standardize=True by the mean and standard deviation.

    Args:
      config: The config.
      load: Function from a split to its data.
      saved: Resolved config of the run to continue or to sample, {} for a new run. Its values are used, so the data are
        not needed.

    Raises:
      UserError: if the data can't be loaded, or they are pixels and `standardize` is set.
    """
    config, known = config.copy_and_resolve_references(), dict(flatten(saved))
    kwargs = config.model.kwargs
    if kwargs.get("num_classes", FROM_DATA if config.model.name == "classifier" else 0) == FROM_DATA:
        number = known.get("model.kwargs.num_classes") or CLASSES.get(config.data.name)
        with config.unlocked():
            kwargs.num_classes = number or load("train").num_classes
    if not config.data.standardize and (config.data.mean or config.data.std):
        raise UserError("data: mean and std are only used with standardize", "--config.data.standardize=True")
    if config.data.standardize and not config.data.std:
        mean, std = known.get("data.mean") or (), known.get("data.std") or ()
        if not std:
            source = load("train")
            if source.levels is not None:
                raise UserError("data: standardize expects real numbers, got pixels", "--config.data.standardize=False")
            mean, std = (values.ravel().tolist() for values in mean_and_std(source))
        config.data.mean, config.data.std = tuple(mean), tuple(std)
    return config


def sampled_classes(config: ConfigDict, num_classes: int, load: Callable[[str], Dataset]) -> np.ndarray:
    """Return the classes that have training examples; all of them if the data aren't at hand."""
    if config.data.name in LABELED_FILES:
        try:
            counts = load("train").class_counts
            if counts is not None and len(counts) == num_classes:
                return np.flatnonzero(counts)
        except UserError:
            pass
    return np.arange(num_classes)
