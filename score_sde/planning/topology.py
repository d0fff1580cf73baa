"""Machines that needn't be here: TPU slices, by the compiler that libtpu brings, and virtual CPU devices."""

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
    """What a chip can do at most; each is one JAX device."""

    flops: float  # bfloat16, a second; XLA multiplies float32 by its default precision at the same rate
    memory: float  # bytes
    bandwidth: float  # of the memory, bytes a second
    interconnect: float  # out of a chip over all its links, bytes a second
    rank: int  # dimensions of the torus
    options: dict[str, str]  # of the topology


# Peak, HBM capacity and bandwidth, interchip interconnect: of v5e and v6e by cloud.google.com/tpu/docs/v5e and v6e, of
# v5p as reported of its announcement; v4's bandwidth and interconnect were not checked against its page.
CHIPS = {
    "v4": Chip(275e12, 32 * 2**30, 1228e9, 2400e9 / 8, 3, {"chip_config_name": "megacore"}),
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 1600e9 / 8, 2, {}),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 4800e9 / 8, 3, {}),
    "v6e": Chip(918e12, 32 * 2**30, 1640e9, 3200e9 / 8, 2, {}),
}


class Machine(NamedTuple):
    """Devices to compile for."""

    name: str
    devices: list[jax.Device]
    chip: Chip | None  # None: a CPU, of which nothing is known


def find(topology: str) -> Machine:
    """The devices of "v5e:16x16", "v4:2x2x4" or "cpu:8".

    Raises:
      UserError: there is no such chip or shape, or libtpu is not installed.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", topology)
    if not match:
        raise UserError(
            f"no topology {topology!r}: give a chip and a shape, --topology=v5e:4x4, of {', '.join(CHIPS)}, or cpu:8"
        )
    kind, shape = match.group(1), [int(size) for size in match.group(2).split("x")]
    if 0 in shape:
        raise UserError(f"--topology={topology} has no devices")
    if kind == "cpu":
        return Machine(topology, _virtual(math.prod(shape)), None)
    chip = lookup("chip", CHIPS, kind, "--topology")
    if len(shape) != chip.rank:
        example = "x".join(["2"] * chip.rank)
        raise UserError(f"--topology={topology}: {kind} slices have {chip.rank} dimensions, as in {kind}:{example}")
    return Machine(topology, _slice(topology, chip), chip)


def _virtual(number: int) -> list[jax.Device]:
    devices = jax.devices("cpu")
    if len(devices) < number:
        raise UserError(
            f"--topology=cpu:{number}: JAX has {len(devices)} CPU devices here (set "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={number})"
        )
    return devices[:number]


def _slice(topology: str, chip: Chip) -> list[jax.Device]:
    from jax.experimental import topologies

    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no metadata server to ask
    # Its lock keeps two programs off one TPU: plans touch none, and any other JAX program here may hold it.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    try:
        with _silence():
            found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **chip.options)
    except Exception as error:  # the plugin's own kinds
        reason = str(error).split("\n")[0]
        if "libtpu" in reason or "not found" in reason.lower():
            reason = f"{reason}: libtpu is needed, no TPU (pip install libtpu, as requirements-tpu.txt does)"
        raise UserError(f"--topology={topology}: {reason}") from error
    return list(found.devices)


@contextmanager
def _silence() -> Iterator[None]:
    """Keeps what libtpu writes to stderr when it finds no TPU; it writes below Python."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
