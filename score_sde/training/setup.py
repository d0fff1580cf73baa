"""The parts of a training run, and its preparation before the first step."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from score_sde.data import Dataset, load_examples
from score_sde.errors import UserError
from score_sde.runtime import distributed
from score_sde.runtime.disk import report
from score_sde.sde import SDE, log_snr
from score_sde.training import checkpoints
from score_sde.training.ema import EMAConfig
from score_sde.training.loss import LossFn
from score_sde.training.state import TrainState, initial_state
from score_sde.training.step import make_train_step

MAX_TERMINAL_LOG_SNR = -3.0  # largest log-SNR at t_max of a process that ends at its prior
MAX_SCALE = 20.0  # largest root mean square of a feature, in units of sigma(t_max)
MAX_CLASSES = 20  # number of classes that are listed


class TrainingSchedule(NamedTuple):
    """The length of a run, and the intervals of logs, checkpoints, sample plots and EMA snapshots, in steps."""

    num_steps: int
    steps_per_call: int
    log_every: int
    checkpoint_every: int
    keep_checkpoints: int
    keep_every: int
    keep_best: int
    sample_every: int
    snapshot_every: int


class TrainingSetup(NamedTuple):
    """The parts of a training run.

    Attributes:
      init_params: Function without arguments that returns the initial parameters.
      loss_fn: Per-example loss (`training.loss`).
      optimizer: Update from the gradient of the mean loss over the global batch.
      ema: EMAs to keep.
      key: Key of all training noise.
      batch_size: Global batch size.
      schedule: Length and intervals.
      strategy: Distribution over devices, a key of `devices.STRATEGIES`.
      grad_accum_steps: Number of microbatches over which gradients are accumulated.
      num_classes: Number of classes the network is conditioned on; 0 if labels are unused.
      dequantize: Whether to spread pixels uniformly over their levels.
      augment: Probability of EDM's augmentations; 0 for none.
      skip_nonfinite: Whether to skip steps whose loss or gradient is not finite, rather than stop.
      needs_levels: Whether the loss needs pixels on levels, for a decoder term.
      trainable: Whether the network has parameters; an analytic network has none.
      weights: Files or folders of weights that the run starts from or uses, by their keys in the config.
      notes: What the user should know before the first step, such as a warm-up that outlasts the training.
      sde: Forward process, whose noise real-valued data are compared with; None to skip the comparison.
    """

    init_params: Callable[[], Any]
    loss_fn: LossFn
    optimizer: optax.GradientTransformation
    ema: EMAConfig
    key: jax.Array
    batch_size: int
    schedule: TrainingSchedule
    strategy: str = "pmap"
    grad_accum_steps: int = 1
    num_classes: int = 0
    dequantize: bool = False
    augment: float = 0.0
    skip_nonfinite: bool = False
    needs_levels: bool = False
    trainable: bool = True
    weights: Mapping[str, str] = {}
    notes: tuple[str, ...] = ()
    sde: SDE | None = None

    def init_state(self) -> TrainState:
        """Return the state before the first step."""
        return jax.jit(partial(initial_state, optimizer=self.optimizer, ema=self.ema))(self.init_params())


def check_data(setup: TrainingSetup, source: Dataset, num_devices: int) -> None:
    """Raise UserError unless the data fit the loss and the network, and the devices share the batch evenly."""
    check_divides(setup.batch_size, num_devices, setup.grad_accum_steps)
    if source.levels is None and setup.dequantize:
        raise UserError("dequantize: expected data of pixels, got real numbers", "dequantize=False")
    if source.levels is None and setup.needs_levels:
        raise UserError(
            "ddpm_hybrid: expected pixels with a number of levels for the decoder term, got real numbers",
            "objective=ddpm",
            "objective_kwargs.levels",
        )
    if setup.num_classes not in (0, source.num_classes):
        raise UserError(
            f"the network has {setup.num_classes} classes, the data have {source.num_classes}",
            f"num_classes={source.num_classes}",
        )
    if source.levels is None and setup.sde is not None:
        check_scale(setup.sde, source)


def check_scale(sde: SDE, source: Dataset) -> None:
    """Raise UserError unless the noise of the process can hide real-valued features, and resolve them.

    At t_max the prior N(0, sigma^2) requires that alpha |x| is small next to sigma (`MAX_TERMINAL_LOG_SNR`), and no
    network learns features that are many times the largest noise. At t_min noise above a feature's standard deviation
    erases it.
    """
    examples = load_examples(source)[0].reshape(len(source.examples), -1).astype(np.float64)
    mean, std = examples.mean(axis=0), examples.std(axis=0)
    rms = np.sqrt(mean**2 + std**2)
    most, least = MAX_SCALE * float(sde.sigma(sde.t_max)), float(sde.sigma(sde.t_min))
    terminal = 0.5 * (MAX_TERMINAL_LOG_SNR - float(log_snr(sde, sde.t_max)))
    largest = math.exp(min(terminal, math.log(most)))
    wrong = np.flatnonzero((rms > largest) | ((std > 0) & (std < least)))
    if len(wrong):
        n = wrong[0]
        raise UserError(
            f"data: expected features with standard deviations above {least:.3g} and root mean squares below "
            f"{largest:.3g} for this process, got mean {mean[n]:.6g} and standard deviation {std[n]:.3g} of feature {n}"
            + ", and others"
            * (len(wrong) > 1),
            "standardize=True",
        )


def check_divides(batch_size: int, num_devices: int, grad_accum_steps: int = 1) -> None:
    """Raise UserError unless devices and microbatches share the global batch evenly."""
    divisor = num_devices * grad_accum_steps
    if batch_size < 1 or batch_size % divisor:
        times = f" times {grad_accum_steps} microbatches" if grad_accum_steps > 1 else ""
        raise UserError(
            f"training: the global batch of {batch_size} doesn't divide among {num_devices} devices{times}; take a "
            f"multiple of {divisor}",
            "batch_size",
        )


def check_step(schedule: TrainingSchedule, workdir: Any, step: int) -> None:
    """Raise UserError if the restored step is not a multiple of steps_per_call."""
    if step % schedule.steps_per_call:
        raise UserError(
            f"the checkpoint in {workdir} is of step {step}, not a multiple of "
            f"steps_per_call={schedule.steps_per_call}; steps_per_call=1 gives the same parameters",
            "steps_per_call=1",
        )


def restore_or_init(setup: TrainingSetup, manager: Any) -> TrainState:
    """Return the newest readable checkpoint, or the initial state if there is none."""
    state = checkpoints.restore(manager, jax.eval_shape(setup.init_state))
    return setup.init_state() if state is None else state


def build_train_step(
    setup: TrainingSetup, levels: int | None, axis_name: str | None, all_gather_params: Callable = lambda params: params
) -> Callable:
    """Return the train step for data with this number of pixel levels; see `make_train_step`."""
    return make_train_step(
        setup.loss_fn,
        setup.optimizer,
        setup.key,
        setup.ema,
        levels,
        axis_name,
        all_gather_params,
        dequantized=setup.dequantize,
        use_labels=setup.num_classes > 0,
        augment={"probability": setup.augment} if setup.augment else None,
        grad_accum_steps=setup.grad_accum_steps,
        skip_nonfinite=setup.skip_nonfinite,
    )


def log_summary(setup: TrainingSetup, source: Dataset, state: TrainState, devices: list[jax.Device]) -> None:
    """Print the sizes of the network, the data and the batch."""
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    processes = jax.process_count()
    hardware = f"{len(devices)} {devices[0].platform} device(s)" + (f" of {processes} processes" * (processes > 1))
    accumulated = f" in {setup.grad_accum_steps} microbatches" if setup.grad_accum_steps > 1 else ""
    for line in (*_describe_classes(source), *setup.notes):
        log(line)
    log(
        f"{parameters:,} parameters; {len(source.examples):,} {_describe(source)}; {hardware}, batch "
        f"{setup.batch_size}, {setup.batch_size // len(devices)} per device{accumulated}; from step {int(state.step)}"
    )


def log_batch(batch: dict[str, np.ndarray]) -> None:
    """Print the types, shapes and ranges of this process's first batch."""
    descriptions = (
        f"{name} {array.dtype} {'x'.join(map(str, array.shape[1:]))} from {array.min():g} to {array.max():g}"
        for name, array in batch.items()
    )
    log(f"the first batch: {', '.join(descriptions)}")


