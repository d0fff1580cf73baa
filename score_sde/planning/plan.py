"""`plan` mode: ahead-of-time estimate of memory, FLOPs and communication of a train step on a TPU slice.

The estimate is what the compiler reports for the program that training would run, with lower bounds on the time of a
step from the published peak rates of the chips. Nothing runs, and a real step is slower than its bound.
"""

import json
import math
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from score_sde.errors import UserError, not_none
from score_sde.experiment import Experiment
from score_sde.planning.collectives import collectives
from score_sde.planning.flops import count_repeated_flops
from score_sde.planning.topology import Topology, hide_host_flags, parse_topology
from score_sde.runtime.disk import report
from score_sde.runtime.periodic import call_periodically
from score_sde.training.devices import make_strategy
from score_sde.training.setup import build_train_step, check_divides

NEARLY_FULL = 0.9  # fraction of the memory at which the search for the largest batch ends
MAX_COMPILATIONS = 6  # in the search for the largest batch


class Compiled(NamedTuple):
    """Compiler's report on a train step; bytes and FLOPs are per device."""

    arguments: float
    temporaries: float
    outputs: float
    program: float
    flops: float
    traffic: float  # bytes read and written; a lower bound, because the body of a loop counts once
    collectives: dict[str, float]  # kind -> bytes

    @property
    def memory(self) -> float:
        """Total memory; outputs that reuse the buffers of the donated state count once, as arguments."""
        return self.arguments + self.temporaries + self.outputs + self.program


def plan(experiment: Experiment, topology: str, search: bool = False) -> dict[str, Any]:
    """Compile the train step for a topology and return the estimate.

    Args:
      experiment: Experiment to train.
      topology: Name of the topology, as for `parse_topology`.
      search: Whether to also search for the largest batch per device that fits.

    Returns:
      The estimate, as `text` prints it.

    Raises:
      UserError: if there is no such topology, if its devices can't share the batch evenly, or if there is nothing to
        train.
    """
    if not experiment.training.trainable:
        raise UserError("an analytic network has nothing to train, so there is nothing to plan")
    target = parse_topology(topology)
    num_devices = len(target.devices)
    check_divides(experiment.training.batch_size, num_devices, experiment.training.grad_accum_steps)
    state = shapes_of_state(experiment)
    batch_per_device = experiment.training.batch_size // num_devices
    compiled = compile_step(experiment, target, batch_per_device)
    estimate = {
        "topology": topology,
        "devices": num_devices,
        "strategy": experiment.training.strategy,
        "batch_size": experiment.training.batch_size,
        "batch_per_device": batch_per_device,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "gradient_bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.params)),
        "fits": compiled is not None,
    }
    if compiled is not None:
        estimate |= _step_estimate(compiled, target, experiment)
    if target.chip is not None and search:
        estimate["largest_batch_per_device"] = _largest_batch(experiment, target, batch_per_device, compiled)
    return estimate


def compile_step(experiment: Experiment, target: Topology, batch_per_device: int) -> Compiled | None:
    """Compile the train step for a batch size per device; return None if it exceeds the devices' memory."""
    parallel = make_strategy(experiment.training.strategy, target.devices)
    # A plan reads no data; the number of levels does not change the cost.
    levels = 256 if len(experiment.model.event_shape) == 3 else None
    step = build_train_step(experiment.training, levels, parallel.axis_name, parallel.all_gather_params)
    num_devices = len(target.devices)
    state, batches = shapes_of_state(experiment), shapes_of_batches(experiment, batch_per_device * num_devices, levels)
    try:
        with _log_stage(f"tracing the train step of {batch_per_device} examples per device"):
            traced = parallel.lower(step, state, batches)
        stage = f"compiling the train step of {batch_per_device} examples per device for {target.name}"
        with _log_stage(stage), hide_host_flags(target):
            compiled = traced.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error) or "Ran out of memory" in str(error):
            return None
        raise
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), batches)
    with _log_stage("counting the train step's multiplications"):
        repeated = count_repeated_flops(build_train_step(experiment.training, levels, None), state, batch) / num_devices
    return Compiled(
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        memory.output_size_in_bytes - memory.alias_size_in_bytes,
        memory.generated_code_size_in_bytes,
        cost.get("flops", math.nan) + repeated,
        cost.get("bytes accessed", math.nan),
        collectives(compiled.as_text()),
    )


