"""The train step: a pure function (state, batch) -> (state, metrics), and several of them in a compiled loop."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from score_sde.data import centered_range, dequantize, to_unit_range
from score_sde.data.augmentation import augment_each
from score_sde.errors import not_none
from score_sde.randomness import ExampleRngs, fold_each, make_example_rngs
from score_sde.training.ema import Averages, update
from score_sde.training.loss import LossFn
from score_sde.training.state import TrainState

AXIS = "devices"

Metrics = dict[str, jax.Array]


def make_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    seed_key: jax.Array,
    averages: Averages,
    levels: int | None,
    axis_name: str | None = AXIS,
    gather: Callable[[Any], Any] = lambda params: params,
    dequantized: bool = False,
    labelled: bool = False,
    augment: Mapping[str, float] | None = None,
    accumulate: int = 1,
    skip_nonfinite: bool = False,
) -> Callable[[TrainState, Mapping[str, jax.Array]], tuple[TrainState, Metrics]]:
    """Makes the step of one device, or of all as one array program.

    Args:
      loss_fn: (params, x0 (n, *event_shape) in [-1, 1], draw, **told) -> (n,) losses.
      optimizer: from the gradient of the mean loss over the global batch to an update.
      seed_key: the key of the whole run's training noise.
      averages: the moving averages to keep.
      levels: pixels of a batch are integers 0 .. levels - 1; None for real numbers.
      axis_name: the mapped axis that means are taken over; None where the batch is the global one.
      gather: parameters as they lie on the devices -> as the network gets them.
      dequantized: spread each pixel evenly over its level, with noise from the example's key.
      labelled: tell the network batch["label"], (n,) integers.
      augment: probabilities of EDM's augmentations (`augment_each`), of which the network is told; None: none.
      accumulate: parts that the batch is worked through in, one after another, for memory.
      skip_nonfinite: leave everything but the step's number as it was where the loss or the gradient isn't finite.

    Returns:
      (state, batch) -> (state, {"loss", "gradient_norm", "nonfinite", "stop"}); batch["image"] is this device's part of
      the global batch, (n, *event_shape); nonfinite is 1 where the loss or the gradient is not finite; stop is the mean
      of batch["stop"] (n,), by which several processes tell each other.
    """

    def mean_over_devices(tree):
        return tree if axis_name is None else jax.lax.pmean(tree, axis_name)

    def told(batch: Mapping[str, jax.Array], draw: ExampleRngs) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The images as the network gets them, and what it is told of them."""
        if dequantized:
            number = not_none(levels)
            x0 = dequantize(fold_each(draw.noise_keys, 1), batch["image"], number, centered_range(number))
        else:
            x0 = to_unit_range(batch["image"], levels)
        labels = {"labels": batch["label"]} if labelled else {}
        if augment is None:
            return x0, labels
        x0, how = augment_each(fold_each(draw.noise_keys, 2), x0, **augment)
        return x0, labels | {"augment": how}

    def mean_loss(params, batch, draw):
        x0, beside = told(batch, draw)
        return jnp.mean(loss_fn(gather(params), x0, draw, **beside, levels=levels))

    def loss_and_gradient(params, batch, step):
        num_local = batch["image"].shape[0]
        device = 0 if axis_name is None else jax.lax.axis_index(axis_name)
        num_devices = 1 if axis_name is None else jax.lax.axis_size(axis_name)
        indices = device * num_local + jnp.arange(num_local)

        def of(batch, indices):
            draw = make_example_rngs(seed_key, step, indices, num_devices * num_local)
            return jax.value_and_grad(mean_loss)(params, batch, draw)

        return _over_parts(of, (batch, indices), accumulate)

    def train_step(state, batch):
        stop = jnp.mean(batch["stop"]) if "stop" in batch else 0.0
        (loss, gradient), stop = mean_over_devices((loss_and_gradient(state.params, batch, state.step), stop))
        updates, optimizer_state = optimizer.update(gradient, state.optimizer_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema_params, others = update(averages, (state.ema_params, state.averages), params, state.step)
        new = TrainState(state.step + 1, params, ema_params, others, optimizer_state)
        norm = optax.tree.norm(gradient)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        metrics = {"loss": loss, "gradient_norm": norm}
        if skip_nonfinite:
            kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, state)
            new = kept._replace(step=state.step + 1)
            metrics = jax.tree.map(lambda value: jnp.where(finite, value, 0.0), metrics)
        return new, metrics | {"nonfinite": 1.0 - finite, "stop": stop}

    return train_step


def _over_parts(function: Callable, rows: Any, parts: int) -> Any:
    """The mean of function(*rows) over so many equal parts of the rows, one after another.

    Part k takes every parts-th row from the k-th on: where the rows lie in shards, every part lies in all of them.
    """
    if parts == 1:
        return function(*rows)
    split = jax.tree.map(lambda leaf: leaf.reshape(-1, parts, *leaf.shape[1:]).swapaxes(0, 1), rows)

    def add(sums, part):
        return jax.tree.map(jnp.add, sums, function(*part)), None

    like = jax.eval_shape(function, *jax.tree.map(lambda leaf: leaf[0], split))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
    sums, _ = jax.lax.scan(add, zeros, split)
    return jax.tree.map(lambda total: total / parts, sums)


def scan_steps(train_step: Callable, state: TrainState, batches: Any) -> tuple[TrainState, Metrics]:
    """Steps through batches (steps, n, ...) in a compiled loop; returns the state and the means of the metrics.

    `lax.scan`, but that the CPU's compiler doesn't see the number of steps: it would inline a loop of one step and
    round it otherwise than the body of a longer one. So any number of steps a call gives the same bits. Other platforms
    see the number.
    """
    num_steps = len(jax.tree.leaves(batches)[0])
    hidden = jax.lax.platform_dependent(jnp.int32(num_steps), cpu=jax.lax.optimization_barrier, default=lambda n: n)

    def batch_of(n):
        return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, n, keepdims=False), batches)

    def body(n, carry):
        state, sums = carry
        state, metrics = train_step(state, batch_of(n))
        return state, jax.tree.map(jnp.add, sums, metrics)

    metrics = jax.eval_shape(lambda: train_step(state, batch_of(0))[1])
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), metrics)
    state, sums = jax.lax.fori_loop(0, hidden, body, (state, zeros))
    return state, jax.tree.map(lambda total: total / num_steps, sums)
