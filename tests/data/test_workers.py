"""Reader processes end with their run, and the end of one ends the run with an error message."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.cli import POINTS, finish, start

pytestmark = pytest.mark.slow
READ = (*POINTS, "--config.data.num_workers=2", "--config.training.num_steps=1000000")
READ += ("--config.training.checkpoint_every=1000000", "--config.training.sample_every=1000000")


def workers_of(process):
    """Returns the process ids of the reader processes, without the process that tracks their shared memory."""
    listed = subprocess.run(["pgrep", "-f", "-P", str(process.pid), "spawn_main"], capture_output=True, text=True)
    return [int(number) for number in listed.stdout.split()]


def start_training(workdir):
    """Starts a run, waits for its first log line, and returns it with its workers."""
    process = start(workdir, *READ)
    end = time.monotonic() + 120
    while not (workdir / "metrics.jsonl").exists():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    workers = workers_of(process)
    assert len(workers) == 2
    return process, workers


def wait_until_gone(numbers):
    """Waits until processes have ended; zombies of another parent count as ended."""
    end = time.monotonic() + 30
    while [n for n in numbers if Path(f"/proc/{n}").exists() and "Z" not in Path(f"/proc/{n}/stat").read_text()]:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_killed_worker_ends_the_run_with_an_error(tmp_path):
    process, workers = start_training(tmp_path)
    os.kill(workers[0], signal.SIGKILL)
    printed = finish(process, 2)
    assert "data: a reader process died with exit code -9" in printed
    assert "Traceback" not in printed
    wait_until_gone(workers)


def test_killed_starting_worker_ends_run(tmp_path):
    process = start(tmp_path, *READ)
    while not (workers := workers_of(process)):
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(workers[0], signal.SIGKILL)
    printed = finish(process, 2)
    assert "data: a reader process died" in printed and "Traceback" not in printed
    wait_until_gone(workers)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_their_run(tmp_path, number):
    process, workers = start_training(tmp_path)
    process.send_signal(number)
    printed = finish(process, 0 if number == signal.SIGTERM else -number)
    assert "Traceback" not in printed
    wait_until_gone(workers)
