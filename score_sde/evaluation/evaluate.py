"""Evaluation of a run: samples against real data, for one or several checkpoints and EMAs."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from score_sde.data import Dataset, load_examples, to_levels, to_unit_range
from score_sde.errors import UserError, not_none
from score_sde.evaluation.comparison import check_count, classifier_metrics, compare_points, compute_metrics
from score_sde.evaluation.extractors import EXTRACTORS, LIBRARIES, Extractor, choose
from score_sde.evaluation.features import Features, Split, make_extract, make_split, real_features
from score_sde.evaluation.generalization import make_count_copies
from score_sde.evaluation.image_grid import save_grid
from score_sde.evaluation.metrics import nearest_neighbors
from score_sde.evaluation.options import EvaluationOptions
from score_sde.evaluation.plots import sample_path, save_curve
from score_sde.evaluation.results import check_comparable, load_results, save_results
from score_sde.evaluation.samples import FOLDER, generate_samples
from score_sde.runtime import distributed
from score_sde.sampling import Sampler
from score_sde.training.checkpoints import saved_steps
from score_sde.training.ema import EMAConfig, check_choice
from score_sde.training.load import CheckpointSpec

NUM_NEIGHBORS = 5  # training images per sample


class Measure(NamedTuple):
    """An extractor with the features of the training and the test split."""

    extractor: Extractor
    extract: Callable[..., Features]
    real: Features
    held_out: Features


def evaluate(
    sampler: Sampler,
    load: Callable[[str], Dataset],
    load_params: Callable[[CheckpointSpec], tuple[Any, int]],
    specs: Sequence[CheckpointSpec],
    options: EvaluationOptions,
    config: Mapping[str, Any],
    workdir: Path,
    losses: Callable[[Any], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Compare samples with real data, for every checkpoint and EMA, and write evaluation.json.

    Images are compared in features (`comparison.compute_metrics`), with a plot of the nearest training images of the
    first samples. Points are compared by a sliced Wasserstein distance. Copies of training examples are counted. For
    several checkpoints or EMAs all results are under "curve" and plotted in DIR/evaluation_curve.png, and the last ones
    are also at the top level.

    Args:
      sampler: Sampler.
      load: Function from a split to its data.
      load_params: Function from a checkpoint and EMA to parameters and their step.
      specs: Checkpoints and EMAs.
      options: Options of evaluation.
      config: Resolved config of the run.
      workdir: Folder of the run.
      losses: Result of `generalization.make_losses`; None to omit the losses.

    Raises:
      UserError: if the folder has no checkpoint, or images can't be compared in the chosen features.
    """
    levels = load("train").levels
    compare_with = _points(load, options, config) if levels is None else _images(load, options, config, workdir)
    rows = []
    for spec in specs:
        params, step = load_params(spec)
        samples = generate_samples(sampler, params, options.num_samples * options.num_repeats, levels, config, workdir)
        row = spec.record(step, config["seed"])
        row |= {"num_samples": options.num_samples, "num_draws": options.num_repeats}
        row |= {"solver": config["sampling"]["solver"], "nfe": samples.nfe, "sampling": config["sampling"]}
        if samples.effective_sample_size is not None:
            row |= {"effective_sample_size": samples.effective_sample_size}
        row |= {"devices": f"{jax.device_count()} {jax.default_backend()}"}
        row |= {} if losses is None else {"losses": losses(params)}
        rows.append(row | compare_with(np.split(samples.x, options.num_repeats), step))
    results = rows[-1]
    if len(rows) > 1:
        results = results | {"curve": rows}
        if distributed.is_main_process():
            save_curve(workdir / "evaluation_curve.png", rows)
    save_results(workdir, results)
    if distributed.is_main_process():
        shutil.rmtree(workdir / FOLDER)  # the stored samples, since their results are complete
    return results


def checkpoints_to_evaluate(
    workdir: Path, options: EvaluationOptions, default: CheckpointSpec, ema: EMAConfig
) -> list[CheckpointSpec]:
    """Return every pair of a chosen checkpoint and a chosen EMA.

    Args:
      workdir: Folder of the run.
      options: Options of evaluation. `steps` or `every_checkpoint` choose checkpoints, by default the newest;
        `ema_decays` and `ema_lengths` choose EMAs.
      default: Its EMA is used if none is chosen.
      ema: EMAs of the run.

    Raises:
      UserError: if a checkpoint is missing, or an EMA is not one of the run.
    """
    emas = [(decay, 0.0) for decay in options.ema_decays] + [(0.0, length) for length in options.ema_lengths]
    for decay, length in emas:
        check_choice(ema, 0.0 if decay == ema.decay else decay, length, "ema_decays")
    emas = emas or [(default.ema_decay, default.ema_length)]
    saved = saved_steps(workdir)
    newest: list[int | None] = [None]
    steps = [*sorted(options.steps)] or ([*saved] if options.every_checkpoint else newest)
    missing = [step for step in steps if step not in (*saved, None)]
    if missing or not steps:
        raise UserError(
            f"{workdir} has checkpoints of the steps {', '.join(map(str, saved)) or 'none'}, not of "
            f"{', '.join(map(str, missing)) or 'any'}; keep_checkpoints and keep_every choose which ones stay",
            "steps",
        )
    return [CheckpointSpec(step, *ema_choice) for step in steps for ema_choice in emas]


