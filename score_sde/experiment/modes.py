"""The modes of the command line: each calls the library with the parts of an experiment and returns a text."""

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from score_sde.errors import UserError, not_none
from score_sde.experiment import Experiment
from score_sde.experiment.flags import naming_flags
from score_sde.model import DiffusionModel, NoisyClassifier, check_continuous_time
from score_sde.runtime import distributed
from score_sde.sampling import mean_effective_sample_size


def train(experiment: Experiment, workdir: Path) -> str:
    """Train, or resume, and plot samples meanwhile."""
    from score_sde.training.loop import train

    return train(
        experiment.training,
        experiment.load,
        experiment.batches,
        make_pictures(experiment, workdir),
        experiment.config,
        workdir,
        distributed.devices(),
    )


def sample(experiment: Experiment, workdir: Path) -> str:
    """Sample, and plot the samples and their trajectories."""
    from score_sde.evaluation.plots import plot_trajectory, sample_and_plot, sample_path

    params, step = _load_params(experiment, workdir)
    sampler, model = not_none(experiment.sampler), _diffusion_model(experiment)
    path, strip = (sample_path(workdir, step, sampler, suffix) for suffix in ("", "_denoising"))
    size = sample_and_plot(path, sampler, model, params, partial(experiment.load, "train"))
    plotted = plot_trajectory(strip, sampler, model, params)
    paths = f"; their trajectories are in {strip}" if plotted else ""
    weighted = "" if size is None else f"; effective sample size {size:.1f} of {sampler.particles} particles"
    return f"{sampler.num_samples} samples of step {step} are in {path}{paths}{weighted}"


def evaluate(experiment: Experiment, workdir: Path) -> str:
    """Evaluate the samples of a run; or its score, its inverse problem, or its classifier."""
    from score_sde.evaluation.evaluate import checkpoints_to_evaluate, evaluate
    from score_sde.evaluation.generalization import has_losses
    from score_sde.evaluation.results import check_results_file
    from score_sde.training.load import default_spec

    check_results_file(workdir)
    config, ema, options = experiment.config, experiment.training.ema, experiment.evaluation
    default = default_spec(config, ema)
    if isinstance(experiment.model, NoisyClassifier):
        results = _accuracy(experiment, workdir)
    elif options.score_diagnostics:
        results = _score_diagnostics(experiment, workdir)
    elif not_none(experiment.sampler).task is not None:
        results = _restorations(experiment, workdir)
    else:
        results = evaluate(
            not_none(experiment.sampler),
            experiment.load,
            partial(_load_params, experiment, workdir),
            checkpoints_to_evaluate(workdir, options, default, ema),
            options,
            config,
            workdir,
            _losses(experiment) if has_losses(experiment.model) else None,
        )
    return f"{json.dumps(results, indent=2)}\nwritten to {workdir / 'evaluation.json'}"


def likelihood(experiment: Experiment, workdir: Path) -> str:
    """Measure the likelihood of the test split."""
    from score_sde.evaluation.likelihood import likelihood, text
    from score_sde.evaluation.results import check_results_file

    check_results_file(workdir)
    params, step = _load_params(experiment, workdir)
    options, seed = experiment.likelihood, experiment.config["seed"]
    with _exact_products():
        results = likelihood(_diffusion_model(experiment), params, experiment.load, options, seed, experiment.schedule)
    results = _save(experiment, workdir, "likelihood", step, results)
    return f"{text(results)}\nwritten to {workdir / 'evaluation.json'}"


def certify(experiment: Experiment, workdir: Path) -> str:
    """Measure the error of every solver on this network."""
    from score_sde.evaluation.results import check_results_file
    from score_sde.evaluation.solver_benchmark import certify

    check_results_file(workdir)
    check_continuous_time(_diffusion_model(experiment), "certify")  # before the checkpoint is read
    params, step = _load_params(experiment, workdir)
    labels = not_none(experiment.sampler).labels
    plot = workdir / "certify.png"
    with _exact_products():
        results, text = certify(
            _diffusion_model(experiment), params, experiment.certify, experiment.config["seed"], plot, labels
        )
    _save(experiment, workdir, "certify", step, results)
    return f"{text}\nthe plot is {plot}"


def _exact_products() -> AbstractContextManager:
    """Compute products of float32 in float32, unless JAX_DEFAULT_MATMUL_PRECISION chooses another precision.

    By default GPUs round the factors to TF32, with 10 bits of mantissa, and TPUs to bfloat16, with 7. This error
    exceeds the tolerance of an adaptive solver, which then takes needless steps.
    """
    chosen = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    return jax.default_matmul_precision(chosen or "highest")


def export(experiment: Experiment, workdir: Path) -> str:
    """Write the weights of a run as safetensors."""
    from score_sde.training.load import export

    path = export(experiment.training, experiment.config, workdir)
    return f"the EMA is in {path}; --config.model.pretrained loads it"


MODES: dict[str, Callable[[Experiment, Path], str]] = {
    "train": train,
    "sample": sample,
    "evaluate": evaluate,
    "likelihood": likelihood,
    "certify": certify,
    "export": export,
}

# Groups of the config in which the arguments that a mode's errors name are looked for, in order.
GROUPS = {
    "train": ("training", "optimizer", "data", "loss", "sampling", "evaluation"),
    "sample": ("sampling",),
    "evaluate": ("evaluation", "sampling"),
    "likelihood": ("likelihood",),
    "certify": ("certify",),
}


