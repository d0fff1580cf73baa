"""From a config to the parts of a run. The only file that reads config.* by name; all checks happen here, before any
compilation."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from score_sde import data, models
from score_sde.errors import UserError, build, lookup
from score_sde.optimizer import make_optimizer
from score_sde.parameterization import Denoiser, make_denoiser
from score_sde.sampling import Sampler, make_sampler
from score_sde.score_matching import OBJECTIVES, TIME_SAMPLERS, WEIGHTINGS, Draw
from score_sde.sde import SDE, SDES
from score_sde.solvers import SOLVERS, time_grid


class Schedule(NamedTuple):
    """How long a run trains, and what it does on the way, in steps."""

    num_steps: int
    steps_per_call: int
    log_every: int
    checkpoint_every: int
    keep_checkpoints: int
    sample_every: int


class Experiment(NamedTuple):
    """The parts of a run, built and checked."""

    config: dict[str, Any]  # resolved, plain: what config.json holds
    image_shape: tuple[int, int, int]
    init_params: Callable[[], Any]  # () -> params, a function of the seed
    loss_fn: Callable[[Any, jax.Array, Draw], jax.Array]  # (params, x0 in [-1, 1], draw) -> (n,)
    optimizer: optax.GradientTransformation
    ema_decay: float
    training_key: jax.Array
    batch_size: int  # global
    schedule: Schedule
    source: Callable[[str], data.Source]  # split -> images
    batches: Callable[[data.Source, int], Any]  # (source, first step) -> iterator of batches for a call
    sampler: Sampler
    num_samples: int  # in a grid
    evaluation: dict[str, int]


def make_experiment(config: ConfigDict, devices: list[jax.Device]) -> Experiment:
    """Builds and checks every part of a run.

    Args:
      config: what a file in configs/ returns, with the overrides of the command line.
      devices: the devices that it will run on.

    Raises:
      UserError: something in the config is unknown or doesn't fit; the message says what, and where to change it.
    """
    schedule = _make_schedule(config)
    for name, value in config.evaluation.items():
        _check_at_least_one("evaluation", name, value)
    if config.seed < 0:
        raise UserError(f"the seed must be 0 or more, got {config.seed} (set --config.seed)")
    if not 0 <= config.training.ema_decay < 1:
        raise UserError(f"need 0 <= ema_decay < 1, got {config.training.ema_decay} (set --config.training.ema_decay)")
    sde = build("SDE", SDES, config.sde.name, config.sde.kwargs, "--config.sde")
    model = models.create(config.model.name, **_plain(config.model.kwargs))
    image_shape = (config.data.image_size, config.data.image_size, config.data.channels)
    init_key, training_key, sampling_key = jax.random.split(jax.random.key(config.seed), 3)
    image, level = jnp.zeros((1, *image_shape)), jnp.zeros((1,))
    _check_model(config, model, image, level)

    def denoiser(params, keys=None):
        network = _network(model, params, keys)
        return make_denoiser(network, sde, config.model.prediction, config.model.preconditioning)

    denoiser(None)  # refuses unknown names
    lookup("data set", data.SOURCES, config.data.name, "--config.data.name")
    return Experiment(
        config=_plain(config),
        image_shape=image_shape,
        init_params=jax.jit(lambda: model.init(init_key, image, level)["params"]),
        loss_fn=_make_loss(config, sde, denoiser),
        optimizer=make_optimizer(**config.optimizer),
        ema_decay=config.training.ema_decay,
        training_key=training_key,
        batch_size=config.training.batch_size,
        schedule=schedule,
        source=lambda split: data.load(
            config.data.name, split, config.data.image_size, config.data.channels, config.data.path
        ),
        batches=lambda source, first_step: data.batches(
            source,
            config.seed,
            config.training.batch_size,
            config.training.steps_per_call,
            first_step,
            config.data.random_flip,
        ),
        sampler=_make_sampler(config, sde, denoiser, image_shape, sampling_key, devices),
        num_samples=config.sampling.num_samples,
        evaluation=_plain(config.evaluation),
    )


def _plain(config: ConfigDict) -> dict[str, Any]:
    return config.to_dict() if isinstance(config, ConfigDict) else config


def _check_model(config: ConfigDict, model: nn.Module, image: jax.Array, level: jax.Array) -> None:
    """Refuses a network that cannot be built, by tracing it without memory or compilation."""
    try:
        jax.eval_shape(model.init, jax.random.key(0), image, level)
    except UserError:
        raise
    except (TypeError, ValueError, ArithmeticError) as error:
        words = str(error).split("\n")[0]
        kwargs = _plain(config.model.kwargs)
        raise UserError(
            f"model {config.model.name!r} can't be built with {kwargs}: {words} (set --config.model.kwargs)"
        ) from error


def _network(model: nn.Module, params: Any, keys: jax.Array | None) -> Callable:
    """(x, noise_level) -> output; with keys, one an example, in training mode, with dropout from each example's key."""
    variables = {"params": params}
    if keys is None or not getattr(model, "dropout", 0.0):
        return lambda x, level: model.apply(variables, x, level, train=keys is not None)

    def one(x, level, key):
        return model.apply(variables, x[None], level[None], train=True, rngs={"dropout": key})[0]

    return lambda x, level: jax.vmap(one)(x, level, keys)


