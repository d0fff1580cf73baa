"""`--mode=evaluate`: measures a finished run, or one that goes on, and writes DIR/evaluation.json."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from score_sde.data import images_of, to_levels, to_unit_range
from score_sde.errors import UserError, not_none
from score_sde.evaluation.accuracy import accuracy
from score_sde.evaluation.comparison import check_number, classified, compare, compare_points
from score_sde.evaluation.curve import save_curve
from score_sde.evaluation.extractors import EXTRACTORS, LIBRARIES, Extractor, choose
from score_sde.evaluation.features import Features, Split, make_extract, of_real, split_of
from score_sde.evaluation.health import health
from score_sde.evaluation.image_grid import save_grid
from score_sde.evaluation.inverse_problems import draw_restorations, figures_of
from score_sde.evaluation.manifolds import nearest
from score_sde.evaluation.pictures import picture_path
from score_sde.evaluation.provenance import provenance, subjects
from score_sde.evaluation.results import check_comparable, check_figures, read_figures, write_figures
from score_sde.evaluation.samples import FOLDER, draw
from score_sde.experiment import Experiment
from score_sde.runtime import distributed
from score_sde.training.load import Chosen, trained

NEAREST = 5  # training images beside a sample


class Measure(NamedTuple):
    """How images are measured in some features."""

    extractor: Extractor
    extract: Callable[..., Features]
    real: Features
    held_out: Features


def evaluate(experiment: Experiment, workdir: Path) -> str:
    """Compares samples with real data, for every checkpoint and average asked for; writes evaluation.json.

    Images in features (`comparison.compare`), with a picture of the first samples' nearest training images; points by a
    sliced Wasserstein distance. Of several checkpoints or averages all figures are under "curve", drawn in
    DIR/evaluation_curve.png, and the last ones also at the top. With evaluation.health the network is measured in
    place of samples. Of a classifier it is its accuracy by noise level, of an inverse problem what its completions are
    worth, under "accuracy" and "restore_<task>".

    Returns:
      The figures as a short text.

    Raises:
      UserError: the folder has no checkpoint, the data set is missing, or images can't be compared as asked.
    """
    check_figures(workdir)
    if experiment.logits is not None:
        params, step = trained(experiment, workdir)
        return _written(workdir, "accuracy", provenance(experiment, step) | {"levels": accuracy(experiment, params)})
    if experiment.evaluation["health"]:
        params, step = trained(experiment, workdir)
        return _written(workdir, "health", provenance(experiment, step) | health(experiment, params, workdir))
    if experiment.task is not None:
        params, step = trained(experiment, workdir)
        figures = provenance(experiment, step) | {"sampling": experiment.config["sampling"]}
        figures |= figures_of(experiment, not_none(draw_restorations(experiment, params)))
        return _written(workdir, f"restore_{experiment.task.name}", figures)
    chosen = subjects(experiment, workdir)
    compare_with = _points(experiment) if experiment.source("train").levels is None else _images(experiment, workdir)
    rows = [_row(experiment, workdir, each, compare_with) for each in chosen]
    figures = rows[-1]
    if len(rows) > 1:
        figures = figures | {"curve": rows}
        if distributed.is_main_process():
            save_curve(workdir / "evaluation_curve.png", rows)
    write_figures(workdir, figures)
    if distributed.is_main_process():
        shutil.rmtree(workdir / FOLDER)  # the samples; their figures are whole now
    return json.dumps(figures, indent=2)


def _row(experiment: Experiment, workdir: Path, chosen: Chosen, compare_with: Callable) -> dict[str, Any]:
    """The figures of one checkpoint and average."""
    how = experiment.evaluation
    params, step = trained(experiment, workdir, chosen)
    levels = experiment.source("train").levels
    samples = draw(experiment, params, how["num_samples"] * how["num_draws"], levels, workdir)
    figures = provenance(experiment, step, chosen)
    figures |= {"num_samples": how["num_samples"], "num_draws": how["num_draws"]}
    figures |= {"solver": experiment.config["sampling"]["solver"], "nfe": samples.nfe}
    figures |= {"sampling": experiment.config["sampling"]}
    figures |= {"devices": f"{jax.device_count()} {jax.default_backend()}"}
    return figures | compare_with(np.split(samples.x, how["num_draws"]), step)


def _points(experiment: Experiment) -> Callable[[list[np.ndarray], int], dict[str, Any]]:
    """(draws, step) -> the figures of points."""
    splits = [_split(experiment, name) for name in ("train", "test")]
    train, test = (images_of(split.source, split.number)[0] for split in splits)
    return lambda draws, step: _hashes(splits, {}) | compare_points(draws[0], train, test)


def _images(experiment: Experiment, workdir: Path) -> Callable[[list[np.ndarray], int], dict[str, Any]]:
    """(draws, step) -> the figures of images; all that can be refused is refused here."""
    how, config = experiment.evaluation, experiment.config
    check_number(how["num_samples"], "samples", "evaluation.num_samples")
    splits = train, test = [_split(experiment, name) for name in ("train", "test")]
    for split, name in zip(splits, ("train", "test"), strict=True):
        check_number(split.number, f"images of the {name} split", "data.path, or evaluation.num_real")
    files = {name: how[name] for name in LIBRARIES}
    names = choose(how["features"], train.source, files)
    extractors = {name: EXTRACTORS[name](train.source, config["data"], files.get(name, "")) for name in names}
    hashes = _hashes(splits, {name: extractor.fingerprint for name, extractor in extractors.items()})
    theirs = _against(how, hashes) if how["against"] else None
    measures = {name: _measure(extractor, splits) for name, extractor in extractors.items()}

    def compare_with(draws, step):
        figures = dict(hashes)
        for name, measure in measures.items():
            drawn = [measure.extract(samples.__getitem__, len(samples)) for samples in draws]
            figures |= compare(name, drawn, measure.real, measure.held_out)
            if name == "classifier":
                _, labels = images_of(test.source, len(measure.held_out.logits))
                figures |= classified(drawn[0], measure.held_out, labels, measure.extractor.fingerprint)
        if theirs is not None:
            figures["against"] = {"whose": how["against"]} | _differences(figures, theirs)
        if how["neighbours"] and distributed.is_main_process():
            seen, _ = images_of(train.source, min(train.number, how["neighbours_among"]))
            path = picture_path(experiment, workdir, step, "_neighbours")
            save_neighbours(path, draws[0][: how["neighbours"]], seen, not_none(train.source.levels))
        return figures

    return compare_with


def _split(experiment: Experiment, name: str) -> Split:
    return split_of(experiment.source(name), experiment.config["data"], name, experiment.evaluation["num_real"])


def _measure(extractor: Extractor, splits: list[Split]) -> Measure:
    extract = make_extract(extractor)
    return Measure(extractor, extract, *(of_real(extract, extractor, split) for split in splits))


def _hashes(splits: list[Split], features: dict[str, str]) -> dict[str, Any]:
    """What figures must share to be comparable, beside the number of samples, which their names carry."""
    data = {split.name: {"number": split.number, "hash": split.fingerprint} for split in splits}
    return {"data": data, "features": features}


def _against(how: dict[str, Any], hashes: dict[str, Any]) -> dict[str, Any]:
    """The figures of another run that these are to be held against, if they may be.

    Raises:
      UserError: there are none, or they come from other data, features or numbers of samples.
    """
    theirs = read_figures(Path(how["against"]))
    ours = hashes | {"num_samples": how["num_samples"]}
    if not theirs.get("features"):
        raise UserError(f"{how['against']} has no figures of samples in features", "against")
    check_comparable(ours, theirs, how["against"])
    return theirs


def _differences(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    """Our mean distances less theirs: below 0 ours are better."""
    distances = [name for name, value in ours.items() if name.startswith(("fd_", "kid_")) and isinstance(value, dict)]
    return {name: ours[name]["mean"] - theirs[name]["mean"] for name in distances if "test_train" not in name}


def save_neighbours(path: Path, samples: np.ndarray, train: np.ndarray, levels: int) -> None:
    """Writes a PNG with a row a sample: it, and the training images nearest to it in pixels. A copy shows at once.

    Args:
      path: of the PNG.
      samples: (n, height, width, channels) pixels.
      train: (m, height, width, channels).
      levels: pixels are integers 0 .. levels - 1.
    """
    flat, among = (images.reshape(len(images), -1) for images in (samples, train))
    places = nearest(flat, among, min(NEAREST, len(train)))
    rows = np.concatenate([samples[:, None], train[places]], axis=1)
    cells = to_levels(to_unit_range(rows.reshape(-1, *samples.shape[1:]), levels), 256)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_grid(path, cells, columns=rows.shape[1])


def _written(workdir: Path, section: str, figures: dict[str, Any]) -> str:
    write_figures(workdir, {section: figures})
    return json.dumps(figures, indent=2)
