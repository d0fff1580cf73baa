"""From a config to the parts of a run; all checks happen here, before any compilation.

The only file that reads config.* by name, but for `sampling_settings.py`, which gets config.sampling as plain values.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from score_sde import data, ddpm, models
from score_sde.errors import UserError, build, lookup
from score_sde.experiment.guides import load_guide, num_classes_of
from score_sde.experiment.rules import (
    check_augment,
    check_certify,
    check_evaluation,
    check_likelihood,
    check_number,
    check_reals,
    check_seed,
    check_training,
)
from score_sde.experiment.sampler import Prior, sampler_of, task_of
from score_sde.experiment.tasks import Task
from score_sde.models import pretrained
from score_sde.models.network import network
from score_sde.parameterization import Denoiser, check_parameterization, make_denoiser, show, through
from score_sde.randomness import make_draw
from score_sde.sampling import Sampler, make_label_of
from score_sde.sde import SDE, SDES, log_snr
from score_sde.training.ema import Averages, check_averages, check_choice
from score_sde.training.loss import CHAIN_OBJECTIVES, Subject, make_loss
from score_sde.training.optimizer import make_optimizer


class Schedule(NamedTuple):
    """How long a run trains, and what it does on the way, in steps."""

    num_steps: int
    steps_per_call: int
    log_every: int
    checkpoint_every: int
    keep_checkpoints: int
    keep_every: int
    keep_best: int
    sample_every: int
    snapshot_every: int


class Experiment(NamedTuple):
    """The parts of a run, built and checked."""

    config: dict[str, Any]  # resolved, plain: what config.json holds
    event_shape: tuple[int, ...]  # of one example
    sde: SDE
    denoiser: Callable[..., Denoiser] | None  # (params, keys=None, **told) -> denoiser; told: labels (n,), ...
    logits: Callable | None  # of a classifier, in place of a denoiser: (params, x, t) -> (n, num_classes)
    trainable: bool  # False for an exact network
    init_params: Callable[[], Any]  # () -> params, a function of the seed
    pretrained: bool  # init_params gives weights that were loaded
    num_classes: int  # of the labels that the network is told; 0: none
    label_of: Callable[[jax.Array], jax.Array | None]  # indices of samples -> their classes
    loss_fn: Callable[..., jax.Array]  # (params, x0 in [-1, 1], draw, **told) -> (n,)
    optimizer: optax.GradientTransformation
    averages: Averages
    step_options: dict[str, Any]  # of the train step: dequantized, labelled, augment, accumulate, skip_nonfinite
    strategy: str  # how it lies on the devices
    training_key: jax.Array
    batch_size: int  # global
    schedule: Schedule
    source: Callable[[str], data.Source]  # split -> images
    batches: Callable[..., Iterator]  # (source, first step, rows=None) -> batches of a call
    sampler: Sampler | None  # None of a classifier
    class_of: Callable[[jax.Array], jax.Array | None]  # indices of samples -> the classes that they are asked for
    task: Task | None  # an inverse problem that the sampler answers
    num_samples: int  # in a grid
    evaluation: dict[str, Any]
    likelihood: dict[str, Any]
    certify: dict[str, Any]
    truth: Denoiser | None  # the exact denoiser, of data whose density is known
    chain: ddpm.Schedule | None  # where the process is a chain's
    knows_the_chain_alone: bool  # the network was trained at a chain's steps and may not be asked between them


def make_experiment(config: ConfigDict, devices: list[jax.Device]) -> Experiment:
    """Builds and checks every part of a run.

    Args:
      config: what a file in configs/ returns, with the overrides of the command line.
      devices: the devices that it will run on.

    Raises:
      UserError: something in the config is unknown or doesn't fit; the message says what, and where to change it.
    """
    _check_numbers(config)
    config, loaded = _adopt(config)
    schedule = _make_schedule(config)
    training = config.training
    averages = check_averages(Averages(training.ema_decay, tuple(training.ema_decays), tuple(training.ema_lengths)))
    check_choice(averages, config.sampling.ema_decay, config.sampling.ema_length)
    likelihood, certify = _plain(config.likelihood), _plain(config.certify)
    check_certify(certify)
    sde, chain = _make_sde(config.sde.name, _plain(config.sde.kwargs))
    check_likelihood(likelihood, sde.t_max)
    model = models.create(config.model.name, **_plain(config.model.kwargs))
    if getattr(model, "scale_by_sigma", False) and config.model.preconditioning != "log_sigma":
        raise UserError(
            f"model {config.model.name!r} divides its output by exp(noise level), which is sigma under "
            f"--config.model.preconditioning=log_sigma (with --config.model.prediction=score) alone, not under "
            f"{config.model.preconditioning!r}"
        )
    lookup("data set", data.SOURCES, config.data.name, "--config.data.name")
    event_shape = _event_shape(config)
    init_key, training_key, sampling_key = jax.random.split(jax.random.key(config.seed), 3)
    example, level = jnp.zeros((1, *event_shape)), jnp.zeros((1,))
    variables, output_shape = _trace_model(config, model, example, level)
    apply = partial(network, model)
    num_classes = getattr(model, "num_classes", 0)
    check_augment(config.data.augment, getattr(model, "augment_dim", 0), event_shape)
    classifies = _classifies(config, model)
    guide = load_guide(config.sampling.guide, config.sampling.guide_family, _make_sde, sde, event_shape)
    objectives = config.loss.objective, guide.objective if guide else ""
    discrete_time_only = not config.sampling.off_grid and any(name in CHAIN_OBJECTIVES for name in objectives)
    task = task_of(_plain(config.sampling), event_shape)
    class_of = make_label_of(num_classes_of(num_classes, guide), config.sampling.label, in_turn=task is None)
    if classifies:  # it predicts nothing that alpha = 0 could make infinite, but may be shown log(sigma / alpha)
        decided = config.model.preconditioning not in ("none", "log_sigma")
        check_parameterization(sde, "epsilon" if decided else "v", config.model.preconditioning)
    denoiser = None if classifies else _make_denoiser(config, sde, apply)
    _check_outputs(config, output_shape, event_shape, classifies)
    truth = _truth(config, sde)
    subject = Subject(
        sde,
        chain,
        denoiser,
        apply,
        config.model.preconditioning,
        event_shape,
        config.data.sigma_data,
        truth,
    )
    loss_fn = make_loss(subject, **_plain(config.loss))
    _check_loss(config, loss_fn, variables.get("params", {}), event_shape, classifies)
    sampler = None
    if denoiser is not None:
        prior = Prior(
            sde,
            chain if discrete_time_only else None,
            denoiser,
            num_classes,
            getattr(model, "label_dropout", 0.0) > 0,
            guide,
            event_shape,
            class_of,
            partial(_source, config, "test"),
        )
        sampler = sampler_of(_plain(config.sampling), prior, task, sampling_key, devices)
    return Experiment(
        config=_plain(config),
        event_shape=event_shape,
        sde=sde,
        denoiser=denoiser,
        logits=partial(_logits, config, sde, apply) if classifies else None,
        trainable=bool(jax.tree.leaves(variables)),
        init_params=jax.jit(lambda: model.init(init_key, example, level).get("params", {}))
        if loaded is None
        else lambda: jax.tree.map(jnp.asarray, loaded),
        pretrained=loaded is not None,
        num_classes=num_classes,
        label_of=class_of if num_classes else lambda indices: None,
        loss_fn=loss_fn,
        optimizer=make_optimizer(**config.optimizer),
        averages=averages,
        step_options={
            "dequantized": config.data.dequantize,
            "labelled": bool(num_classes),
            "augment": {"probability": config.data.augment} if config.data.augment else None,
            "accumulate": config.training.accumulate,
            "skip_nonfinite": config.training.on_nonfinite == "skip",
        },
        strategy=config.training.strategy,
        training_key=training_key,
        batch_size=config.training.batch_size,
        schedule=schedule,
        source=partial(_source, config),
        batches=partial(_batches, config),
        sampler=sampler,
        class_of=class_of,
        task=task,
        num_samples=config.sampling.num_samples,
        evaluation=_plain(config.evaluation),
        likelihood=likelihood,
        certify=certify,
        truth=truth,
        chain=chain,
        knows_the_chain_alone=discrete_time_only,
    )


def _adopt(config: ConfigDict) -> tuple[ConfigDict, Any]:
    """The config with what pretrained weights say of themselves in it, and their parameters, if there are any.

    Raises:
      UserError: the weights can't be loaded, or the data have another shape than the network was made for.
    """
    if not config.model.pretrained:
        return config, None
    kept = {key: value for key, value in _plain(config.model.kwargs).items() if key in pretrained.FREE}
    found = pretrained.adopt(config.model.pretrained, config.model.family, kept)
    shape = _event_shape(config)
    if shape != found.event_shape:
        raise UserError(
            f"{config.model.pretrained} is a network for data of the shape {found.event_shape}, these are {shape} (set "
            "--config.data.image_size, --config.data.channels, or another --config)"
        )
    adopted = ConfigDict(config.to_dict())
    adopted.sde = ConfigDict({"name": found.target.sde, "kwargs": dict(found.target.sde_kwargs)})
    adopted.model.name, adopted.model.kwargs = found.name, ConfigDict(found.kwargs)
    adopted.model.prediction, adopted.model.preconditioning = found.target.prediction, found.target.preconditioning
    if found.target.sigma_data is not None:
        adopted.data.sigma_data = found.target.sigma_data
    if found.objective in CHAIN_OBJECTIVES:  # the network knows a chain's steps only
        adopted.loss.objective = found.objective
    return adopted, found.params


def _source(config: ConfigDict, split: str) -> data.Source:
    shown = config.data
    return data.load(shown.name, split, shown.image_size, shown.channels, shown.path, _plain(shown.kwargs), shown.crop)


def _batches(config: ConfigDict, source: data.Source, first_step: int, rows: slice | None = None) -> Iterator:
    return data.batches(
        source,
        config.seed,
        config.training.batch_size,
        config.training.steps_per_call,
        first_step,
        config.data.random_flip,
        config.data.num_threads,
        config.data.num_workers,
        rows,
    )


def _event_shape(config: ConfigDict) -> tuple[int, ...]:
    size, channels = config.data.image_size, config.data.channels
    return (size, size, channels) if size else (channels,)


def _plain(config: ConfigDict) -> dict[str, Any]:
    return config.to_dict() if isinstance(config, ConfigDict) else config


def _check_numbers(config: ConfigDict) -> None:
    check_evaluation(_plain(config.evaluation))
    for name in ("num_samples", "batch_size", "completions"):
        check_number("sampling", name, config.sampling[name])
    check_number("sampling", "num_steps", config.sampling.num_steps, most=10**6)
    check_number("data", "image_size", config.data.image_size, least=0, most=2**16)
    check_number("data", "channels", config.data.channels, most=2**16)
    for group, name in (("training", "ema_decays"), ("training", "ema_lengths"), ("sampling", "guidance_interval")):
        check_reals(group, name, config[group][name])
    check_number("data", "num_threads", config.data.num_threads)
    check_number("data", "num_workers", config.data.num_workers, least=0)
    check_seed(config.seed, "--config.seed")
    if config.data.random_flip and config.data.image_size == 0:
        raise UserError("only images can be flipped (set --config.data.random_flip=False)")
    if config.data.sigma_data <= 0:
        raise UserError(f"need sigma_data > 0, got {config.data.sigma_data} (set --config.data.sigma_data)")


def _make_sde(name: str, kwargs: dict[str, Any]) -> tuple[SDE, ddpm.Schedule | None]:
    """The SDE, and the chain that it passes through if it is one.

    Raises:
      UserError: the SDE is unknown, or its data are still seen at t_max, so that N(0, sigma(t_max)^2) is not its prior.
    """
    known: dict[str, Any] = {**SDES, **ddpm.SCHEDULES}
    made = build("SDE", known, name, kwargs, "--config.sde")
    chain = made if isinstance(made, ddpm.Schedule) else None
    sde = made if chain is None else ddpm.to_sde(chain)
    terminal = float(log_snr(sde, sde.t_max))
    if terminal > -3.0:
        raise UserError(
            f"{name}: the prior is N(0, sigma(t_max)^2), but at t_max = {sde.t_max:g} the data are still "
            f"seen: log-SNR {terminal:.2f}, above -3 (set --config.sde.kwargs so that the noise grows further)"
        )
    return sde, chain


def _trace_model(config: ConfigDict, model: nn.Module, x: jax.Array, level: jax.Array) -> tuple[Any, tuple]:
    """The shapes of the variables, and the output's, without memory or compilation; refuses what can't be built."""
    try:
        output, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), x, level)
    except UserError:
        raise
    except (TypeError, ValueError, ArithmeticError, IndexError) as error:
        words = str(error).split("\n")[0]
        kwargs = _plain(config.model.kwargs)
        raise UserError(
            f"model {config.model.name!r} can't be built with {kwargs} on data of the shape {x.shape[1:]}: {words} "
            "(set --config.model.kwargs)"
        ) from error
    return variables, output.shape[1:]


def _classifies(config: ConfigDict, model: nn.Module) -> bool:
    """Whether this trains a classifier.

    Raises:
      UserError: a classifier and another objective, or the other way round.
    """
    classifier = isinstance(model, models.Classifier)
    if classifier != (config.loss.objective == "classification"):
        raise UserError(
            f"model {config.model.name!r} and objective {config.loss.objective!r}: a classifier, and it alone, is "
            "trained by classification (set --config.model.name=classifier and --config.loss.objective=classification, "
            "or neither)"
        )
    return classifier


def _logits(config: ConfigDict, sde: SDE, apply: Callable, params: Any, x: jax.Array, t: jax.Array) -> jax.Array:
    return show(apply(params), sde, config.model.preconditioning, config.data.sigma_data)(x, t)


def _check_outputs(config: ConfigDict, shape: tuple[int, ...], event_shape: tuple[int, ...], classifies: bool) -> None:
    """A learned variance takes two outputs of the data's shape, a classifier a number a class; everything else one."""
    if classifies:
        return
    outputs = 2 if config.loss.objective == "ddpm_hybrid" else 1
    if shape != (*event_shape[:-1], outputs * event_shape[-1]):
        raise UserError(
            f"objective {config.loss.objective!r} takes {outputs} output(s) of the data's shape {event_shape}, but the "
            f"model's has the shape {shape} (set --config.model.kwargs.outputs={outputs})"
        )


