"""The train step, a pure function (state, batch) -> (state, metrics), and a compiled loop over several steps."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from score_sde.data import centered_range, dequantize, to_unit_range
from score_sde.data.augmentation import augment_each
from score_sde.errors import not_none
from score_sde.randomness import ExampleRngs, fold_each, make_example_rngs
from score_sde.training.ema import EMAConfig, update
from score_sde.training.loss import LossFn
from score_sde.training.state import TrainState

AXIS = "devices"

Metrics = dict[str, jax.Array]


def make_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    seed_key: jax.Array,
    ema: EMAConfig,
    levels: int | None,
    axis_name: str | None = AXIS,
    all_gather_params: Callable[[Any], Any] = lambda params: params,
    dequantized: bool = False,
    use_labels: bool = False,
    augment: Mapping[str, float] | None = None,
    grad_accum_steps: int = 1,
    skip_nonfinite: bool = False,
) -> Callable[[TrainState, Mapping[str, jax.Array]], tuple[TrainState, Metrics]]:
    """Return the train step of one device, or of all devices as one array program.

    Args:
      loss_fn: Per-example loss (`training.loss`).
      optimizer: Update from the gradient of the mean loss over the global batch.
      seed_key: Key of all training noise of the run.
      ema: EMAs to keep.
      levels: Number of pixel levels, for pixels that are integers 0 .. levels - 1; None for real numbers.
      axis_name: Mapped axis over which means are taken; None if the batch is the global one.
      all_gather_params: Function from parameters as they are sharded to parameters as the network takes them.
      dequantized: Whether to spread pixels uniformly over their levels, with noise from the examples' keys.
      use_labels: Whether to condition the network on batch["label"], (n,) integers.
      augment: Probabilities of EDM's augmentations (`augment_each`), on which the network is conditioned; None for
        none.
      grad_accum_steps: Number of microbatches over which gradients are accumulated.
      skip_nonfinite: Whether to change only the step number if the loss or the gradient is not finite.

    Returns:
      (state, batch) -> (state, {"loss", "gradient_norm", "nonfinite", "stop"}). batch["image"] is the part of the
      global batch on this device, (n, *event_shape). nonfinite is 1 if the loss or the gradient is not finite. stop is
      the mean of batch["stop"] (n,) over all processes.
    """

    def mean_over_devices(tree):
        return tree if axis_name is None else jax.lax.pmean(tree, axis_name)

    def network_inputs(batch: Mapping[str, jax.Array], rngs: ExampleRngs) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return x0 in [-1, 1], and the conditioning of the network."""
        if dequantized:
            num_levels = not_none(levels)
            x0 = dequantize(fold_each(rngs.noise_keys, 1), batch["image"], num_levels, centered_range(num_levels))
        else:
            x0 = to_unit_range(batch["image"], levels)
        labels = {"labels": batch["label"]} if use_labels else {}
        if augment is None:
            return x0, labels
        x0, augment_labels = augment_each(fold_each(rngs.noise_keys, 2), x0, **augment)
        return x0, labels | {"augment": augment_labels}

    def mean_loss(params, batch, rngs):
        x0, conditioning = network_inputs(batch, rngs)
        return jnp.mean(loss_fn(all_gather_params(params), x0, rngs, **conditioning, levels=levels))

    def loss_and_gradient(params, batch, step):
        num_local = batch["image"].shape[0]
        device = 0 if axis_name is None else jax.lax.axis_index(axis_name)
        num_devices = 1 if axis_name is None else jax.lax.axis_size(axis_name)
        indices = device * num_local + jnp.arange(num_local)

        def microbatch_grad(batch, indices):
            rngs = make_example_rngs(seed_key, step, indices, num_devices * num_local)
            return jax.value_and_grad(mean_loss)(params, batch, rngs)

        return _accumulate_gradients(microbatch_grad, (batch, indices), grad_accum_steps)

    def train_step(state, batch):
        stop = jnp.mean(batch["stop"]) if "stop" in batch else 0.0
        (loss, gradient), stop = mean_over_devices((loss_and_gradient(state.params, batch, state.step), stop))
        updates, optimizer_state = optimizer.update(gradient, state.optimizer_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema_params, averages = update(ema, (state.ema_params, state.averages), params, state.step)
        new_state = TrainState(state.step + 1, params, ema_params, averages, optimizer_state)
        norm = optax.tree.norm(gradient)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        metrics = {"loss": loss, "gradient_norm": norm}
        if skip_nonfinite:
            selected = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new_state, state)
            new_state = selected._replace(step=state.step + 1)
            metrics = jax.tree.map(lambda value: jnp.where(finite, value, 0.0), metrics)
        return new_state, metrics | {"nonfinite": 1.0 - finite, "stop": stop}

    return train_step


def _accumulate_gradients(microbatch_grad: Callable, batch: Any, num_microbatches: int) -> Any:
    """Return the mean of microbatch_grad(*microbatch) over microbatches of equal size, one after another.

    Microbatch k holds every num_microbatches-th example from the k-th on. If the batch is sharded, every microbatch
    then has examples in all shards.
    """
    if num_microbatches == 1:
        return microbatch_grad(*batch)
    microbatches = jax.tree.map(lambda leaf: leaf.reshape(-1, num_microbatches, *leaf.shape[1:]).swapaxes(0, 1), batch)

    def add(sums, microbatch):
        return jax.tree.map(jnp.add, sums, microbatch_grad(*microbatch)), None

    shapes = jax.eval_shape(microbatch_grad, *jax.tree.map(lambda leaf: leaf[0], microbatches))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    sums, _ = jax.lax.scan(add, zeros, microbatches)
    return jax.tree.map(lambda total: total / num_microbatches, sums)


def scan_steps(train_step: Callable, state: TrainState, batches: Any) -> tuple[TrainState, Metrics]:
    """Run a train step on each of batches (steps, n, ...) in a compiled loop; return the state and the mean metrics.

    It is `lax.scan` with the number of steps hidden from the CPU compiler. That compiler would inline a loop of one
    step, and round it differently from the body of a longer loop. With the number hidden, the bits of a result don't
    depend on the number of steps per call.
    """
    num_steps = len(jax.tree.leaves(batches)[0])
    train_step = jax.jit(train_step, inline=True)  # traced once for the shapes below and for the loop
    hidden = jax.lax.platform_dependent(jnp.int32(num_steps), cpu=jax.lax.optimization_barrier, default=lambda n: n)

    def batch_at(n):
        return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, n, keepdims=False), batches)

    def body(n, carry):
        state, sums = carry
        state, metrics = train_step(state, batch_at(n))
        return state, jax.tree.map(jnp.add, sums, metrics)

    metrics = jax.eval_shape(lambda: train_step(state, batch_at(0))[1])
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), metrics)
    state, sums = jax.lax.fori_loop(0, hidden, body, (state, zeros))
    return state, jax.tree.map(lambda total: total / num_steps, sums)
