"""Two processes of four devices each are the run of one process with eight."""

import signal
import socket
import time

import jax
import numpy as np
import pytest

from score_sde.errors import UserError
from score_sde.runtime import distributed
from score_sde.runtime.distributed import in_cluster
from score_sde.training.checkpoints import has_checkpoint, restore_newest
from tests.cli import POINTS, finish, start

STEPS = (*POINTS, "--config.training.num_steps=20", "--config.training.sample_every=20")


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def start_two(workdir, *flags):
    address = f"--coordinator=127.0.0.1:{free_port()}"
    return [start(workdir, *flags, address, "--num_processes=2", f"--process_id={i}", devices=4) for i in range(2)]


@pytest.mark.slow
def test_two_processes_are_one_run(tmp_path):
    """The same parameters, log and pictures, and one of each."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    finish(start(alone, *STEPS, devices=8))
    printed = [finish(process) for process in start_two(together, *STEPS)]
    assert "8 cpu device(s) of 2 processes, batch 8, 1 per device" in printed[0]
    assert "trained 20 steps" in printed[0] and "trained" not in printed[1]
    first, second = restore_newest(alone), restore_newest(together)
    assert int(second["step"]) == 20
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    lines = [(folder / "metrics.jsonl").read_text().count("\n") for folder in (alone, together)]
    assert lines[0] == lines[1] == 2
    drawn = [np.load(folder / "samples" / "step_00000020.npz")["samples"] for folder in (alone, together)]
    np.testing.assert_allclose(*drawn, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--config.optimizer.learning_rate=0.5", "--config.training.checkpoint_every=20"])
def test_processes_of_different_flags_raise(tmp_path, flag):
    address = f"--coordinator=127.0.0.1:{free_port()}"
    processes = [
        start(tmp_path, *STEPS, *[flag] * i, address, "--num_processes=2", f"--process_id={i}", devices=1)
        for i in range(2)
    ]
    key = flag.split("=")[0]
    for process in processes:
        assert f"expected the same flags on all processes, but process 0 and process 1 differ in {key}" in finish(
            process, 2
        )
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_and_one_goes_on(tmp_path):
    """Both go on from what was saved as copies, with the state in shards."""
    for process in start_two(tmp_path, *STEPS):
        finish(process)
    more = (*POINTS, "--config.training.num_steps=100000", "--config.training.sample_every=100000")
    more += ("--config.training.strategy=fsdp",)
    processes = start_two(tmp_path, *more)
    end = time.monotonic() + 200
    log = tmp_path / "metrics.jsonl"
    while log.read_text().count("\n") < 3 and time.monotonic() < end:
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGTERM)  # as a pod's machine that is taken away
    printed = [finish(process) for process in processes]
    assert "from step 20" in printed[0]
    assert "stopped by another process and saved at step" in printed[0]
    step = int(restore_newest(tmp_path)["step"])
    assert 30 <= step < 100_000 and f"saved at step {step};" in printed[0]
    finish(start(tmp_path, *POINTS, f"--config.training.num_steps={step + 10 - step % 10}", devices=1))


def test_a_cluster_is_known_by_its_environment():
    assert not in_cluster({})
    assert in_cluster({"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_ID": "0"})
    assert not in_cluster({"SLURM_NTASKS": "4"})  # the shell of sbatch, before srun
    assert not in_cluster({"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_ID": "0"})
    assert in_cluster({"TPU_WORKER_HOSTNAMES": "10.0.0.1,10.0.0.2"})
    assert not in_cluster({"TPU_WORKER_HOSTNAMES": "localhost"})


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_with_a_sentence(tmp_path, victim):
    """And the run goes on from the last checkpoint."""
    more = (*POINTS, "--config.training.num_steps=100000", "--config.training.sample_every=100000")
    processes = start_two(tmp_path, *more)
    end = time.monotonic() + 200
    while not has_checkpoint(tmp_path) and time.monotonic() < end:
        time.sleep(0.1)
    processes[victim].kill()
    out, error = processes[1 - victim].communicate(timeout=100)
    assert processes[1 - victim].returncode == 2, out + error
    assert "another process of this run has ended" in error and "Traceback" not in error
    processes[victim].communicate()
    step = int(restore_newest(tmp_path)["step"])
    printed = finish(start(tmp_path, *POINTS, f"--config.training.num_steps={step + 10}", devices=1))
    assert f"trained {step + 10} steps" in printed


@pytest.mark.slow
@pytest.mark.parametrize("ports, numbers", [((0, 1), (2, 2)), ((0, 0), (3, 3))])
def test_processes_that_never_meet_say_so(tmp_path, ports, numbers):
    """With another port, or one process fewer than they are said to be."""
    free = [free_port(), free_port()]
    processes = [
        start(
            tmp_path,
            *STEPS,
            f"--coordinator=127.0.0.1:{free[ports[i]]}",
            f"--num_processes={numbers[i]}",
            f"--process_id={i}",
        )
        for i in range(2)
    ]
    for process in processes:
        assert "waited 40 s for the others at 127.0.0.1:" in finish(process, expected=2)


def test_invalid_coordinator_raises():
    with socket.socket() as server:
        server.bind(("", 0))
        server.listen()
        port = server.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} of .* can't be opened on this machine: Address already"):
            distributed.initialize(f"127.0.0.1:{port}", 2, 0)
    for address in ("127.0.0.1", "127.0.0.1:port", ":1234", "127.0.0.1:70000"):
        with pytest.raises(UserError, match="expected host:port"):
            distributed.initialize(address, 2, 0)
