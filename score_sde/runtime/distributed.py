"""Multi-process runs on TPU pods, in Slurm, or started by hand."""

import ctypes
import json
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

JOIN_TIMEOUT = 40  # seconds to wait for the other processes at the start
HEARTBEAT_TIMEOUT = 40  # seconds without a heartbeat after which a process counts as lost
CONNECTION_ERRORS = ("Gloo", "NCCL", "UNAVAILABLE", "heartbeat", "Barrier failed", "Connection closed by peer")

_PEER_LOST = threading.Event()
_EXIT_LOCK = threading.Lock()
_JOIN_HINT: list[str] = []  # likely reason of an abort, while joining


def initialize(coordinator: str = "", num_processes: int = 0, process_id: int = -1, cluster: bool = False) -> None:
    """Join the other processes, if there are any; call this before anything else touches JAX.

    Args:
      coordinator: Address of process 0, host:port. Without it all three come from the cluster's environment
        (`in_cluster`), and outside of a cluster there is one process.
      num_processes: Number of processes.
      process_id: Index of this process, from 0.
      cluster: Whether to join the cluster that JAX detects from the environment or the cloud's metadata server, even
        if `in_cluster` detects none.

    Raises:
      UserError: if only some of the three are given, if they are inconsistent, if the port is in use, or if there is
        no cluster to join. If the other processes do not join in time, the process exits with a message.
    """
    given = {"coordinator": bool(coordinator), "num_processes": num_processes > 0, "process_id": process_id >= 0}
    if any(given.values()) and not all(given.values()):
        raise UserError(
            "several processes need all of coordinator (host:port), num_processes and process_id, or none of them in "
            f"Slurm and on TPU pods; got {coordinator!r}, {num_processes} and {process_id}",
            *[name for name, is_given in given.items() if not is_given][:1],
        )
    if all(given.values()):
        if process_id >= num_processes:
            raise UserError(
                f"process_id: expected 0 <= process_id < num_processes, got process_id={process_id} and "
                f"num_processes={num_processes}",
                "process_id",
                "num_processes",
            )
        _check_address(coordinator, process_id)
        hint = (
            f"process {process_id} of {num_processes} waited {JOIN_TIMEOUT} s for the others at {coordinator} (all "
            "processes need the same num_processes and coordinator, must reach process 0 there, and must start within "
            "that time)"
        )
        try:
            _join(
                hint,
                coordinator_address=coordinator,
                num_processes=num_processes,
                process_id=process_id,
                initialization_timeout=JOIN_TIMEOUT,
            )
        except (RuntimeError, ValueError) as error:
            exit_with_message(f"{hint}: {_first_line(error)}")
    elif cluster or in_cluster(os.environ):
        try:
            _join("JAX can't join the cluster's other processes")
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"JAX finds no cluster to join: {_first_line(error)}; give coordinator, num_processes and process_id",
                "coordinator",
            ) from error


def _join(hint: str, **options: Any) -> None:
    """Call `jax.distributed.initialize` so that an abort by JAX, now or after the loss of a process, prints a message.

    JAX's client aborts from a thread without Python, so only a signal handler at the level of C can print it.
    """
    ctypes.CDLL(None).signal(signal.SIGABRT, _ON_ABORT)
    _JOIN_HINT.append(hint)
    jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT, **options)
    _JOIN_HINT.clear()


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _ON_ABORT(number: int) -> None:
    if _JOIN_HINT:
        exit_with_message(_JOIN_HINT[0])
    _exit_after_peer_loss("JAX printed the reason above")


def _check_address(coordinator: str, process_id: int) -> None:
    """Raise UserError unless the address is a host:port and, on process 0, the port is free.

    JAX's service does not survive a port that is in use.
    """
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise UserError(
            f"coordinator: expected host:port with a port from 1 to 65535, got {coordinator!r}", "coordinator"
        )
    if process_id > 0:
        return
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    try:
        with socket.create_server(("", int(port)), family=family, dualstack_ipv6=family == socket.AF_INET6):
            pass
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise UserError(
            f"coordinator: port {port} of {coordinator} can't be opened on this machine: {reason}", "coordinator"
        ) from error


