"""`--mode=plan`: what a train step takes on machines that aren't here, from compiling it for them.

All that is printed is what the compiler says of the program that training would run, and bounds that follow from it and
from the chips' published figures: nothing has run. A real step is slower than its bound.
"""

import json
import math
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from score_sde.errors import UserError, not_none
from score_sde.experiment import Experiment
from score_sde.planning.collectives import collectives
from score_sde.planning.flops import flops_of_repetitions
from score_sde.planning.topology import Machine, find
from score_sde.training.devices import make_layout
from score_sde.training.setup import build_train_step, check_divides

CLOSE = 0.9  # of the memory: near enough to its limit
INTERVAL = 10.0  # seconds between two lines of progress
COMPILATIONS = 6  # to look for the largest batch, at most


class Compiled(NamedTuple):
    """What the compiler says of a train step; bytes and FLOPs are of a device."""

    arguments: float
    temporaries: float
    outputs: float
    program: float
    flops: float
    traffic: float  # bytes read and written, of a loop those of one time: at least
    collectives: dict[str, float]  # kind -> bytes

    @property
    def memory(self) -> float:
        """The state's buffers are donated, so that outputs lie where the arguments lay."""
        return self.arguments + self.temporaries + self.outputs + self.program


def plan(experiment: Experiment, topology: str, search: bool = False) -> dict[str, Any]:
    """Compiles the train step for a topology.

    Args:
      experiment: what would train.
      topology: as of `topology.find`.
      search: also look for the largest batch a device can take.

    Returns:
      The figures, as `text` prints them.

    Raises:
      UserError: there is no such topology, the batch doesn't divide among its devices, or there is nothing to train.
    """
    if not experiment.training.trainable:
        raise UserError("this network is exact: there is nothing to train, and nothing to plan")
    machine = find(topology)
    number = len(machine.devices)
    check_divides(experiment.training.batch_size, number, experiment.training.grad_accum_steps)
    state = shapes_of_state(experiment)
    each = experiment.training.batch_size // number
    compiled = compile_step(experiment, machine, each)
    figures = {
        "topology": topology,
        "devices": number,
        "strategy": experiment.training.strategy,
        "batch_size": experiment.training.batch_size,
        "batch_a_device": each,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "gradient_bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.params)),
        "fits": compiled is not None,
    }
    if compiled is not None:
        figures |= _of_a_step(compiled, machine, experiment)
    if machine.chip is not None and search:
        figures["largest_batch_a_device"] = _largest(experiment, machine, each, compiled)
    return figures


def compile_step(experiment: Experiment, machine: Machine, each: int) -> Compiled | None:
    """The train step of a batch of so many a device, compiled; None where it doesn't fit into the devices' memory."""
    layout = make_layout(experiment.training.strategy, machine.devices)
    levels = (
        256 if len(experiment.model.event_shape) == 3 else None
    )  # the data needn't be here; more levels cost nothing
    step = build_train_step(experiment.training, levels, layout.axis_name, layout.gather)
    state, batches = shapes_of_state(experiment), shapes_of_batches(experiment, each * len(machine.devices), levels)
    try:
        with announced(f"tracing the train step of {each} examples a device"):
            traced = layout.lower(step, state, batches)
        with announced(f"compiling the train step of {each} examples a device for {machine.name}"):
            compiled = traced.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error) or "Ran out of memory" in str(error):
            return None
        raise
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), batches)
    with announced("counting the train step's multiplications"):
        repeated = flops_of_repetitions(build_train_step(experiment.training, levels, None), state, one) / len(
            machine.devices
        )
    return Compiled(
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        memory.output_size_in_bytes - memory.alias_size_in_bytes,
        memory.generated_code_size_in_bytes,
        cost.get("flops", math.nan) + repeated,
        cost.get("bytes accessed", math.nan),
        collectives(compiled.as_text()),
    )