def _make_loss(config: ConfigDict, sde: SDE, denoiser: Callable[..., Denoiser]) -> Callable:
    """(params, x0, draw) -> (n,) losses, averaged over dimensions: the scale at which the papers clip gradients."""
    objective = lookup("objective", OBJECTIVES, config.loss.objective, "--config.loss.objective")
    lookup("weighting", WEIGHTINGS, config.loss.weighting, "--config.loss.weighting")
    fractions = lookup("time sampler", TIME_SAMPLERS, config.loss.time_sampler, "--config.loss.time_sampler")
    t_min = config.loss.t_min
    if not 0 <= t_min < sde.t_max:
        raise UserError(f"loss: need 0 <= t_min < {sde.t_max}, got {t_min} (set --config.loss.t_min)")

    def loss_fn(params, x0, draw):
        t = t_min + fractions(draw) * (sde.t_max - t_min)
        epsilon = jax.vmap(lambda key: jax.random.normal(key, x0.shape[1:]))(draw.noise_keys)
        losses = objective(denoiser(params, draw.network_keys), sde, x0, t, epsilon, config.loss.weighting)
        return losses / np.prod(x0.shape[1:])

    return loss_fn


def _make_sampler(config, sde, denoiser, image_shape, sampling_key, devices) -> Sampler:
    solver = build("solver", SOLVERS, config.sampling.solver, config.sampling.kwargs, "--config.sampling", "solver")
    for name in ("num_samples", "batch_size"):
        _check_at_least_one("sampling", name, config.sampling[name])
    return make_sampler(
        sde,
        denoiser,
        solver,
        time_grid(sde, config.sampling.num_steps, config.sampling.spacing),
        image_shape,
        sampling_key,
        config.sampling.batch_size,
        config.sampling.denoise,
        devices,
    )


def _make_schedule(config: ConfigDict) -> Schedule:
    schedule = Schedule(**{name: config.training[name] for name in Schedule._fields})
    for name, value in schedule._asdict().items():
        _check_at_least_one("training", name, value)
    for name in ("num_steps", "log_every", "checkpoint_every", "sample_every"):
        if getattr(schedule, name) % schedule.steps_per_call:
            raise UserError(
                f"training: {name}={getattr(schedule, name)} is not a multiple of steps_per_call="
                f"{schedule.steps_per_call} (set --config.training.{name} or --config.training.steps_per_call)"
            )
    return schedule


def _check_at_least_one(group: str, name: str, value: Any) -> None:
    if not (isinstance(value, int) and value >= 1):
        raise UserError(f"{group}: {name} must be an integer of at least 1, got {value} (set --config.{group}.{name})")


def check_divides(group: str, batch_size: int, num_devices: int) -> None:
    """Refuses a global batch that the devices don't share evenly."""
    if batch_size < 1 or batch_size % num_devices:
        raise UserError(
            f"{group}: the global batch of {batch_size} doesn't divide among {num_devices} devices; take a multiple of "
            f"{num_devices} (set --config.{group}.batch_size)"
        )
