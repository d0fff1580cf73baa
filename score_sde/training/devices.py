"""A train step on many devices, of one process or of several: every device with the whole state, or with a shard.

`pmap` keeps a copy of the state on each device. `fsdp` cuts every array of the state over the devices, and the compiler
gathers what a step needs when it needs it: less memory, more traffic, the same numbers but for rounding.
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


class Layout(NamedTuple):
    """Where the state and the batches lie."""

    axis_name: str | None  # for `make_train_step`
    gather: Callable[[Any], Any]  # likewise: parameters -> whole on every device, inside a compiled step
    place: Callable[[Any], Any]  # a state on the host -> on the devices
    put: Callable[[Any], Any]  # this process's rows of batches, (steps, rows, ...), on the host -> on its devices
    # (train_step, a state's shapes) -> (placed state, put batches) -> (state, metrics): means over the steps; the
    # state's buffers are donated
    compile: Callable[..., Callable]
    # (train_step, a state's shapes, the shapes of global batches (steps, batch, ...)) -> what compile compiles, lowered
    lower: Callable[..., Any]
    whole: Callable[[Any], Any]  # a part of a placed state -> arrays on this process's first device
    to_save: Callable[[Any], Any]  # a placed state -> arrays that Orbax saves, from all processes together


def pmap_layout(devices: Sequence[jax.Device]) -> Layout:
    """Data parallel: the state on every device, the batch split, gradients averaged."""
    mine = [device for device in devices if device.process_index == jax.process_index()]
    mesh = Mesh(np.array(devices), (AXIS,))

    split_first = NamedSharding(Mesh(np.array(mine), (AXIS,)), PartitionSpec(AXIS))

    def put(batches):  # (steps, rows, ...) -> (devices, steps, rows / devices, ...)
        def one(leaf):
            steps, rows = leaf.shape[:2]
            parts = leaf.reshape(steps, len(mine), rows // len(mine), *leaf.shape[2:])
            return jax.device_put(parts.swapaxes(0, 1), split_first)

        return jax.tree.map(one, batches)

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

    def to_save(state):
        if len(mine) == len(devices):
            return unreplicate(state)
        everywhere = NamedSharding(mesh, PartitionSpec())
        return jax.tree.map(
            lambda leaf: jax.make_array_from_single_device_arrays(
                leaf.shape[1:], everywhere, [shard.data[0] for shard in leaf.addressable_shards]
            ),
            state,
        )

    return Layout(
        AXIS, lambda params: params, partial(replicate, devices=mine), put, compile_steps, lower, unreplicate, to_save
    )


def fsdp_layout(devices: Sequence[jax.Device]) -> Layout:
    """The state in shards: each array cut along its longest axis that the devices divide; small ones are copied."""
    mesh = Mesh(np.array(devices), (AXIS,))

    def sharding_of(leaf):
        fitting = [axis for axis, size in enumerate(leaf.shape) if size and size % len(devices) == 0]
        if not fitting:
            return NamedSharding(mesh, PartitionSpec())
        axis = max(fitting, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, AXIS))

    def place(state):
        def one(leaf):
            leaf = np.asarray(leaf)
            return jax.make_array_from_callback(leaf.shape, sharding_of(leaf), lambda index: leaf[index])

        return jax.tree.map(one, state)

    everywhere = NamedSharding(mesh, PartitionSpec())
    rows = NamedSharding(mesh, PartitionSpec(None, AXIS))

    def compile_steps(train_step, state):
        shardings = jax.tree.map(sharding_of, state)
        return jax.jit(
            partial(scan_steps, train_step),
            in_shardings=(shardings, rows),
            out_shardings=(shardings, everywhere),
            donate_argnums=0,
        )

    collect = jax.jit(lambda tree: tree, out_shardings=everywhere)

    def whole(tree):
        return jax.tree.map(lambda leaf: leaf.addressable_data(0), collect(tree))

    def gather(
        params,
    ):  # else the compiler may gather the batch's activations, which are larger, to the weights' shards
        return jax.lax.with_sharding_constraint(params, everywhere)

    def put(batches):
        return jax.tree.map(partial(jax.make_array_from_process_local_data, rows), batches)

    def lower(train_step, state, batches):
        return compile_steps(train_step, state).lower(state, batches)

    return Layout(None, gather, place, put, compile_steps, lower, whole, lambda state: state)


LAYOUTS = {"pmap": pmap_layout, "fsdp": fsdp_layout}


def make_layout(strategy: str, devices: Sequence[jax.Device]) -> Layout:
    """The layout of a strategy, a key of `LAYOUTS`."""
    return lookup("strategy", LAYOUTS, strategy, "strategy")(devices)


def unreplicate(tree: Any) -> Any:
    """The copy of every array on this process's first device."""
    return jax.tree.map(lambda leaf: leaf.addressable_shards[0].data[0], tree)