def run_mode(mode: Callable[[Experiment, Path], str], name: str, experiment: Experiment, workdir: Path) -> str:
    """Return the text of a mode; its errors name flags instead of arguments."""
    classifies = isinstance(experiment.model, NoisyClassifier)
    if classifies and name in ("sample", "likelihood", "certify"):
        raise UserError(
            f"a classifier has nothing to {name}: --mode=evaluate measures its accuracy, --mode=export writes its "
            "weights, for --config.sampling.guidance_weights of another run"
        )
    network = {"num_classes": "model.kwargs.num_classes", "outputs": "model.kwargs.outputs", "sde": "sde.name"}
    groups = (*GROUPS.get(name, ()), "data", "sampling", "training", "likelihood")
    with naming_flags(ConfigDict(experiment.config), *groups, **network):
        return mode(experiment, workdir)


def _diffusion_model(experiment: Experiment) -> DiffusionModel:
    assert isinstance(experiment.model, DiffusionModel)  # a classifier has its own modes
    return experiment.model


def make_pictures(experiment: Experiment, workdir: Path) -> Any:
    """Return the callback of training that draws samples, or plots the accuracy of a classifier."""
    from score_sde.evaluation.generalization import has_losses, record_losses
    from score_sde.evaluation.plots import measure_and_plot, sample_and_plot, sample_path
    from score_sde.training.catch_up import Pictures

    path = partial(sample_path, workdir, sampler=experiment.sampler)
    model, sampler = experiment.model, experiment.sampler
    measures = experiment.evaluation.losses_in_training
    if measures and not has_losses(model):
        raise UserError(
            "losses_in_training: expected a network of continuous time, got a classifier or one of discrete time",
            "losses_in_training=False",
        )
    losses = cache(partial(_losses, experiment))

    def draw(params, step, interrupted):
        if measures:
            measured = losses()(params)
            if distributed.is_main_process():
                record_losses(workdir, step, measured)
        if isinstance(model, NoisyClassifier):
            measure_and_plot(path(step), model, params, experiment.load("test"), **_accuracy_options(experiment))
        else:
            train = partial(experiment.load, "train")
            sample_and_plot(path(step), not_none(sampler), model, params, train, interrupted)

    return Pictures(path, draw)


def _load_params(experiment: Experiment, workdir: Path, spec: Any = None) -> tuple[Any, int]:
    from score_sde.training.load import load_params

    return load_params(experiment.training, experiment.config, workdir, spec)


def _save(experiment: Experiment, workdir: Path, section: str, step: int, results: Mapping[str, Any]) -> dict[str, Any]:
    """Write results under a section of evaluation.json, with the checkpoint they belong to."""
    from score_sde.evaluation.results import save_results
    from score_sde.training.load import default_spec

    record = default_spec(experiment.config, experiment.training.ema).record(step, experiment.config["seed"])
    results = {**record, **results}
    save_results(workdir, {section: results})
    return results


def _losses(experiment: Experiment) -> Callable[[Any], dict[str, Any]]:
    """Return the function from parameters to the losses on both splits."""
    from score_sde.evaluation.generalization import make_losses

    return make_losses(
        _diffusion_model(experiment),
        experiment.load,
        experiment.evaluation,
        experiment.config["seed"],
        experiment.training.dequantize,
        experiment.config["data"]["random_flip"],
    )


def _accuracy_options(experiment: Experiment) -> dict[str, int]:
    return {
        "seed": experiment.config["seed"],
        "batch_size": experiment.training.batch_size,
        "num_images": experiment.evaluation.num_real,
    }


def _accuracy(experiment: Experiment, workdir: Path) -> dict[str, Any]:
    from score_sde.evaluation.accuracy import accuracy

    params, step = _load_params(experiment, workdir)
    assert isinstance(experiment.model, NoisyClassifier)
    rows = accuracy(experiment.model, params, experiment.load("test"), **_accuracy_options(experiment))
    return _save(experiment, workdir, "accuracy", step, {"levels": rows})


def _score_diagnostics(experiment: Experiment, workdir: Path) -> dict[str, Any]:
    from score_sde.evaluation.score_diagnostics import score_diagnostics

    check_continuous_time(_diffusion_model(experiment), "health")
    params, step = _load_params(experiment, workdir)
    results = score_diagnostics(
        _diffusion_model(experiment),
        params,
        experiment.load,
        experiment.evaluation,
        experiment.config["seed"],
        experiment.training.dequantize,
        experiment.config["data"]["random_flip"],
        workdir,
        experiment.exact_denoiser,
    )
    return _save(experiment, workdir, "health", step, results)


def _restorations(experiment: Experiment, workdir: Path) -> dict[str, Any]:
    import numpy as np

    from score_sde.evaluation.inverse_problems import group_by_measurement, restoration_metrics

    params, step = _load_params(experiment, workdir)
    sampler = not_none(experiment.sampler)
    batches = list(sampler.batches(params))
    samples = np.concatenate([batch.x for batch in batches])
    task = not_none(sampler.task)
    num_real = experiment.evaluation.num_real
    metrics = restoration_metrics(task, group_by_measurement(sampler, samples), experiment.load("train"), num_real)
    size = mean_effective_sample_size(batches)
    weighted = {} if size is None else {"effective_sample_size": size}
    results = {"sampling": experiment.config["sampling"]} | metrics | weighted
    return _save(experiment, workdir, f"restore_{task.name}", step, results)
