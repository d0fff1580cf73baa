"""The loss of a config: objective, weighting and time sampler, checked against each other."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from score_sde import ddpm
from score_sde.data.augmentation import AUGMENT_DIM
from score_sde.errors import UserError, call, lookup
from score_sde.experiment.flags import build_part, naming_flags, plain
from score_sde.experiment.guides import load_network
from score_sde.experiment.model import exact_denoiser
from score_sde.model import DiffusionModel, NoisyClassifier
from score_sde.randomness import make_example_rngs
from score_sde.score_matching import OBJECTIVES
from score_sde.time_samplers import TIME_SAMPLERS, check_time_sampler
from score_sde.training.loss import (
    CHAIN_OBJECTIVES,
    FLOW_MAP_OBJECTIVES,
    LossFn,
    Teacher,
    classification_loss,
    continuous_loss,
    ddpm_hybrid_loss,
    ddpm_loss,
    flow_map_loss,
)
from score_sde.weightings import WEIGHTINGS

CLASSIFICATION = "classification"


def build_loss(
    config: ConfigDict, model: DiffusionModel | NoisyClassifier, schedule: ddpm.Schedule | None, params: Any
) -> LossFn:
    """Return the per-example loss of config.loss.

    Args:
      config: The config.
      model: Model to train.
      schedule: Discrete-time schedule of the SDE, if it has one.
      params: Shapes of the run's parameters.

    Raises:
      UserError: if a name or argument is unknown, or the parts don't fit each other.
    """
    loss, name, kwargs = config.loss, config.loss.objective, plain(config.loss.objective_kwargs)
    with naming_flags(config, "loss"):
        lookup("objective", dict.fromkeys((*OBJECTIVES, *CHAIN_OBJECTIVES, *FLOW_MAP_OBJECTIVES, CLASSIFICATION)), name)
    defaults = {"sigma_data": config.data.sigma_data} if loss.weighting == "edm" else {}
    weighting = build_part(config, "weighting", WEIGHTINGS, "loss.weighting", "loss.weighting_kwargs", defaults)
    paths = {key: f"loss.{key}" for key in loss} | {"sde": "sde.name", "prediction": "model.prediction"}
    paths |= {key: f"model.kwargs.{key}" for key in ("outputs", "num_classes")}
    paths |= {"allow_off_grid_times": "sampling.allow_off_grid_times", "augment": "data.augment"}
    paths |= {"pretrained": "loss.objective_kwargs.teacher", "family": "loss.objective_kwargs.teacher"}
    sample_times = build_part(config, "time sampler", TIME_SAMPLERS, "loss.time_sampler", "loss.time_sampler_kwargs")
    with naming_flags(config, "loss.objective_kwargs", **paths):
        if loss.uncertainty and name not in ("denoising", "explicit"):
            raise UserError(
                f"uncertainty is the log of a loss, and that of objective {name!r} is not a squared error",
                "uncertainty=False",
                "objective=denoising",
            )
        if name in CHAIN_OBJECTIVES:
            _check_chain(config, model, schedule)
            assert schedule is not None and isinstance(model, DiffusionModel)  # just checked
            function = {"ddpm": ddpm_loss, "ddpm_hybrid": ddpm_hybrid_loss}[name]
            loss_fn = call("objective", name, partial(function, model, schedule, sample_times), kwargs)
        else:
            check_time_sampler(loss.time_sampler, model.sde, loss.t_min)
            if isinstance(model, NoisyClassifier):
                _check_simple(name, loss.weighting)
                loss_fn = call("objective", name, partial(classification_loss, model, sample_times, loss.t_min), kwargs)
            elif name in FLOW_MAP_OBJECTIVES:
                _check_flow_map(name, model)
                _check_simple(name, loss.weighting)
                teacher = kwargs.pop("teacher", "")
                if teacher:
                    trained, trained_params = load_network(config, teacher, "", model, schedule, "teacher", "teacher")
                    if isinstance(trained, NoisyClassifier):
                        raise UserError(f"the teacher {teacher} is a classifier", "teacher")
                    if config.data.augment and getattr(trained.module, "augment_dim", 0) != AUGMENT_DIM:
                        raise UserError(f"the teacher {teacher} takes no augmentation labels", "augment=0", "teacher")
                    kwargs["teacher"] = Teacher(trained, trained_params)
                function = partial(flow_map_loss, model, name, sample_times, loss.t_min)
                loss_fn = call("objective", name, function, kwargs)
            else:
                truth = {"truth": _truth(config, exact_denoiser(config, model.sde))} if name == "explicit" else {}
                objective = call("objective", name, OBJECTIVES[name], truth | kwargs)
                loss_fn = continuous_loss(model, objective, weighting, sample_times, loss.t_min, loss.uncertainty)
    _check_trace(config, model, loss_fn, params)
    return loss_fn


def _check_trace(config: ConfigDict, model: DiffusionModel | NoisyClassifier, loss_fn: LossFn, params: Any) -> None:
    """Raise UserError if the loss can't be computed, as with a word in place of a number, by tracing it."""
    x0 = jax.ShapeDtypeStruct((2, *model.event_shape), jnp.float32)
    draw = make_example_rngs(jax.random.key(0), 0, jnp.arange(2), 2)
    labels = jnp.zeros(2, int) if model.num_classes else None
    try:
        # Any number of levels serves, since only shapes are traced.
        jax.eval_shape(lambda params, x0: loss_fn(params, x0, draw, labels=labels, levels=256), params, x0)
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        given = {key: value for key, value in plain(config.loss).items() if key.endswith("kwargs") and value}
        raise UserError(
            f"the loss can't be computed with {given}: {str(error).split(chr(10))[0]}", "--config.loss"
        ) from error


def _truth(config: ConfigDict, truth: Any) -> Any:
    if truth is None:
        raise UserError(
            "objective 'explicit' compares with the data's true score, which is known of mixture and subspace",
            "objective=denoising",
            "--config.data.name=mixture",
        )
    return truth


def _check_chain(config: ConfigDict, model: Any, schedule: ddpm.Schedule | None) -> None:
    name, loss = config.loss.objective, config.loss
    if schedule is None:
        raise UserError(
            f"objective {name!r} trains at the steps of a chain, and this SDE has none",
            f"--config.sde.name to {' or '.join(ddpm.SCHEDULES)}",
        )
    if model.preconditioning != "none":
        raise UserError(
            f"objective {name!r}: a chain's network takes its timestep n, which preconditioning "
            f"{model.preconditioning!r} replaces by a noise level",
            "--config.model.preconditioning=none",
        )
    _check_simple(name, loss.weighting)
    if loss.time_sampler not in ("uniform", "stratified"):
        raise UserError(
            f"objective {name!r} requires uniform timesteps, got time sampler {loss.time_sampler!r}",
            "time_sampler=uniform",
            "time_sampler=stratified",
        )
    if name == "ddpm_hybrid" and config.data.dequantize:
        raise UserError(
            "ddpm_hybrid: expected pixels on their levels for the decoder term, got dequantized ones",
            "--config.data.dequantize=False",
        )


def _check_flow_map(objective: str, model: DiffusionModel) -> None:
    if not getattr(model.module, "two_times", False):
        raise UserError(
            f"objective {objective!r} trains a flow map, whose network takes two times, and this one takes one",
            "--config.model.kwargs.two_times=True with a U-Net, dit or mlp",
        )


def _check_simple(objective: str, weighting: str) -> None:
    if weighting != "simple":
        raise UserError(
            f"objective {objective!r} has no weighting, so {weighting!r} has no effect",
            "weighting=simple",
            "objective=denoising",
        )
