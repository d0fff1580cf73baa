"""Guidance of samples: classifier-free, by a classifier, or by a weaker network from exported weights."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from score_sde import ddpm, models
from score_sde.errors import UserError
from score_sde.experiment.flags import naming_flags
from score_sde.experiment.model import build_sde, exported
from score_sde.guidance import autoguided, classifier_free, classifier_guided
from score_sde.model import DiffusionModel, NoisyClassifier
from score_sde.models import pretrained
from score_sde.sampling import Guidance
from score_sde.sde import SDE, log_snr, t_from_log_snr
from score_sde.training.loss import CHAIN_OBJECTIVES

Guide = DiffusionModel | NoisyClassifier | None


def load_guide(config: ConfigDict, model: DiffusionModel, schedule: ddpm.Schedule | None) -> tuple[Guide, Any]:
    """Return the guide of config.sampling and its parameters.

    Args:
      config: The config. Its guide is a file of weights for `pretrained.load_model`, the folder of a run that has
        exported its weights, or "" for none.
      model: Model to guide.
      schedule: Discrete-time schedule of the SDE, if it has one.

    Raises:
      UserError: if there are no such weights, or if they are for another process or shape.
    """
    path, family = config.sampling.guidance_weights, config.sampling.guidance_family
    if not path:
        if family:
            raise UserError("there is no guide, so guidance_family has no effect", "--config.sampling.guidance_weights")
        return None, None
    with naming_flags(
        config,
        "sampling",
        path="sampling.guidance_weights",
        pretrained="sampling.guidance_weights",
        family="sampling.guidance_family",
    ):
        return load_network(config, path, family, model, schedule, "guide", "guidance_weights")


def load_network(
    config: ConfigDict,
    path: str,
    family: str,
    model: DiffusionModel,
    schedule: ddpm.Schedule | None,
    role: str,
    argument: str,
) -> tuple[DiffusionModel | NoisyClassifier, Any]:
    """Return a trained network for the process and data of a model, and its parameters.

    Args:
      config: The config.
      path: File of weights for `pretrained.load_model`, or folder of a run that has exported its weights.
      family: Family of the weights; "" reads it from the file.
      model: Model with the process and the data.
      schedule: Discrete-time schedule of the SDE, if it has one.
      role: Name of the network in messages.
      argument: Name of the argument that holds the path.

    Raises:
      UserError: if there are no such weights, or if they are for another process or shape.
    """
    found = pretrained.load_model(exported(path, argument), family)
    target = found.target
    if found.event_shape != model.event_shape:
        raise UserError(
            f"the {role} {path} was trained on data of the shape {found.event_shape}, these are {model.event_shape}",
            argument,
        )
    sde, _ = build_sde(config, target.sde, target.sde_kwargs)
    if not _same_process(sde, model.sde):
        raise UserError(
            f"the {role} {path} was trained on another SDE with other noise levels: {target.sde} "
            f"with kwargs {target.sde_kwargs or {}}",
            argument,
            "--config.sde",
        )
    module = models.create(found.name, **found.kwargs)
    sigma_data = 0.5 if target.sigma_data is None else target.sigma_data
    if isinstance(module, models.Classifier):
        classifier = NoisyClassifier(module, model.sde, model.event_shape, target.preconditioning, sigma_data)
        return classifier, found.params
    discrete = found.objective in CHAIN_OBJECTIVES and not config.sampling.allow_off_grid_times
    trained = DiffusionModel(
        module,
        model.sde,
        model.event_shape,
        target.prediction,
        target.preconditioning,
        sigma_data,
        timesteps=schedule if discrete else None,
        learned_variance=getattr(module, "outputs", 1) == 2 and not getattr(module, "two_times", False),
    )
    return trained, found.params


def build_guidance(config: ConfigDict, model: DiffusionModel, guide: Guide, unlabeled: bool) -> Guidance:
    """Return the guidance of config.sampling.

    Args:
      config: The config.
      model: Model to guide.
      guide: Classifier, weaker network or None.
      unlabeled: Whether samples have no class, although the network or the guide has classes.

    Raises:
      UserError: if the scale is not 1 but there is neither a conditional network nor a guide, or if an option has no
        effect for this kind of guidance.
    """
    options = config.sampling
    has_classes = model.num_classes or (guide is not None and guide.num_classes)
    _check_effect(config, model, guide, bool(unlabeled and has_classes))
    interval = _interval_in_t(options.guidance_interval, model.sde)
    guidance = Guidance(options.guidance_scale, interval, options.guidance_rescale, guide)
    kind = {"interval": "sampling.guidance_interval", "rescale": "sampling.guidance_rescale"}
    with naming_flags(config, "sampling", scale="sampling.guidance_scale", **kind):
        bounds: dict[str, Any] = {"interval": interval, "rescale": guidance.rescale, "sde": model.sde}
        if isinstance(guide, NoisyClassifier):
            classifier_guided(_placeholder, _placeholder, model.sde, guidance.scale)
        elif guide is not None:
            autoguided(_placeholder, _placeholder, guidance.scale, **bounds)
        elif model.num_classes:
            classifier_free(_placeholder, _placeholder, guidance.scale, **bounds)
    return guidance


def _check_effect(config: ConfigDict, model: DiffusionModel, guide: Guide, unlabeled_task: bool) -> None:
    options = config.sampling
    scale, interval, rescale = options.guidance_scale, tuple(options.guidance_interval), options.guidance_rescale
    by_classifier = isinstance(guide, NoisyClassifier)
    if guide is None and not model.num_classes and (scale, interval, rescale) != (1.0, (), 0.0):
        raise UserError(
            f"guidance_scale={scale}, guidance_interval={interval} and guidance_rescale={rescale} have no effect: the "
            "network is unconditional and there is no guide",
            "--config.model.kwargs.num_classes and label_dropout in training",
            "--config.sampling.guidance_weights",
        )
    unconditional = unlabeled_task or (guide is None and scale != 1)
    if model.num_classes and unconditional and not model.has_null_label:
        option = "a task without --config.sampling.label" if unlabeled_task else f"guidance_scale={scale}"
        raise UserError(
            f"{option} requires unconditional predictions, but the network was trained without label dropout",
            "--config.model.kwargs.label_dropout=0.1 in training",
        )
    if unlabeled_task and (by_classifier or (guide is None and scale != 1)):
        raise UserError("guidance of a task requires a target class", "--config.sampling.label")
    if scale == 1 and not by_classifier and (interval or rescale or guide is not None):
        raise UserError(
            "guidance_scale=1 disables guidance, so guidance_interval, guidance_rescale and a weaker network have no "
            "effect",
            "--config.sampling.guidance_scale",
        )
    if by_classifier and (interval or rescale):
        raise UserError(
            "guidance_interval and guidance_rescale have no effect on guidance by a classifier",
            "--config.sampling.guidance_scale alone",
        )


def _interval_in_t(interval: tuple[float, ...], sde: SDE) -> tuple[float, float] | None:
    """Return the guidance interval (low, high), given in sigma / alpha, in t; None for everywhere."""
    flag = "--config.sampling.guidance_interval"
    if not interval:
        return None
    if len(interval) != 2 or not 0 <= interval[0] < interval[1]:
        raise UserError(f"guidance_interval is (low, high) of sigma / alpha with 0 <= low < high, got {interval}", flag)
    first, last = float(log_snr(sde, sde.t_min)), float(log_snr(sde, sde.t_max))
    ends = []
    for level in interval:
        snr = float("inf") if level == 0 else -2 * np.log(level)
        beyond = 0.0 if snr >= first else sde.t_max if snr <= last else None
        ends.append(float(t_from_log_snr(sde, jnp.float32(snr))) if beyond is None else beyond)
    if ends[0] >= ends[1]:
        raise UserError(
            f"guidance_interval {interval} is outside of this process, whose sigma / alpha goes from "
            f"{np.exp(-0.5 * first):.3g} to {np.exp(-0.5 * last):.3g}",
            flag,
        )
    return ends[0], ends[1]


def _same_process(first: SDE, second: SDE) -> bool:
    """Return whether two SDEs have the same alpha and sigma at every time."""
    if not np.isclose(first.t_max, second.t_max):
        return False
    t = jnp.linspace(first.t_min, first.t_max, 16)
    pairs = ((first.alpha(t), second.alpha(t)), (first.sigma(t), second.sigma(t)))
    return all(np.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in pairs)


def _placeholder(x, t):
    raise AssertionError("placeholder denoiser must not be called")
