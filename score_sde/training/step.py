"""The train step: a pure function (state, batch) -> (state, metrics), and its compilation for all devices."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from score_sde.data import to_unit_range
from score_sde.likelihood import centred_range, dequantize
from score_sde.randomness import fold_each, make_draw
from score_sde.training.state import TrainState

AXIS = "devices"


LossFn = Callable[..., jax.Array]


def make_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    seed_key: jax.Array,
    ema_decay: float,
    levels: int | None,
    axis_name: str | None = AXIS,
    dequantized: bool = False,
    labelled: bool = False,
) -> Callable[[TrainState, Mapping[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]:
    """Makes the step of one device.

    Args:
      loss_fn: (params, x0 (n, *event_shape) in [-1, 1], draw, labels) -> (n,) losses.
      optimizer: from the gradient of the mean loss over the global batch to an update.
      seed_key: the key of the whole run's training noise.
      ema_decay: of the moving average of the parameters, warmed up as min(ema_decay, (1 + n) / (10 + n)) at step n.
      levels: pixels of a batch are integers 0 .. levels - 1; None for real numbers.
      axis_name: the mapped axis that means are taken over; None for a single device outside any map.
      dequantized: spread each pixel evenly over its level, with noise from the example's key.
      labelled: give the loss batch["label"], (n,) integers; else None.

    Returns:
      (state, batch) -> (state, {"loss", "gradient_norm"}); batch["image"] is this device's part of the global batch,
      (n, *event_shape).
    """

    def mean_over_devices(tree):
        return tree if axis_name is None else jax.lax.pmean(tree, axis_name)

    def train_step(state, batch):
        num_local = batch["image"].shape[0]
        device = 0 if axis_name is None else jax.lax.axis_index(axis_name)
        num_devices = 1 if axis_name is None else jax.lax.axis_size(axis_name)
        indices = device * num_local + jnp.arange(num_local)
        draw = make_draw(seed_key, state.step, indices, num_devices * num_local)
        if dequantized:
            x0 = dequantize(fold_each(draw.noise_keys, 1), batch["image"], levels, centred_range(levels))
        else:
            x0 = to_unit_range(batch["image"], levels)

        labels = batch["label"] if labelled else None

        def mean_loss(params):
            return jnp.mean(loss_fn(params, x0, draw, labels))

        loss, gradient = mean_over_devices(jax.value_and_grad(mean_loss)(state.params))
        updates, optimizer_state = optimizer.update(gradient, state.optimizer_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
        ema_params = optax.incremental_update(params, state.ema_params, 1 - decay)
        metrics = {"loss": loss, "gradient_norm": optax.tree.norm(gradient)}
        return TrainState(state.step + 1, params, ema_params, optimizer_state), metrics

    return train_step


def replicate(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """One copy of every array for each device, along a new leading axis, placed as `jax.pmap` places its outputs.

    Any other placement, or another name of the axis, would compile the step a second time at its second call.
    """
    sharding = NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec(AXIS))
    return jax.tree.map(lambda leaf: jax.device_put(jnp.stack([leaf] * len(devices)), sharding), tree)


def unreplicate(tree: Any) -> Any:
    """The first device's copy of every array."""
    return jax.tree.map(lambda leaf: leaf.addressable_shards[0].data[0], tree)


def scan_steps(train_step: Callable, state: TrainState, batches: Any) -> tuple[TrainState, dict[str, jax.Array]]:
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


def on_all_devices(train_step: Callable, devices: Sequence[jax.Device]) -> Callable:
    """Compiles scanned train steps for all devices, the state's buffers donated.

    Args:
      train_step: what `make_train_step` makes, with the axis `AXIS`.
      devices: the devices to run on.

    Returns:
      (state, batches) -> (state, metrics): a state replicated along a leading axis of devices, and batches of global
      arrays (steps_per_call, batch_size, ...); metrics are means over the call's steps, as scalars on the first device.
    """
    num_devices = len(devices)
    compiled = jax.pmap(partial(scan_steps, train_step), axis_name=AXIS, devices=devices, donate_argnums=0)

    def split(batches):  # (steps, batch, ...) -> (devices, steps, batch / devices, ...)
        steps, batch_size = batches.shape[:2]
        return batches.reshape(steps, num_devices, batch_size // num_devices, *batches.shape[2:]).swapaxes(0, 1)

    def call(state, batches):
        state, metrics = compiled(state, jax.tree.map(split, batches))
        return state, unreplicate(metrics)

    return call