def _log_stage(stage: str, interval: float = 10.0) -> AbstractContextManager[None]:
    """Print the stage and its elapsed seconds to stderr every `interval` seconds during the block."""
    begun = time.monotonic()
    return call_periodically(lambda: report(f"plan: {stage}, {time.monotonic() - begun:.0f} s"), interval)


def shapes_of_state(experiment: Experiment) -> Any:
    """Return the shapes of the train state, without allocating it."""
    return jax.eval_shape(experiment.training.init_state)


def shapes_of_batches(experiment: Experiment, batch: int, levels: int | None) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of a batch for one train step per call; the cost of a step does not depend on that number."""
    image = jax.ShapeDtypeStruct(
        (1, batch, *experiment.model.event_shape), jnp.float32 if levels is None else jnp.uint8
    )
    integers = jax.ShapeDtypeStruct((1, batch), jnp.int32)
    return {"image": image, "label": integers, "index": integers}


def _step_estimate(compiled: Compiled, target: Topology, experiment: Experiment) -> dict[str, Any]:
    num_devices = len(target.devices)
    estimate: dict[str, Any] = {
        "argument_bytes": compiled.arguments,
        "temporary_bytes": compiled.temporaries,
        "output_bytes": compiled.outputs,
        "program_bytes": compiled.program,
        "memory_bytes": compiled.memory,
        "flops_per_device": compiled.flops,
        "flops_per_step": compiled.flops * num_devices,
        "collective_bytes": compiled.collectives,
    }
    if target.chip is None:
        return estimate
    chip = target.chip
    bounds = {
        "compute": compiled.flops / chip.flops,
        "memory": compiled.traffic / chip.bandwidth,
        "interconnect": _sent_bytes(compiled.collectives, num_devices) / chip.interconnect,
    }
    seconds = max(bounds.values())
    hours = seconds * experiment.training.schedule.num_steps / 3600
    return estimate | {
        "device_memory_bytes": chip.memory,
        "fits": compiled.memory <= chip.memory,
        "bounds_seconds": bounds,
        "bound_by": max(bounds, key=bounds.__getitem__),
        "images_per_second_at_most": experiment.training.batch_size / seconds,
        "num_steps": experiment.training.schedule.num_steps,
        "hours_at_least": hours,
        "chip_hours_at_least": hours * num_devices,
    }


def _sent_bytes(sizes: Mapping[str, float], num_devices: int) -> float:
    """Return a lower bound on the bytes that each chip sends.

    An all-reduce is a reduce-scatter followed by an all-gather; in each, a chip sends all shards except its own.
    """
    fraction = (num_devices - 1) / num_devices
    # The result of a reduce-scatter is one shard, so its size is multiplied by the number of devices.
    factors = {"all-reduce": 2 * fraction, "reduce-scatter": num_devices * fraction, "collective-permute": 1.0}
    return sum(factors.get(kind, fraction) * size for kind, size in sizes.items())


def _largest_batch(
    experiment: Experiment, target: Topology, batch_per_device: int, compiled: Compiled | None
) -> dict[str, Any]:
    """Search for the largest batch per device with a few compilations; memory is nearly affine in the batch size.

    Returns:
      {"fits": largest tried batch that fits, 0 for none, "too_large": smallest one that does not fit, None for none}.
    """
    grain, limit = experiment.training.grad_accum_steps, not_none(target.chip).memory
    used = {0: 0.0, batch_per_device: math.inf if compiled is None else compiled.memory}
    for _ in range(MAX_COMPILATIONS):
        fitting = sorted(batch for batch, size in used.items() if size <= limit)
        too_large = min((batch for batch, size in used.items() if size > limit), default=None)
        low = fitting[-1]
        if used[low] > NEARLY_FULL * limit or (too_large is not None and too_large - low <= max(grain, low // 16)):
            break
        guess = 16 * low if low else not_none(too_large) // 2
        if len(fitting) > 2:
            slope = (used[low] - used[fitting[-2]]) / (low - fitting[-2])
            guess = min(guess, int(low + 0.97 * (limit - used[low]) / slope)) if slope > 0 else guess
        if too_large is not None and not low < guess < too_large:
            guess = (low + too_large) // 2
        guess = max(guess // grain, 1) * grain
        if guess in used:
            break
        result = compile_step(experiment, target, guess)
        used[guess] = math.inf if result is None else result.memory
        report(f"compiled for {guess} per device: {used[guess] / 2**30:.2f} GiB")
    return {
        "fits": max(batch for batch, size in used.items() if size <= limit),
        "too_large": min((batch for batch, size in used.items() if size > limit), default=None),
    }


def text(estimate: Mapping[str, Any]) -> str:
    """Format an estimate for people."""
    gib, mib = 2.0**30, 2.0**20
    lines = [
        f"{estimate['topology']}: {estimate['devices']} devices, {estimate['strategy']}; {estimate['parameters']:,} "
        f"parameters; batch {estimate['batch_size']}, {estimate['batch_per_device']} per device"
    ]
    if "memory_bytes" not in estimate:
        lines.append("this does not fit into the devices' memory")
    else:
        summands = ", ".join(
            f"{name} {estimate[f'{key}_bytes'] / gib:.2f}"
            for name, key in (
                ("arguments", "argument"),
                ("temporaries", "temporary"),
                ("output", "output"),
                ("program", "program"),
            )
        )
        limit = f" of {estimate['device_memory_bytes'] / gib:.0f}" if "device_memory_bytes" in estimate else ""
        lines.append(f"memory per device: {estimate['memory_bytes'] / gib:.2f}{limit} GiB ({summands})")
        if "device_memory_bytes" in estimate:
            lines.append("it fits" if estimate["fits"] else "it does not fit")
        lines.append(
            f"{estimate['flops_per_step'] / 1e12:.3f} TFLOP per step, "
            f"{estimate['flops_per_device'] / 1e12:.3f} per device"
        )
        sizes = ", ".join(f"{kind} {size / mib:.1f} MiB" for kind, size in estimate["collective_bytes"].items())
        gradients = f"the gradients are {estimate['gradient_bytes'] / mib:.1f} MiB"
        lines.append(f"collectives per step: {sizes or 'none'}; {gradients}")
    if "bounds_seconds" in estimate:
        bounds = ", ".join(f"{name} {1e3 * seconds:.2f}" for name, seconds in estimate["bounds_seconds"].items())
        lines += [
            f"lower bounds on a step (ms): {bounds}; the largest is {estimate['bound_by']}",
            f"at most {estimate['images_per_second_at_most']:,.0f} images/s; {estimate['num_steps']:,} steps take at "
            f"least {estimate['hours_at_least']:.1f} hours, {estimate['chip_hours_at_least']:.0f} chip-hours",
        ]
    if "largest_batch_per_device" in estimate:
        largest = estimate["largest_batch_per_device"]
        too_large = f"; {largest['too_large']} does not fit" if largest["too_large"] else ""
        lines.append(f"largest batch per device found to fit: {largest['fits']}{too_large}")
    return "\n".join(lines)


def as_json(estimate: Mapping[str, Any]) -> str:
    """Format an estimate for programs."""
    return json.dumps(estimate, indent=2)
