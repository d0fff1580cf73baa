"""Parallel strategies for the train step, on many devices of one or several processes.

`pmap` keeps a copy of the state on each device. `fsdp` shards every array of the state over the devices, and the
compiler gathers the parameters where a step needs them. It takes less memory and more communication than `pmap`; the
results agree to rounding.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from score_sde.errors import lookup
from score_sde.runtime.distributed import replicate
from score_sde.training.step import AXIS, scan_steps


class ParallelStrategy(NamedTuple):
    """Functions that distribute the state and the batches over devices.

    Attributes:
      axis_name: Mapped axis of `make_train_step`; None for a train step on the global batch.
      all_gather_params: Function from sharded parameters to parameters that are whole on every device, for use within
        a compiled step.
      shard_state: Function from a state on the host to the state on the devices.
      shard_batch: Function from this process's rows of batches on the host, (steps, rows, ...), to its devices.
      compile: Function (train_step, shapes of the state) -> (sharded state, sharded batches) -> (state, metrics), with
        the means of the metrics over the steps. The buffers of the state are donated.
      lower: Function (train_step, shapes of the state, shapes of global batches (steps, batch, ...)) that returns the
        lowered computation of `compile`.
      unshard: Function from a part of a sharded state to arrays on this process's first device.
      to_checkpoint: Function from a sharded state to arrays that Orbax saves from all processes together.
    """

    axis_name: str | None
    all_gather_params: Callable[[Any], Any]
    shard_state: Callable[[Any], Any]
    shard_batch: Callable[[Any], Any]
    compile: Callable[..., Callable]
    lower: Callable[..., Any]
    unshard: Callable[[Any], Any]
    to_checkpoint: Callable[[Any], Any]


def pmap_strategy(devices: Sequence[jax.Device]) -> ParallelStrategy:
    """Return data parallelism: a copy of the state on every device, the batch split, gradients averaged."""
    local = [device for device in devices if device.process_index == jax.process_index()]
    mesh = Mesh(np.array(devices), (AXIS,))

    split_first = NamedSharding(Mesh(np.array(local), (AXIS,)), PartitionSpec(AXIS))

    def shard_batch(batches):  # (steps, rows, ...) -> (devices, steps, rows / devices, ...)
        def shard(leaf):
            steps, rows = leaf.shape[:2]
            shards = leaf.reshape(steps, len(local), rows // len(local), *leaf.shape[2:])
            return jax.device_put(shards.swapaxes(0, 1), split_first)

        return jax.tree.map(shard, batches)

    def compile_steps(train_step, state):
        compiled = mapped(train_step)

        def run_steps(state, batches):
            state, metrics = compiled(state, batches)
            return state, unreplicate(metrics)

        return run_steps

    def mapped(train_step):
        return jax.pmap(partial(scan_steps, train_step), axis_name=AXIS, devices=devices, donate_argnums=0)

    def lower(train_step, state, batches):
        def stacked(leaf):
            return jax.ShapeDtypeStruct((len(devices), *leaf.shape), leaf.dtype)

        def split(leaf):
            steps, rows = leaf.shape[:2]
            return jax.ShapeDtypeStruct((steps, rows // len(devices), *leaf.shape[2:]), leaf.dtype)

        return mapped(train_step).lower(
            jax.tree.map(stacked, state), jax.tree.map(stacked, jax.tree.map(split, batches))
        )

    def to_checkpoint(state):
        if len(local) == len(devices):
            return unreplicate(state)
        replicated = NamedSharding(mesh, PartitionSpec())
        return jax.tree.map(
            lambda leaf: jax.make_array_from_single_device_arrays(
                leaf.shape[1:], replicated, [shard.data[0] for shard in leaf.addressable_shards]
            ),
            state,
        )

    return ParallelStrategy(
        axis_name=AXIS,
        all_gather_params=lambda params: params,
        shard_state=partial(replicate, devices=local),
        shard_batch=shard_batch,
        compile=compile_steps,
        lower=lower,
        unshard=unreplicate,
        to_checkpoint=to_checkpoint,
    )


def fsdp_strategy(devices: Sequence[jax.Device]) -> ParallelStrategy:
    """Return fully sharded data parallelism.

    Each array is sharded along its longest axis whose length the number of devices divides. An array without such an
    axis is copied.
    """
    mesh = Mesh(np.array(devices), (AXIS,))

    def sharding(leaf):
        divisible = [axis for axis, size in enumerate(leaf.shape) if size and size % len(devices) == 0]
        if not divisible:
            return NamedSharding(mesh, PartitionSpec())
        axis = max(divisible, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, AXIS))

    def shard_state(state):
        def shard(leaf):
            leaf = np.asarray(leaf)
            return jax.make_array_from_callback(leaf.shape, sharding(leaf), lambda index: leaf[index])

        return jax.tree.map(shard, state)

    replicated = NamedSharding(mesh, PartitionSpec())
    rows = NamedSharding(mesh, PartitionSpec(None, AXIS))

    def compile_steps(train_step, state):
        shardings = jax.tree.map(sharding, state)
        return jax.jit(
            partial(scan_steps, train_step),
            in_shardings=(shardings, rows),
            out_shardings=(shardings, replicated),
            donate_argnums=0,
        )

    gather = jax.jit(lambda tree: tree, out_shardings=replicated)

    def unshard(tree):
        return jax.tree.map(lambda leaf: leaf.addressable_data(0), gather(tree))

    def all_gather_params(params):
        # Without this the compiler may gather the activations of the batch, which are larger, to the weights' shards.
        return jax.lax.with_sharding_constraint(params, replicated)

    def shard_batch(batches):
        return jax.tree.map(partial(jax.make_array_from_process_local_data, rows), batches)

    def lower(train_step, state, batches):
        return compile_steps(train_step, state).lower(state, batches)

    return ParallelStrategy(
        axis_name=None,
        all_gather_params=all_gather_params,
        shard_state=shard_state,
        shard_batch=shard_batch,
        compile=compile_steps,
        lower=lower,
        unshard=unshard,
        to_checkpoint=lambda state: state,
    )


STRATEGIES = {"pmap": pmap_strategy, "fsdp": fsdp_strategy}


def make_strategy(name: str, devices: Sequence[jax.Device]) -> ParallelStrategy:
    """Return the strategy of `STRATEGIES` with this name.

    Raises:
      UserError: if the name is unknown.
    """
    return lookup("strategy", STRATEGIES, name, "strategy")(devices)


def unreplicate(tree: Any) -> Any:
    """Return the copy of every array on this process's first device."""
    return _remove_axis(jax.tree.map(lambda leaf: leaf.addressable_shards[0].data, tree))


@jax.jit  # compiles one program for the tree instead of one per shape
def _remove_axis(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[0], tree)
