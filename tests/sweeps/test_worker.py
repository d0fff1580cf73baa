"""Programs of trials on a file system without locks, and a Ray that can't start."""

import os
import subprocess
import sys

import pytest

from score_sde.errors import UserError
from score_sde.sweeps import engine, sweep
from score_sde.sweeps.worker import PARENT_GUARD

NO_LOCKS = """
import errno, fcntl
def flock(*args):
    raise OSError(errno.ENOLCK, "No locks available")
fcntl.flock = flock
"""


def test_trial_runs_without_file_locks(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(NO_LOCKS)
    guard = [sys.executable, "-c", PARENT_GUARD, str(tmp_path / "trial.lock"), str(os.getpid())]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([*guard, "/bin/echo", "it runs"], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "it runs\n")
    assert done.stderr == (f"{tmp_path} has no file locks (No locks available): no second process may write to it\n")


@pytest.mark.parametrize("error", [OSError("AF_UNIX path\nis too long"), ValueError("bad"), ConnectionError()])
def test_ray_that_cannot_start_raises(monkeypatch, error):
    import ray

    def fail(**options):
        raise error

    monkeypatch.setattr(ray, "init", fail)
    words = " ".join(str(error).split()) or "ConnectionError"
    with pytest.raises(UserError, match=f"^Ray can't start here: {words}$"):
        engine.connect("", sweep("base.py", [{}], ("train.loss",)))