@contextmanager
def exit_together() -> Iterator[None]:
    """End this process soon after an error in the block, so that the other processes do not wait for it."""
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1:
            raise
        if is_connection_error(error):
            _exit_after_peer_loss(error)
        if isinstance(error, UserError):
            report(f"launch.py: {error}")
        else:
            traceback.print_exc()
        with suppress(Exception):  # either all processes fail with this error, or the others notice this one's end
            not_none(distributed.global_state.client).wait_at_barrier("failed", 10_000)
        _exit()


def is_connection_error(error: BaseException) -> bool:
    """Return whether an error means that another process can no longer be reached."""
    if jax.process_count() > 1:
        cause: BaseException | None = error
        while cause is not None and not _PEER_LOST.is_set():
            if any(words in str(cause) for words in CONNECTION_ERRORS):
                _PEER_LOST.set()
            cause = cause.__cause__ or cause.__context__
    return _PEER_LOST.is_set()


def _exit_after_peer_loss(reason: Any) -> None:
    """End this process after the loss of another one: neither collectives nor JAX's shutdown would return."""
    _PEER_LOST.set()
    exit_with_message(
        f"another process of this run has ended or can't be reached ({_first_line(reason)}); the same commands resume "
        "from the last checkpoint"
    )


def exit_with_message(message: str) -> NoReturn:
    """Print a message and end the program at once, where its threads would not let it end."""
    with _EXIT_LOCK:  # only one thread prints
        report(f"launch.py: {message}")
        _exit()


def _exit() -> NoReturn:
    sys.stdout.flush()
    os._exit(2)


def _first_line(error: Any) -> str:
    return str(error).split("\n")[0]


def in_cluster(environment: Mapping[str, str]) -> bool:
    """Return whether the environment variables describe one of several processes of Slurm's srun or a TPU pod."""
    pod = "," in environment.get("TPU_WORKER_HOSTNAMES", "") or "," in environment.get("TPU_PROCESS_ADDRESSES", "")
    # Only a step has several processes; sbatch's own shell has no step.
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1") if "SLURM_STEP_ID" in environment else "1"
    return pod or (tasks.isdigit() and int(tasks) > 1)


def is_main_process() -> bool:
    """Return whether this is the main process, the only one that writes logs and images."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait until every process has reached the barrier of this unique name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def any_process(flag: bool) -> bool:
    """Return whether the flag is set on any process; every process must call this."""
    return bool(np.any(all_gather(np.array([flag]))))


def check_equal(values: Mapping[str, Any], what: str) -> None:
    """Raise UserError on every process if JSON-serializable values differ between processes; names what differs."""
    if jax.process_count() == 1:
        return
    text = np.frombuffer(json.dumps(values, sort_keys=True, default=str).encode(), np.uint8)
    lengths = all_gather(np.array([len(text)]))
    rows = all_gather(np.pad(text, (0, lengths.max() - len(text)))[None])
    first, *others = (json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True))
    for number, other in enumerate(others, 1):
        if names := sorted(name for name in first.keys() | other.keys() if first.get(name) != other.get(name)):
            different = "; ".join(f"{name}: {first.get(name)} and {other.get(name)}" for name in names)
            raise UserError(
                f"expected the same {what} on all processes, but process 0 and process {number} differ in {different}"
            )


def local_slice(rows: int) -> slice:
    """Return this process's slice of a batch; the number of processes must divide its number of rows."""
    size = rows // jax.process_count()
    return slice(jax.process_index() * size, (jax.process_index() + 1) * size)


def all_gather(tree: Any) -> Any:
    """Return the arrays of all processes, concatenated along the first axis, on every host."""
    if jax.process_count() == 1:
        return jax.tree.map(np.asarray, tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def devices() -> list[jax.Device]:
    """Return all devices, sorted by process and then by id."""
    return sorted(jax.devices(), key=lambda device: (device.process_index, device.id))


def replicate(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Copy every array to each of this process's devices, along a new leading axis, with the sharding of `jax.pmap`.

    Another sharding, or another name of the axis, would compile a train step again at its second call.
    """
    sharding = NamedSharding(Mesh(np.array(devices), ("devices",)), PartitionSpec("devices"))
    rows = _add_axis(tree)
    shards = [jax.device_put(rows, device) for device in devices]

    def join(*leaves):
        return jax.make_array_from_single_device_arrays((len(devices), *leaves[0].shape[1:]), sharding, leaves)

    return jax.tree.map(join, *shards)


@jax.jit  # compiles one program for the tree instead of one per shape
def _add_axis(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], tree)
