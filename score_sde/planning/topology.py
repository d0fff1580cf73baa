"""Topologies to compile for without their hardware: TPU slices, with the compiler in libtpu, and virtual CPUs."""

import math
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import jax

from score_sde.errors import UserError, lookup


class Chip(NamedTuple):
    """Peak rates and sizes of a chip; each chip is one JAX device."""

    flops: float  # FLOP/s in bfloat16; XLA multiplies float32 at the same rate with its default precision
    memory: float  # bytes
    bandwidth: float  # of the memory, bytes/s
    interconnect: float  # out of a chip over all its links, bytes/s
    rank: int  # dimensions of the torus
    options: dict[str, str]  # arguments of the topology for the compiler


# Peak rates, HBM capacity and bandwidth, and interchip interconnect. v5e, v6e: cloud.google.com/tpu/docs/v5e and v6e.
# v5p: reports of its announcement. v4: the bandwidth and interconnect were not checked against its page.
CHIPS = {
    "v4": Chip(275e12, 32 * 2**30, 1228e9, 2400e9 / 8, 3, {"chip_config_name": "megacore"}),
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 1600e9 / 8, 2, {}),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 4800e9 / 8, 3, {}),
    "v6e": Chip(918e12, 32 * 2**30, 1640e9, 3200e9 / 8, 2, {}),
}


class Topology(NamedTuple):
    """Devices to compile for."""

    name: str
    devices: list[jax.Device]
    chip: Chip | None  # None for CPUs, whose rates are unknown


def parse_topology(topology: str) -> Topology:
    """Return the devices of a topology such as "v5e:16x16", "v4:2x2x4" or "cpu:8".

    Raises:
      UserError: if there is no such chip or shape, or if libtpu is not installed.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", topology)
    if not match:
        raise UserError(
            f"topology: expected a chip and a shape, as in v5e:4x4 or cpu:8, got {topology!r}; the chips are "
            f"{', '.join(CHIPS)} and cpu",
            "topology=v5e:4x4",
        )
    kind, shape = match.group(1), [int(size) for size in match.group(2).split("x")]
    if 0 in shape:
        raise UserError(f"topology {topology} has no devices", "topology")
    if kind == "cpu":
        return Topology(topology, _virtual(math.prod(shape)), None)
    chip = lookup("chip", CHIPS, kind, "topology")
    if len(shape) != chip.rank:
        example = "x".join(["2"] * chip.rank)
        raise UserError(
            f"topology {topology}: {kind} slices have {chip.rank} dimensions, as in {kind}:{example}", "topology"
        )
    even = [size + size % 2 for size in shape[:2]] + shape[2:]
    if any(size % 2 for size in shape[:2] if size > 1):  # libtpu's rule
        raise UserError(
            f"topology: expected even sizes in the first two dimensions, since a host has 2x2 chips, got {topology!r}; "
            "slices with one host also have 1x1, 1x2 or 1x4 chips in them",
            f"topology={kind}:{'x'.join(map(str, even))}",
        )
    return Topology(topology, _slice(topology, chip), chip)


def _virtual(number: int) -> list[jax.Device]:
    devices = jax.devices("cpu")
    if len(devices) < number:
        raise UserError(
            f"topology cpu:{number}: JAX has only {len(devices)} CPU devices here; set the environment variable "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={number}"
        )
    return devices[:number]


def _slice(topology: str, chip: Chip) -> list[jax.Device]:
    from jax.experimental import topologies

    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no metadata server
    # The lock of libtpu is for programs that use a TPU. A plan uses none, and another program may hold the lock.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    try:
        with silence():
            description = topologies.get_topology_desc(platform="tpu", topology_name=topology, **chip.options)
    except Exception as error:  # the plugin raises its own kinds
        reason = str(error).split("\n")[0]
        if any(words in reason.lower() for words in ("libtpu", "not found", "not installed")):
            reason = f"{reason}: a plan needs libtpu, but no TPU (pip install libtpu)"
        raise UserError(f"topology {topology}: {reason}", "topology") from error
    return list(description.devices)


@contextmanager
def hide_host_flags(target: Topology) -> Iterator[None]:
    """Hide XLA_FLAGS from the compiler of a TPU; they are for this machine's XLA.

    libtpu reads them at its first compilation, and ends the process at a flag that it does not know.
    """
    flags = os.environ.pop("XLA_FLAGS", None) if target.chip else None
    try:
        yield
    finally:
        if flags is not None:
            os.environ["XLA_FLAGS"] = flags


@contextmanager
def silence() -> Iterator[None]:
    """Discard what libtpu writes to stderr when it finds no TPU; it bypasses Python's sys.stderr."""
    sys.stderr.flush()
    original = os.dup(2)
    with open(os.devnull, "w") as devnull:
        os.dup2(devnull.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(original, 2)
        os.close(original)
