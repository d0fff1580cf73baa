"""Signals, closed terminals and closed pipes: training saves, other modes end with at most one sentence."""

import os
import pty
import shutil
import signal
import subprocess
import sys
import termios
import time

import pytest

from tests.cli import POINTS, ROOT, environment, finish, start

pytestmark = pytest.mark.slow
LONG = (*POINTS, "--config.training.num_steps=1000000", "--config.training.checkpoint_every=1000000")
LONG += ("--config.training.sample_every=1000000",)


def wait_until_trained(workdir, process):
    """Waits for the first log."""
    end = time.monotonic() + 120
    while not (workdir / "metrics.jsonl").exists():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)


def saved_steps(workdir):
    return [int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit()]


def launched(workdir, *flags, **options):
    """Starts launch.py with these streams."""
    command = [sys.executable, "launch.py", *flags, f"--workdir={workdir}"]
    return subprocess.Popen(command, cwd=ROOT, env=environment(), **options)


def test_sighup_saves_as_sigterm_does(tmp_path):
    process = start(tmp_path, *LONG)
    wait_until_trained(tmp_path, process)
    for _ in range(2):  # the shell's and the kernel's
        process.send_signal(signal.SIGHUP)
    printed = finish(process)
    (step,) = saved_steps(tmp_path)
    assert f"stopped by SIGHUP and saved at step {step}" in printed and "Traceback" not in printed


def test_nohup_trains_through_a_hangup(tmp_path):
    flags = (*LONG, "--config.training.num_steps=2000")
    process = launched(tmp_path, *flags, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    wait_until_trained(tmp_path, process)
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=120) == 0
    assert saved_steps(tmp_path) == [2000]


def test_training_saves_when_its_reader_leaves(tmp_path):
    """The bar's next line finds a closed pipe."""
    process = launched(tmp_path, *LONG, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    wait_until_trained(tmp_path, process)
    process.stdout.close()
    assert process.wait(timeout=120) == 141  # the last line finds no reader either
    assert len(saved_steps(tmp_path)) == 1


def test_a_reader_of_one_line_ends_what_has_not_trained(tmp_path):
    """`launch.py 2>&1 | head -1`: the second line finds a closed pipe, before there is anything to save."""
    process = launched(tmp_path, *LONG, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    process.stdout.readline()
    process.stdout.close()
    status = process.wait(timeout=120)
    assert status == 141 or (status == 0 and len(saved_steps(tmp_path)) == 1)


def test_training_saves_when_its_terminal_closes(tmp_path):
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(ours, (24, 80))  # of none the bar writes nothing
    process = launched(tmp_path, *LONG, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    wait_until_trained(tmp_path, process)
    os.close(ours)
    assert process.wait(timeout=120) == 141
    assert len(saved_steps(tmp_path)) == 1


def test_training_goes_on_without_a_stderr(tmp_path):
    process = launched(
        tmp_path, *LONG, "--config.training.num_steps=2000", stdout=subprocess.PIPE, preexec_fn=lambda: os.close(2)
    )
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and b"trained 2000 steps" in printed
    assert 2000 in saved_steps(tmp_path)


def test_an_answer_that_nobody_reads_ends_quietly(tmp_path):
    """`launch.py --mode=plan | true`, and a refusal behind `2>&1 | true`."""
    for flags, status in ((("--mode=plan", "--topology=cpu:1"), 141), (("--mode=plan", "--topology=none"), 141)):
        reader, writer = os.pipe()
        os.close(reader)
        process = launched(tmp_path, *POINTS, *flags, stdout=writer, stderr=writer)
        os.close(writer)
        assert process.wait(timeout=120) == status


def test_ctrl_c_three_times_is_one_sentence(tmp_path):
    process = start(tmp_path, *LONG)
    wait_until_trained(tmp_path, process)
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.002)
    printed = finish(process, 130)
    assert printed.count("launch.py: ") == 1 and "stopped at once" in printed and "Traceback" not in printed


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained") / "run"
    finish(start(workdir, *LONG, "--config.training.num_steps=10"))
    return workdir


@pytest.mark.parametrize("mode", ["likelihood", "sample", "evaluate"])
def test_ctrl_c_ends_modes_that_save_nothing(trained, tmp_path, mode):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    endless = (
        "--config.likelihood.num_dequantizations=1000000",
        "--config.sampling.num_steps=1000000",
        "--config.evaluation.num_samples=1000000",
    )
    process = start(tmp_path, *LONG, "--config.training.num_steps=10", f"--mode={mode}", *endless)
    time.sleep(12)  # wherever it is by now
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=5)
    assert process.returncode in (130, -signal.SIGINT)
    assert "Traceback" not in error and error.count("stopped at once") == 1, error