def _points(
    load: Callable[[str], Dataset], options: EvaluationOptions, config: Mapping[str, Any]
) -> Callable[[list[np.ndarray], int], dict[str, Any]]:
    """Return the function (sets of samples, step) -> results for points."""
    splits = [make_split(load(name), config["data"], name, options.num_real) for name in ("train", "test")]
    train, test = (load_examples(split.source, split.num_images)[0] for split in splits)
    count_copies = make_count_copies(train, test)
    return lambda sample_sets, step: (
        _hashes(splits, {}) | compare_points(sample_sets[0], train, test) | count_copies(sample_sets[0])
    )


def _images(
    load: Callable[[str], Dataset], options: EvaluationOptions, config: Mapping[str, Any], workdir: Path
) -> Callable[[list[np.ndarray], int], dict[str, Any]]:
    """Return the function (sets of samples, step) -> results for images; invalid options raise here."""
    check_count(options.num_samples, "samples", "num_samples")
    splits = train, test = [
        make_split(load(name), config["data"], name, options.num_real) for name in ("train", "test")
    ]
    for split in splits:
        check_count(split.num_images, f"images of the {split.name} split", "num_real")
    files = {name: getattr(options, name) for name in LIBRARIES}
    names = choose(options.features, train.source, files)
    extractors = {name: EXTRACTORS[name](train.source, config["data"], files.get(name, "")) for name in names}
    hashes = _hashes(splits, {name: extractor.fingerprint for name, extractor in extractors.items()})
    baseline = _load_baseline(options, hashes) if options.baseline else None
    measures = {name: _measure(extractor, splits) for name, extractor in extractors.items()}
    limits = options.neighbor_pool_size, options.num_samples
    pool, test_images = (
        load_examples(split.source, min(split.num_images, limit))[0]
        for split, limit in zip(splits, limits, strict=True)
    )
    count_copies = make_count_copies(pool, test_images, mirrored=config["data"]["random_flip"])

    def compare_with(sample_sets, step):
        results = dict(hashes)
        for name, measure in measures.items():
            features = [measure.extract(samples.__getitem__, len(samples)) for samples in sample_sets]
            results |= compute_metrics(name, features, measure.real, measure.held_out)
            if name == "classifier":
                _, labels = load_examples(test.source, len(measure.held_out.logits))
                results |= classifier_metrics(features[0], measure.held_out, labels, measure.extractor.fingerprint)
        results |= count_copies(sample_sets[0])
        if baseline is not None:
            results["against"] = {"whose": options.baseline} | _differences(results, baseline)
        if options.num_neighbors and distributed.is_main_process():
            path = sample_path(workdir, step, suffix="_neighbours")
            save_neighbors(path, sample_sets[0][: options.num_neighbors], pool, not_none(train.source.levels))
        return results

    return compare_with


def _measure(extractor: Extractor, splits: list[Split]) -> Measure:
    extract = make_extract(extractor)
    return Measure(extractor, extract, *(real_features(extract, extractor, split) for split in splits))


def _hashes(splits: list[Split], features: dict[str, str]) -> dict[str, Any]:
    """Return the hashes that comparable results share; the number of samples is in the names of the metrics."""
    data = {split.name: {"number": split.num_images, "hash": split.fingerprint} for split in splits}
    return {"data": data, "features": features}


def _load_baseline(options: EvaluationOptions, hashes: dict[str, Any]) -> dict[str, Any]:
    """Return the results of another run to compare with.

    Raises:
      UserError: if there are none, or they come from other data, features or numbers of samples.
    """
    theirs = load_results(Path(options.baseline))
    if not theirs.get("features"):
        raise UserError(f"{options.baseline} has no metrics of samples in features", "baseline")
    check_comparable(hashes | {"num_samples": options.num_samples}, theirs, options.baseline)
    return theirs


def _differences(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    """Return our mean distances minus theirs; negative values are in our favor."""
    distances = [name for name, value in ours.items() if name.startswith(("fd_", "kid_")) and isinstance(value, dict)]
    return {name: ours[name]["mean"] - theirs[name]["mean"] for name in distances if "test_train" not in name}


def save_neighbors(path: Path, samples: np.ndarray, train: np.ndarray, levels: int) -> None:
    """Write a PNG with a sample and its nearest training images, in pixels, per row, which reveals copies.

    Args:
      path: Path of the PNG.
      samples: (n, height, width, channels) pixels.
      train: (m, height, width, channels) pixels.
      levels: Number of pixel levels.
    """
    flat_samples, flat_train = (images.reshape(len(images), -1) for images in (samples, train))
    indices = nearest_neighbors(flat_samples, flat_train, min(NUM_NEIGHBORS, len(train)))
    rows = np.concatenate([samples[:, None], train[indices]], axis=1)
    cells = to_levels(to_unit_range(rows.reshape(-1, *samples.shape[1:]), levels), 256)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_grid(path, cells, columns=rows.shape[1])
