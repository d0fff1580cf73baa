"""Several processes that run one program, each with its own devices: TPU pods, Slurm, or by hand."""

import ctypes
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import distributed
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from score_sde.errors import UserError, not_none
from score_sde.runtime.disk import report

JOINING, HEARTBEAT = 40, 40  # seconds: of waiting for the others at the start, and for a sign of life later
UNREACHED = ("Gloo", "NCCL", "UNAVAILABLE", "heartbeat", "Barrier failed", "Connection closed by peer")

_LOST = threading.Event()
_LEAVING = threading.Lock()
_HINT: list[str] = []  # why an abort while joining may be


def initialize(coordinator: str = "", num_processes: int = 0, process_id: int = -1, cluster: bool = False) -> None:
    """Joins the other processes, if there are any; call it before anything else touches JAX.

    Args:
      coordinator: host:port of process 0; "" leaves all three to the cluster's environment, as of `in_cluster`, and
        without one there is one process.
      num_processes: how many there are.
      process_id: which this is, from 0.
      cluster: join what JAX finds in the environment or at the cloud's metadata server, also where `in_cluster` sees
        nothing.

    Raises:
      UserError: some of the three are given, but not all, or they don't fit; the port is in use; or there is no
        cluster to join. Where the others don't come in time, the process ends with a sentence.
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
        _check_address(coordinator, process_id)
        hint = (
            f"process {process_id} of {num_processes} waited {JOINING} s for the others at {coordinator} (all take the "
            "same --num_processes and --coordinator, at which process 0 can be reached, and start within that time)"
        )
        try:
            _join(
                hint,
                coordinator_address=coordinator,
                num_processes=num_processes,
                process_id=process_id,
                initialization_timeout=JOINING,
            )
        except (RuntimeError, ValueError) as error:
            _leave(f"{hint}: {_first_line(error)}")
    elif cluster or in_cluster(os.environ):
        try:
            _join("JAX can't join the cluster's other processes")
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"JAX finds no cluster to join here: {_first_line(error)} (give --coordinator, --num_processes and "
                "--process_id)"
            ) from error


def _join(hint: str, **options: Any) -> None:
    """`jax.distributed.initialize`, where JAX's abort, then and at the loss of a process later, ends in a sentence.

    Its client aborts from a thread without Python, so only a handler at C's level has the last word.
    """
    ctypes.CDLL(None).signal(signal.SIGABRT, _ABORTED)
    _HINT.append(hint)
    jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT, **options)
    _HINT.clear()


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _ABORTED(number: int) -> None:
    if _HINT:
        _leave(_HINT[0])
    _leave_the_lost("JAX says why above")


def _check_address(coordinator: str, process_id: int) -> None:
    """Refuses what is no host:port, and on process 0 a port that is in use, which JAX's service does not survive."""
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator={coordinator}: expected host:port with a port from 1 to 65535")
    if process_id > 0:
        return
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    try:
        with socket.create_server(("", int(port)), family=family, dualstack_ipv6=family == socket.AF_INET6):
            pass
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise UserError(f"port {port} of --coordinator={coordinator} can't be opened here: {reason}") from error


@contextmanager
def abort_together() -> Iterator[None]:
    """Within the block, an error of one of several processes ends it soon, without waiting for the others."""
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1:
            raise
        if another_ended(error):
            _leave_the_lost(error)
        if isinstance(error, UserError):
            report(f"launch.py: {error}")
        else:
            traceback.print_exc()
        with suppress(Exception):  # all have failed alike, or the others learn from this one's end
            not_none(distributed.global_state.client).wait_at_barrier("failed", 10_000)
        _exit()


def another_ended(error: BaseException) -> bool:
    """Returns whether an error says that another process can't be reached any more."""
    if jax.process_count() > 1:
        seen: BaseException | None = error
        while seen is not None and not _LOST.is_set():
            if any(words in str(seen) for words in UNREACHED):
                _LOST.set()
            seen = seen.__cause__ or seen.__context__
    return _LOST.is_set()


def _leave_the_lost(status: Any) -> None:
    """Ends this process, whose partner is gone: neither collectives nor JAX's own end come back."""
    _LOST.set()
    _leave(
        f"another process of this run has ended or can't be reached ({_first_line(status)}); the same commands go on "
        "from the last checkpoint"
    )


def _leave(words: str) -> NoReturn:
    with _LEAVING:  # one thread says it
        report(f"launch.py: {words}")
        _exit()


def _exit() -> NoReturn:
    sys.stdout.flush()
    os._exit(2)


def _first_line(error: Any) -> str:
    return str(error).split("\n")[0]


def in_cluster(environment: Mapping[str, str]) -> bool:
    """Whether the environment says that this is one of several processes, of Slurm's srun or of a pod's machines."""
    pod = "," in environment.get("TPU_WORKER_HOSTNAMES", "") or "," in environment.get("TPU_PROCESS_ADDRESSES", "")
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1") if "SLURM_STEP_ID" in environment else "1"  # not sbatch's own
    return pod or (tasks.isdigit() and int(tasks) > 1)


def is_main_process() -> bool:
    """Whether this process writes logs and pictures: one does."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Until every process has come here; the name is this place's own."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def any_process(answer: bool) -> bool:
    """Whether any process says so; all have to ask."""
    return bool(np.any(all_gather(np.array([answer]))))


def local_slice(rows: int) -> slice:
    """This process's part of so many rows, in order of the processes, which divide them."""
    each = rows // jax.process_count()
    return slice(jax.process_index() * each, (jax.process_index() + 1) * each)


def all_gather(mine: Any) -> Any:
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
