"""The names of the figures that an experiment's modes write, before any is measured."""

from typing import Any

import numpy as np

from score_sde.evaluation.comparison import classified, compare, compare_points
from score_sde.evaluation.extractors import LIBRARIES, choose
from score_sde.evaluation.features import Features
from score_sde.evaluation.likelihood import account
from score_sde.evaluation.moments import moments_of
from score_sde.experiment import Experiment
from score_sde.training.workdir import flatten

FEW = 6  # vectors of the examples that names are read from


def figure_names(experiment: Experiment, modes: tuple[str, ...]) -> set[str]:
    """Paths into evaluation.json, as "likelihood.bits_per_dim.mean"; what is computed on a handful of made-up numbers.

    Args:
      experiment: the parts of a run.
      modes: those of evaluate and likelihood that will be run.

    Raises:
      UserError: its samples can't be compared as asked.
    """
    figures: dict[str, Any] = {"step": 0, "nfe": 0.0}
    if "evaluate" in modes:
        figures |= _of_samples(experiment)
    if "likelihood" in modes:
        figures["likelihood"] = _of_likelihood(experiment)
    return {name for name, _ in flatten(figures)}


def _of_samples(experiment: Experiment) -> dict[str, Any]:
    source, how = experiment.source("train"), experiment.evaluation
    rng = np.random.default_rng(0)
    if source.levels is None:
        points = rng.standard_normal((FEW, *source.event_shape))
        return compare_points(points, points[::-1], points + 1.0)
    figures: dict[str, Any] = {}
    for name in choose(how["features"], source, {library: how[library] for library in LIBRARIES}):
        classes = source.num_classes if name == "classifier" else 2 if name == "inception" else 0
        vectors = rng.standard_normal((3, FEW, 2))
        logits = rng.standard_normal((FEW, classes))
        drawn, real, held_out = (Features(each, logits, moments_of(each)) for each in vectors)
        drawn = drawn._replace(moments=drawn.moments._replace(number=how["num_samples"]))
        figures |= compare(name, [drawn] * how["num_draws"], real, held_out)
        if name == "classifier":
            figures |= classified(drawn, held_out, np.zeros(FEW, int), "")
    return figures


def _of_likelihood(experiment: Experiment) -> dict[str, Any]:
    levels = experiment.source("test").levels
    parts = {name: np.ones(FEW) for name in ("log_prob", "prior", "divergence", "truncation", "nfe")}
    if experiment.likelihood["importance"]:
        parts["importance"] = np.ones(FEW)
    figures = account(parts | {"probes_standard_error": np.ones(FEW)}, experiment.event_shape, levels)
    if levels is not None:
        figures["histograms_bits_per_dim"] = 0.0
        if experiment.likelihood["chain_steps"]:
            figures["discrete_bound_bits_per_dim"] = {"mean": 0.0, "standard_error": 0.0}
    return figures