def _check_loss(
    config: ConfigDict, loss_fn: Callable, params: Any, event_shape: tuple[int, ...], classifies: bool
) -> None:
    """Refuses a loss that can't be computed, as with a word where a number belongs, by tracing it."""
    x0 = jax.ShapeDtypeStruct((2, *event_shape), jnp.float32)
    draw = make_draw(jax.random.key(0), 0, jnp.arange(2), 2)
    told: dict[str, Any] = {"labels": jnp.zeros(2, int)} if classifies else {}
    if config.loss.objective == "ddpm_hybrid":
        told |= {"levels": 256}  # any number serves a check of shapes; the data need not be here yet
    try:
        jax.eval_shape(lambda params, x0: loss_fn(params, x0, draw, **told), params, x0)
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        given = {key: value for key, value in _plain(config.loss).items() if key.endswith("kwargs") and value}
        raise UserError(
            f"the loss can't be computed with {given}: {str(error).split(chr(10))[0]} (set --config.loss)"
        ) from error


def _make_denoiser(config: ConfigDict, sde: SDE, network: Callable) -> Callable[..., Denoiser]:
    """(params, keys=None, **told) -> denoiser; with keys, one an example, in training mode."""
    prediction, preconditioning = config.model.prediction, config.model.preconditioning
    if config.model.name == "mixture":  # is shown what it needs, and hands on what `prediction` says
        if preconditioning != "none":
            raise UserError(
                f"an exact network is shown what it needs: preconditioning {preconditioning!r} would not be read (set "
                "--config.model.preconditioning=none)"
            )
        check_parameterization(sde, prediction, "none")
        return lambda params, keys=None, **told: through(
            make_denoiser(network(params, keys, **told), sde, preconditioning="log_snr"), sde, prediction
        )
    check_parameterization(sde, prediction, preconditioning)

    options = {"sigma_data": config.data.sigma_data, "learned_variance": config.loss.objective == "ddpm_hybrid"}
    return lambda params, keys=None, **told: make_denoiser(
        network(params, keys, **told), sde, prediction, preconditioning, **options
    )


def _truth(config: ConfigDict, sde: SDE) -> Denoiser | None:
    """The exact denoiser of data whose density is known."""
    if config.data.name != "mixture":
        return None
    parts = {key: value for key, value in _plain(config.data.kwargs).items() if key in ("means", "stds", "weights")}
    exact = models.create("mixture", **parts)
    return make_denoiser(lambda x, level: exact.apply({}, x, level), sde, preconditioning="log_snr")


def _make_schedule(config: ConfigDict) -> Schedule:
    check_training(_plain(config.training))
    return Schedule(**{name: config.training[name] for name in Schedule._fields})
