"""From a config to the parts of an experiment, built and checked before anything is compiled.

Only this package builds parts from the config and names command-line flags.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from ml_collections import ConfigDict

from score_sde import ddpm
from score_sde.data import Dataset
from score_sde.evaluation.options import BenchmarkOptions, EvaluationOptions, LikelihoodOptions
from score_sde.experiment import rules
from score_sde.experiment.data import batches, load_split
from score_sde.experiment.flags import naming_flags, plain
from score_sde.experiment.from_data import resolve
from score_sde.experiment.loss import build_loss
from score_sde.experiment.model import build_model, build_sde, exact_denoiser, exported, load_pretrained
from score_sde.experiment.overrides import override, path_overrides
from score_sde.experiment.paths import expand
from score_sde.experiment.sampler import build_sampler
from score_sde.model import DiffusionModel, NoisyClassifier
from score_sde.parameterization import Denoiser
from score_sde.sampling import Sampler
from score_sde.training.ema import EMAConfig, check_choice, check_ema_config
from score_sde.training.optimizer import make_optimizer
from score_sde.training.setup import TrainingSchedule, TrainingSetup
from score_sde.training.uncertainty import with_uncertainty

WEIGHTS = ("model.pretrained", "loss.objective_kwargs.teacher", "sampling.guidance_weights")


class Experiment(NamedTuple):
    """The parts of an experiment.

    Attributes:
      config: Resolved config, as config.json holds it, with the paths as they were given.
      model: Diffusion model, or a classifier for guidance.
      schedule: Discrete-time schedule that the SDE passes through; None for other SDEs.
      load: Function from a split ("train", "test") to its data.
      batches: Function (source, first_step, rows=None) that iterates over the batches of a run.
      training: Parts of the training run.
      sampler: Sampler; None for a classifier.
      evaluation, likelihood, certify: Options of these modes; certify is the benchmark of solvers.
    """

    config: dict[str, Any]
    model: DiffusionModel | NoisyClassifier
    schedule: ddpm.Schedule | None
    load: Callable[[str], Dataset]
    batches: Callable[..., Iterator]
    training: TrainingSetup
    sampler: Sampler | None
    evaluation: EvaluationOptions
    likelihood: LikelihoodOptions
    certify: BenchmarkOptions

    @property
    def exact_denoiser(self) -> Denoiser | None:
        """The exact denoiser of the data, where their density is known."""
        return exact_denoiser(ConfigDict(self.config), self.model.sde)


def make_experiment(
    config: ConfigDict, devices: list[jax.Device], saved: Mapping[str, Any] | None = None
) -> Experiment:
    """Build the parts of an experiment.

    Args:
      config: Config of a file in configs/, with the overrides of the command line.
      devices: Devices of this process.
      saved: Resolved config of the run to continue or to sample, for the values that followed from its data.

    Raises:
      UserError: if a value is unknown or out of range, or if values don't fit each other. The message names the flag.
    """
    rules.check_numbers(config)
    paths = path_overrides(config)
    config, pretrained_params = load_pretrained(override(config, {key: expand(path) for key, path in paths.items()}))
    config = resolve(config, cache(partial(load_split, config)), saved or {})
    rules.check_schedule(config)
    ema = build_ema(config)
    rules.check_certify(config)

    sde, schedule = build_sde(config, config.sde.name, plain(config.sde.kwargs))
    rules.check_likelihood(config, sde)
    model, variables = build_model(config, sde, schedule)
    params = variables.get("params", {})
    extended = with_uncertainty if config.loss.uncertainty else lambda params: params
    loss_fn = build_loss(config, model, schedule, jax.eval_shape(extended, params))

    init_key, training_key, sampling_key = jax.random.split(jax.random.key(config.seed), 3)
    load = cache(partial(load_split, config))
    sampler = None
    if isinstance(model, DiffusionModel):
        sampler = build_sampler(config, model, schedule, sampling_key, devices, load)
    training = TrainingSetup(
        init_params=initializer(lambda: extended(model.init(init_key)), pretrained_params),
        loss_fn=loss_fn,
        optimizer=build_optimizer(config),
        ema=ema,
        key=training_key,
        batch_size=config.training.batch_size,
        schedule=TrainingSchedule(**{name: config.training[name] for name in TrainingSchedule._fields}),
        strategy=config.training.strategy,
        grad_accum_steps=config.training.grad_accum_steps,
        num_classes=model.num_classes,
        dequantize=config.data.dequantize,
        augment=config.data.augment,
        skip_nonfinite=config.training.on_nonfinite == "skip",
        needs_levels=config.loss.objective == "ddpm_hybrid" and "levels" not in config.loss.objective_kwargs,
        trainable=bool(jax.tree.leaves(variables)),
        weights={key: exported(expand(path), key) for key, path in paths.items() if key in WEIGHTS},
        notes=rules.notes(config),
        sde=sde,
    )
    return Experiment(
        config=plain(override(config, paths)),
        model=model,
        schedule=schedule,
        load=load,
        batches=partial(batches, config),
        training=training,
        sampler=sampler,
        evaluation=EvaluationOptions(**config.evaluation),
        likelihood=LikelihoodOptions(**config.likelihood),
        certify=BenchmarkOptions(**config.certify),
    )


def initializer(init: Callable[[], Any], pretrained_params: Any) -> Callable[[], Any]:
    """Return the function that gives the initial parameters: new ones, or pretrained ones.

    A pretrained network of one time has no weights of a second time, and no exported network has those of an
    uncertainty; only these are new.
    """
    if pretrained_params is None:
        return jax.jit(init)
    trained = traverse_util.flatten_dict(pretrained_params)
    missing = traverse_util.flatten_dict(jax.eval_shape(init)).keys() - trained.keys()

    def initial_params():
        new = traverse_util.flatten_dict(jax.jit(init)()) if missing else {}
        return traverse_util.unflatten_dict(new | jax.tree.map(jnp.asarray, trained))

    return initial_params


def build_ema(config: ConfigDict) -> EMAConfig:
    """Return the EMAs to keep in training, after a check that sampling uses one of them."""
    training = config.training
    with naming_flags(config, "training"):
        ema = check_ema_config(EMAConfig(training.ema_decay, tuple(training.ema_decays), tuple(training.ema_lengths)))
    with naming_flags(config, "sampling"):
        check_choice(ema, config.sampling.ema_decay, config.sampling.ema_length)
    return ema


def build_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Return the optimizer of config.optimizer."""
    names = ("learning_rate", "clip_norm", "warmup_steps", "schedule")
    paths = {"optimizer": "optimizer.name"} | {name: f"optimizer.{name}" for name in names}
    with naming_flags(config, "optimizer.kwargs", **paths):
        return make_optimizer(**plain(config.optimizer), num_steps=config.training.num_steps)
