"""`--mode=evaluate`: draws samples from a finished run and writes DIR/evaluation.json."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from score_sde import hosts
from score_sde.data import images_of, to_levels, to_unit_range
from score_sde.evaluation.accuracy import accuracy
from score_sde.evaluation.comparison import check_comparison, compare, compare_points
from score_sde.evaluation.figures import write_figures
from score_sde.evaluation.grids import save_grid
from score_sde.evaluation.manifolds import nearest
from score_sde.evaluation.pictures import picture_path
from score_sde.evaluation.restorations import draw_restorations, figures_of
from score_sde.evaluation.small_classifier import fitted
from score_sde.experiment import Experiment
from score_sde.training.metrics import progress_bar
from score_sde.training.trained import trained

NEAREST = 5  # training images beside a sample


def evaluate(experiment: Experiment, workdir: Path) -> str:
    """Compares samples with real data and writes the figures to evaluation.json.

    Images in a classifier's features and in pixels (`comparison.compare`), with a picture of the first samples'
    nearest training images; points by a sliced Wasserstein distance.
    Of a classifier it is its accuracy by noise level, of an inverse problem what its completions are worth, under
    "accuracy" and "restore_<task>".

    Returns:
      The figures as a short text.

    Raises:
      UserError: the folder has no checkpoint, the data set is missing, or images can't be compared as asked.
    """
    if experiment.logits is not None:
        params, step = trained(experiment, workdir)
        return _written(workdir, "accuracy", {"step": step, "levels": accuracy(experiment, params)})
    if experiment.task is not None:
        params, step = trained(experiment, workdir)
        figures = figures_of(experiment, draw_restorations(experiment, params))
        return _written(
            workdir,
            f"restore_{experiment.task.name}",
            {"step": step, "sampling": experiment.config["sampling"]} | figures,
        )
    how = experiment.evaluation
    sources = {split: experiment.source(split) for split in ("train", "test")}
    levels = sources["train"].levels
    if levels is not None:
        check_comparison(how["num_samples"], experiment.event_shape, sources["train"].num_classes)
    (train, _), (test, test_labels) = (images_of(source, how["num_real"]) for source in sources.values())
    params, step = trained(experiment, workdir)
    classifier = None
    if levels is not None and sources["train"].num_classes > 1:
        classifier = fitted(sources["train"], experiment.config["data"])
    samples, nfe = _draw(experiment, params, how["num_samples"] * how["num_draws"], levels)
    draws = np.split(samples, how["num_draws"])
    figures = {"step": step, "num_samples": how["num_samples"], "num_draws": how["num_draws"]}
    figures |= {"seed": experiment.config["seed"], "sampling": experiment.config["sampling"], "nfe": nfe}
    figures |= {"devices": f"{jax.device_count()} {jax.default_backend()}"}
    figures |= {"num_train": len(train), "num_test": len(test)}
    if levels is None:
        figures |= compare_points(draws[0], train, test)
    else:
        figures |= compare(draws, train, test, test_labels, levels, classifier)
        if how["neighbours"] and hosts.first():
            path = picture_path(experiment, workdir, step, "_neighbours")
            save_neighbours(path, draws[0][: how["neighbours"]], train, levels)
    write_figures(workdir, figures)
    return json.dumps(figures, indent=2)


def _draw(experiment: Experiment, params: Any, number: int, levels: int | None) -> tuple[np.ndarray, float | None]:
    """So many samples, as pixels where the data are, and the mean of their evaluations, if it is known."""
    samples, evaluations = [], []
    with progress_bar(number, 0, "image", "samples") as bar:
        for batch in experiment.sampler.draw(params, number):
            samples.append(batch.x if levels is None else to_levels(batch.x, levels))
            evaluations.append(batch.nfe)
            bar.update(len(batch.x))
    return np.concatenate(samples), None if evaluations[0] is None else float(np.concatenate(evaluations).mean())


def save_neighbours(path: Path, samples: np.ndarray, train: np.ndarray, levels: int) -> None:
    """Writes a PNG with a row a sample: it, and the training images nearest to it in pixels. A copy shows at once.

    Args:
      path: of the PNG.
      samples: (n, height, width, channels) pixels.
      train: (m, height, width, channels).
      levels: pixels are integers 0 .. levels - 1.
    """
    places = nearest(*(images.reshape(len(images), -1) for images in (samples, train)), min(NEAREST, len(train)))
    rows = np.concatenate([samples[:, None], train[places]], axis=1)
    cells = to_levels(to_unit_range(rows.reshape(-1, *samples.shape[1:]), levels), 256)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_grid(path, cells, columns=rows.shape[1])


def _written(workdir: Path, section: str, figures: dict[str, Any]) -> str:
    write_figures(workdir, {section: figures})
    return json.dumps(figures, indent=2)