@contextmanager
def announced(stage: str, interval: float = INTERVAL) -> Iterator[None]:
    """Prints the stage and its elapsed seconds to stderr every few seconds within the block."""
    ended, begun = threading.Event(), time.monotonic()

    def announce() -> None:
        while not ended.wait(interval):
            print(f"plan: {stage}, {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)

    thread = threading.Thread(target=announce, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def shapes_of_state(experiment: Experiment) -> Any:
    """The train state, without memory."""

    return jax.eval_shape(experiment.training.init_state)


def shapes_of_batches(experiment: Experiment, batch: int, levels: int | None) -> dict[str, jax.ShapeDtypeStruct]:
    """Of one step a call: what a step takes doesn't depend on how many are called at once."""
    image = jax.ShapeDtypeStruct(
        (1, batch, *experiment.model.event_shape), jnp.float32 if levels is None else jnp.uint8
    )
    number = jax.ShapeDtypeStruct((1, batch), jnp.int32)
    return {"image": image, "label": number, "index": number}


def _of_a_step(compiled: Compiled, machine: Machine, experiment: Experiment) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "argument_bytes": compiled.arguments,
        "temporary_bytes": compiled.temporaries,
        "output_bytes": compiled.outputs,
        "program_bytes": compiled.program,
        "memory_bytes": compiled.memory,
        "flops_a_device": compiled.flops,
        "flops_a_step": compiled.flops * len(machine.devices),
        "collective_bytes": compiled.collectives,
    }
    if machine.chip is None:
        return figures
    chip, number = machine.chip, len(machine.devices)
    bounds = {
        "compute": compiled.flops / chip.flops,
        "memory": compiled.traffic / chip.bandwidth,
        "interconnect": _sent(compiled.collectives, number) / chip.interconnect,
    }
    seconds = max(bounds.values())
    hours = seconds * experiment.training.schedule.num_steps / 3600
    return figures | {
        "device_memory_bytes": chip.memory,
        "fits": compiled.memory <= chip.memory,
        "bounds_seconds": bounds,
        "bound_by": max(bounds, key=bounds.__getitem__),
        "images_per_second_at_most": experiment.training.batch_size / seconds,
        "num_steps": experiment.training.schedule.num_steps,
        "hours_at_least": hours,
        "chip_hours_at_least": hours * number,
    }


def _sent(sizes: Mapping[str, float], number: int) -> float:
    """Bytes that a chip sends at least; an all-reduce is a reduce-scatter and an all-gather, of all but its part."""
    share = (number - 1) / number
    # The result of a reduce-scatter is a part.
    times = {"all-reduce": 2 * share, "reduce-scatter": number * share, "collective-permute": 1.0}
    return sum(times.get(kind, share) * size for kind, size in sizes.items())


def _largest(experiment: Experiment, machine: Machine, each: int, compiled: Compiled | None) -> dict[str, Any]:
    """The largest batch a device can take, as far as a few compilations find it: memory is nearly a line in the batch.

    Returns:
      {"fits": a batch that fits, 0 for none, "too_large": one that doesn't, None where none was met}.
    """
    grain, limit = experiment.training.grad_accum_steps, not_none(machine.chip).memory
    used = {0: 0.0, each: math.inf if compiled is None else compiled.memory}
    for _ in range(COMPILATIONS):
        fitting = sorted(batch for batch, size in used.items() if size <= limit)
        too_large = min((batch for batch, size in used.items() if size > limit), default=None)
        low = fitting[-1]
        if used[low] > CLOSE * limit or (too_large is not None and too_large - low <= max(grain, low // 16)):
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
        found = compile_step(experiment, machine, guess)
        used[guess] = math.inf if found is None else found.memory
        print(f"compiled for {guess} a device: {used[guess] / 2**30:.2f} GiB", file=sys.stderr)
    return {
        "fits": max(batch for batch, size in used.items() if size <= limit),
        "too_large": min((batch for batch, size in used.items() if size > limit), default=None),
    }


def text(figures: Mapping[str, Any]) -> str:
    """The figures for people."""
    gib, mib = 2.0**30, 2.0**20
    lines = [
        f"{figures['topology']}: {figures['devices']} devices, {figures['strategy']}; {figures['parameters']:,} "
        f"parameters; batch {figures['batch_size']}, {figures['batch_a_device']} a device"
    ]
    if "memory_bytes" not in figures:
        lines.append("this does not fit into the devices' memory")
    else:
        parts = ", ".join(
            f"{name} {figures[f'{key}_bytes'] / gib:.2f}"
            for name, key in (
                ("arguments", "argument"),
                ("temporaries", "temporary"),
                ("output", "output"),
                ("program", "program"),
            )
        )
        of = f" of {figures['device_memory_bytes'] / gib:.0f}" if "device_memory_bytes" in figures else ""
        lines.append(f"memory a device: {figures['memory_bytes'] / gib:.2f}{of} GiB ({parts})")
        if "device_memory_bytes" in figures:
            lines.append("it fits" if figures["fits"] else "it does not fit")
        lines.append(
            f"{figures['flops_a_step'] / 1e12:.3f} TFLOP a step, {figures['flops_a_device'] / 1e12:.3f} a device"
        )
        sizes = ", ".join(f"{kind} {size / mib:.1f} MiB" for kind, size in figures["collective_bytes"].items())
        lines.append(f"collectives a step: {sizes or 'none'}; the gradients are {figures['gradient_bytes'] / mib:.1f}")
    if "bounds_seconds" in figures:
        bounds = ", ".join(f"{name} {1e3 * seconds:.2f}" for name, seconds in figures["bounds_seconds"].items())
        lines += [
            f"a step takes at least (ms): {bounds}; it is bound by {figures['bound_by']}",
            f"at most {figures['images_per_second_at_most']:,.0f} images/s; {figures['num_steps']:,} steps take at "
            f"least {figures['hours_at_least']:.1f} hours, {figures['chip_hours_at_least']:.0f} chip-hours",
        ]
    if "largest_batch_a_device" in figures:
        found = figures["largest_batch_a_device"]
        beyond = f", {found['too_large']} does not" if found["too_large"] else ""
        lines.append(f"the largest batch a device that was found to fit is {found['fits']}{beyond}")
    return "\n".join(lines)


def as_json(figures: Mapping[str, Any]) -> str:
    """The figures for programs."""
    return json.dumps(figures, indent=2)
