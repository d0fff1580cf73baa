"""The SDE and the diffusion model of a config, or of pretrained weights."""

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from score_sde import data, ddpm, models
from score_sde.analytic import subspace_denoiser
from score_sde.data.toys import random_basis
from score_sde.errors import UserError, build, lookup
from score_sde.experiment import rules
from score_sde.experiment.data import event_shape
from score_sde.experiment.flags import build_part, naming_flags, plain
from score_sde.model import DiffusionModel, NoisyClassifier
from score_sde.models import pretrained
from score_sde.parameterization import Denoiser
from score_sde.sde import SDE, SDES, log_snr
from score_sde.training.loss import CHAIN_OBJECTIVES
from score_sde.training.setup import MAX_TERMINAL_LOG_SNR


def build_sde(config: ConfigDict, name: str, kwargs: dict[str, Any]) -> tuple[SDE, ddpm.Schedule | None]:
    """Return an SDE, and the discrete-time schedule it passes through if it is named by one.

    Raises:
      UserError: if the SDE is unknown, or its marginal at t_max is not close to the prior N(0, sigma(t_max)^2 I).
    """
    with naming_flags(config, "sde.kwargs", SDE="sde.name"):
        table: dict[str, Any] = {**SDES, **ddpm.SCHEDULES}
        made = build("SDE", table, name, kwargs)
        schedule = made if isinstance(made, ddpm.Schedule) else None
        sde = made if schedule is None else ddpm.to_sde(schedule)
        check_prior(sde, sde.t_max, name)
    return sde, schedule


def check_prior(sde: SDE, t_max: float, name: str, *change: str) -> None:
    """Raise UserError if the prior N(0, sigma(t_max)^2) is far from the marginal at t_max."""
    terminal = float(log_snr(sde, t_max))
    if terminal > MAX_TERMINAL_LOG_SNR:
        raise UserError(
            f"{name}: the prior is N(0, sigma(t_max)^2), but the marginal at t_max = {t_max:g} differs: "
            f"expected a log-SNR of at most {MAX_TERMINAL_LOG_SNR:g}, got {terminal:.2f}",
            *change,
        )


def build_model(
    config: ConfigDict, sde: SDE, schedule: ddpm.Schedule | None
) -> tuple[DiffusionModel | NoisyClassifier, Any]:
    """Return the model of config.model, and the shapes of its variables.

    Raises:
      UserError: if the network can't be built on this data, or an option doesn't fit it.
    """
    module = build_part(config, "model", models.MODELS, "model.name", "model.kwargs")
    rules.check_scaling(config, module)
    with naming_flags(config, **{"data set": "data.name"}):
        lookup("data set", data.DATASETS, config.data.name)
    shape = event_shape(config)
    variables, output_shape = _trace(config, module, shape)
    rules.check_augment(config, module, shape)
    rules.check_objective(config, module)
    model: DiffusionModel | NoisyClassifier
    preconditioning, sigma_data = config.model.preconditioning, config.data.sigma_data
    if isinstance(module, models.Classifier):
        model = NoisyClassifier(module, sde, shape, preconditioning, sigma_data)
    else:
        discrete = config.loss.objective in CHAIN_OBJECTIVES and not config.sampling.allow_off_grid_times
        model = DiffusionModel(
            module,
            sde,
            shape,
            config.model.prediction,
            preconditioning,
            sigma_data,
            timesteps=schedule if discrete else None,
            learned_variance=config.loss.objective == "ddpm_hybrid",
        )
        rules.check_exact(config, model)
        rules.check_outputs(config, output_shape, model)
    with naming_flags(config, "model", "data", sde="sde.name"):
        model.check()
    return model, variables


def exact_denoiser(config: ConfigDict, sde: SDE) -> Denoiser | None:
    """Return the exact denoiser of the data sets "mixture" and "subspace", None for others."""
    if config.data.name not in ("mixture", "subspace"):
        return None
    parts = {key: value for key, value in plain(config.data.kwargs).items() if key in ("means", "stds", "weights")}
    shape = event_shape(config)
    if config.data.name == "mixture":
        return DiffusionModel(models.create("mixture", **parts), sde, shape, "v").denoiser({})
    if not parts.get("means"):
        raise UserError("subspace: expected means and stds", "--config.data.kwargs")
    k = len(parts["means"][0])
    within = DiffusionModel(models.create("mixture", **parts), sde, (k,), "v").denoiser({})
    return subspace_denoiser(sde, within, random_basis(shape[0], k))


def load_pretrained(config: ConfigDict) -> tuple[ConfigDict, Any]:
    """Return the config with the SDE, model and preconditioning of config.model.pretrained, and its parameters.

    Raises:
      UserError: if the weights can't be loaded, or are for data of another shape.
    """
    path = config.model.pretrained
    if not path:
        return config, None
    kept = {key: value for key, value in plain(config.model.kwargs).items() if key in pretrained.OVERRIDABLE}
    with naming_flags(config, "model", path="model.pretrained"):
        found = pretrained.load_model(exported(path, "path"), config.model.family, kept)
        shape = event_shape(config)
        if shape != found.event_shape:
            raise UserError(
                f"{path} is a network for data of the shape {found.event_shape}, these are {shape}",
                "--config.data.image_size",
                "--config.data.channels",
            )
    adopted = ConfigDict(config.to_dict())
    adopted.sde = ConfigDict({"name": found.target.sde, "kwargs": dict(found.target.sde_kwargs)})
    adopted.model.name, adopted.model.kwargs = found.name, ConfigDict(found.kwargs)
    adopted.model.prediction, adopted.model.preconditioning = found.target.prediction, found.target.preconditioning
    if found.scaling:
        adopted.data.standardize, (adopted.data.mean, adopted.data.std) = True, map(tuple, found.scaling)
    if found.target.sigma_data is not None:
        adopted.data.sigma_data = found.target.sigma_data
    if found.objective in CHAIN_OBJECTIVES:  # the network was trained at the timesteps of a chain only
        adopted.loss.objective = found.objective
    return adopted, found.params


def exported(path: str, argument: str) -> str:
    """Return the path of the weights; for the folder of a run those of its last export."""
    found = sorted(Path(path).glob("ema_*.safetensors"))
    if found:
        return str(found[-1])
    if (Path(path) / "checkpoints").is_dir():
        raise UserError(
            f"the run {path} has not exported its weights: launch.py --config=... --workdir={path} --mode=export "
            "writes them",
            argument,
        )
    return path


def _trace(config: ConfigDict, module: nn.Module, shape: tuple[int, ...]) -> tuple[Any, tuple[int, ...]]:
    """Return the shapes of a network's variables and of its output, without memory or compilation."""
    x, level = jnp.zeros((1, *shape)), jnp.zeros((1,))
    try:
        with naming_flags(config, "model.kwargs", image_size="data.image_size"):
            output, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), x, level)
    except UserError:
        raise
    except (TypeError, ValueError, ArithmeticError, IndexError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(
            f"model {config.model.name!r} can't be built with {plain(config.model.kwargs)} on data of the shape "
            f"{shape}: {reason}",
            "--config.model.kwargs",
        ) from error
    return variables, output.shape[1:]
