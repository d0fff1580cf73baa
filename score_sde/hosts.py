"""Several processes that run one program, each with its own devices: TPU pods, Slurm, or by hand."""

import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from score_sde.errors import UserError


def start(coordinator: str = "", num_processes: int = 0, process_id: int = -1) -> None:
    """Joins the other processes, if there are any; call it before anything else touches JAX.

    Args:
      coordinator: host:port of process 0; "" leaves all three to the cluster's environment (Slurm, TPU pods, Open MPI),
        and without one there is one process.
      num_processes: how many there are.
      process_id: which this is, from 0.

    Raises:
      UserError: some of the three are given, but not all, or they don't fit.
    """
    given = (bool(coordinator), num_processes > 0, process_id >= 0)
    if any(given) and not all(given):
        raise UserError(
            "several processes need all of --coordinator=host:port, --num_processes and --process_id; in Slurm and on "
            "TPU pods none of them"
        )
    if all(given):
        if process_id >= num_processes:
            raise UserError(f"--process_id={process_id} of --num_processes={num_processes}: they are counted from 0")
        jax.distributed.initialize(coordinator, num_processes, process_id)
    elif in_cluster(os.environ):
        jax.distributed.initialize()


def in_cluster(environment: Mapping[str, str]) -> bool:
    """Whether a cluster's environment says that this is one of several processes."""
    counted = (environment.get(name, "1") for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"))
    pod = "," in environment.get("TPU_WORKER_HOSTNAMES", "") or "," in environment.get("TPU_PROCESS_ADDRESSES", "")
    stepped = "SLURM_STEP_ID" in environment or "SLURM_NTASKS" not in environment  # under srun, not in sbatch's shell
    return pod or (stepped and any(number.isdigit() and int(number) > 1 for number in counted))


def first() -> bool:
    """Whether this process writes logs and pictures: one does."""
    return jax.process_index() == 0


def wait(name: str) -> None:
    """Until every process has come here; the name is this place's own."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def my_rows(rows: int) -> slice:
    """This process's part of so many rows, in order of the processes, which divide them."""
    each = rows // jax.process_count()
    return slice(jax.process_index() * each, (jax.process_index() + 1) * each)


def all_rows(mine: Any) -> Any:
    """Every process's arrays, one behind the other along the first axis, on every host."""
    if jax.process_count() == 1:
        return jax.tree.map(np.asarray, mine)
    return multihost_utils.process_allgather(mine, tiled=True)


def devices() -> list[jax.Device]:
    """All devices, those of a process together, in order of the processes."""
    return sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