def log(message: Any) -> None:
    """Print a message to stderr from the main process."""
    if distributed.is_main_process():
        report(message)


def _describe(source: Dataset) -> str:
    shape = "x".join(map(str, source.image_shape))
    return f"points of {shape} features" if source.levels is None else f"images of {shape}, {source.levels} levels"


def _describe_classes(source: Dataset) -> list[str]:
    """Return the classes with their numbers of examples, those without any, and the files that were left out."""
    names = source.class_names or tuple(map(str, range(source.num_classes)))
    counts, lines = source.class_counts, []
    if source.num_classes > 1:
        numbered = [name if name == str(n) else f"{n} = {name}" for n, name in enumerate(names)]
        if counts is not None:
            numbered = [f"{name} ({count:,})" for name, count in zip(numbered, counts, strict=True)]
        more = f" and {len(names) - MAX_CLASSES} more" if len(names) > MAX_CLASSES else ""
        lines.append(f"{len(names)} classes: {', '.join(numbered[:MAX_CLASSES])}{more}")
    if counts is not None and (empty := [names[n] for n in np.flatnonzero(counts == 0)]):
        lines.append(f"without examples, and not sampled: {', '.join(empty[:MAX_CLASSES])}")
    if source.ignored:
        lines.append("left out: " + ", ".join(f"{number} {kind}" for kind, number in sorted(source.ignored.items())))
    return lines
