"""Several processes that run one program, each with its own devices: TPU pods, Slurm, or by hand."""

import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from score_sde.errors import UserError

_LOST = threading.Event()


def start(coordinator: str = "", num_processes: int = 0, process_id: int = -1, cluster: bool = False) -> None:
    """Joins the other processes, if there are any; call it before anything else touches JAX.

    Args:
      coordinator: host:port of process 0; "" leaves all three to the cluster's environment, as of `in_cluster`, and
        without one there is one process.
      num_processes: how many there are.
      process_id: which this is, from 0.
      cluster: join what JAX finds in the environment or at the cloud's metadata server, also where `in_cluster` sees
        nothing.

    Raises:
      UserError: some of the three are given, but not all, or they don't fit; or there is no cluster to join.
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
    elif cluster or in_cluster(os.environ):
        try:
            jax.distributed.initialize()
        except (RuntimeError, ValueError) as error:
            reason = str(error).split("\n")[0]
            raise UserError(
                f"JAX finds no cluster to join here: {reason} (give --coordinator, --num_processes and --process_id)"
            ) from error


def in_cluster(environment: Mapping[str, str]) -> bool:
    """Whether the environment says that this is one of several processes, of Slurm's srun or of a pod's machines."""
    pod = "," in environment.get("TPU_WORKER_HOSTNAMES", "") or "," in environment.get("TPU_PROCESS_ADDRESSES", "")
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1") if "SLURM_STEP_ID" in environment else "1"  # not sbatch's own
    return pod or (tasks.isdigit() and int(tasks) > 1)


def first() -> bool:
    """Whether this process writes logs and pictures: one does."""
    return jax.process_index() == 0


def wait(name: str) -> None:
    """Until every process has come here; the name is this place's own."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def any_of(answer: bool) -> bool:
    """Whether any process says so; all have to ask."""
    return bool(np.any(all_rows(np.array([answer]))))


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


def replicate(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Copies every array to each of this process's devices, along a new leading axis, as `jax.pmap` places them.

    Any other placement, or another name of the axis, would compile a train step a second time at its second call.
    """
    sharding = NamedSharding(Mesh(np.array(devices), ("devices",)), PartitionSpec("devices"))
    return jax.tree.map(lambda leaf: jax.device_put(jnp.stack([leaf] * len(devices)), sharding), tree)


def lost() -> bool:
    """Whether another process of this run has ended without a word."""
    return _LOST.is_set()
