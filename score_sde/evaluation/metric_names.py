"""Names of the metrics that modes will write, obtained from dummy data."""

from collections.abc import Callable
from typing import Any

import numpy as np

from score_sde.data import Dataset
from score_sde.evaluation.comparison import classifier_metrics, compare_points, compute_metrics
from score_sde.evaluation.extractors import LIBRARIES, choose
from score_sde.evaluation.features import Features
from score_sde.evaluation.generalization import make_count_copies
from score_sde.evaluation.likelihood import breakdown
from score_sde.evaluation.metrics import compute_moments
from score_sde.evaluation.options import EvaluationOptions, LikelihoodOptions
from score_sde.training.workdir import flatten

NUM_VECTORS = 6  # dummy features, enough for every metric


def metric_names(
    load: Callable[[str], Dataset],
    modes: tuple[str, ...],
    evaluation: EvaluationOptions,
    likelihood: LikelihoodOptions,
    event_shape: tuple[int, ...],
    weighted: bool = False,
    losses: tuple[str, ...] = (),
) -> set[str]:
    """Return the metrics that modes will write, as paths into evaluation.json ("likelihood.bits_per_dim.mean").

    They are computed from dummy data.

    Args:
      load: Function from a split to its data.
      modes: Modes that will run, of which "evaluate" and "likelihood" have metrics.
      evaluation: Options of evaluation.
      likelihood: Options of the likelihood.
      event_shape: Shape of one example.
      weighted: Whether samples come from weighted particles.
      losses: Losses that `evaluate` computes (`generalization.loss_names`).

    Raises:
      UserError: if samples can't be compared in the chosen features.
    """
    metrics: dict[str, Any] = {"step": 0, "nfe": 0.0}
    if weighted:
        metrics["effective_sample_size"] = 0.0
    if "evaluate" in modes:
        metrics |= _sample_metrics(load("train"), evaluation)
        estimate = {"mean": 0.0, "standard_error": 0.0}
        metrics |= {"losses": dict.fromkeys(losses, estimate)} if losses else {}
    if "likelihood" in modes:
        metrics["likelihood"] = _likelihood_metrics(load("test").levels, likelihood, event_shape)
    return {name for name, _ in flatten(metrics)}


def _sample_metrics(source: Dataset, options: EvaluationOptions) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    if source.levels is None:
        points = rng.standard_normal((NUM_VECTORS, *source.event_shape))
        return compare_points(points, points[::-1], points + 1.0) | make_count_copies(points, points)(points)
    metrics: dict[str, Any] = {}
    for name in choose(options.features, source, {library: getattr(options, library) for library in LIBRARIES}):
        classes = source.num_classes if name == "classifier" else 2 if name == "inception" else 0
        logits = rng.standard_normal((NUM_VECTORS, classes))
        sets = (
            Features(vectors, logits, compute_moments(vectors)) for vectors in rng.standard_normal((3, NUM_VECTORS, 2))
        )
        samples, real, held_out = sets
        samples = samples._replace(moments=samples.moments._replace(num_vectors=options.num_samples))
        metrics |= compute_metrics(name, [samples] * options.num_repeats, real, held_out)
        if name == "classifier":
            metrics |= classifier_metrics(samples, held_out, np.zeros(NUM_VECTORS, int), "")
    vectors = rng.standard_normal((NUM_VECTORS, 2))
    return metrics | make_count_copies(vectors, vectors)(vectors)


def _likelihood_metrics(levels: int | None, options: LikelihoodOptions, event_shape: tuple[int, ...]) -> dict[str, Any]:
    names = ["log_prob", "prior", "divergence", "truncation", "nfe", "probes_standard_error"]
    names += ["importance"] if options.importance_weighted else []
    metrics = breakdown({name: np.ones(NUM_VECTORS) for name in names}, event_shape, levels)
    if options.flow_map_steps:
        difference = {"mean": 0.0, "standard_error": 0.0, "num_examples": 0}
        metrics["minus_integral_per_dim"] = difference
    if levels is not None:
        metrics["histograms_bits_per_dim"] = 0.0
        if options.vlb_num_steps:
            metrics["discrete_bound_bits_per_dim"] = {"mean": 0.0, "standard_error": 0.0}
    return metrics
