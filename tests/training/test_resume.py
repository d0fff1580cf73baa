"""A run that is stopped or killed and resumed ends with the same bits as an undisturbed run."""

import json
import random
import signal
import time
from functools import partial

import jax
import numpy as np
import pytest

from score_sde.errors import UserError
from score_sde.training.checkpoints import restore_newest
from score_sde.training.workdir import check_config, prepare
from tests import cli
from tests.cli import POINTS, cheap, finish

start = partial(cli.start, compiler=cheap(1))  # the default generator: scanned steps have the bits of single ones
STEPS = 2000  # of a run on points
RARE = (*POINTS, f"--config.training.checkpoint_every={STEPS}")


def wait_for(condition, process, timeout=120.0):
    """Polls until the condition holds, tightly: a save takes milliseconds."""
    end = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.0005)


def saved_steps(workdir):
    return [int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit()]


def saving(workdir):
    """Whether a save is half done: Orbax writes into a folder of another name, and renames it when it is complete."""
    return any(not path.name.isdigit() for path in (workdir / "checkpoints").glob("*"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run of a small U-Net."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    finish(start(workdir))
    return workdir


@pytest.fixture(scope="module")
def undisturbed_points(tmp_path_factory):
    """A run of a perceptron on points."""
    workdir = tmp_path_factory.mktemp("undisturbed_points")
    finish(start(workdir, *RARE))
    return workdir


def assert_same_state(workdir, undisturbed, num_steps, num_arrays):
    """Compare every array of the newest checkpoints, bit for bit."""
    state, expected = restore_newest(workdir), restore_newest(undisturbed)
    assert int(state["step"]) == num_steps
    assert len(jax.tree.leaves(expected)) > num_arrays  # parameters, their EMA, and two moments of each
    jax.tree.map(np.testing.assert_array_equal, state, expected)


def assert_same_run(workdir, undisturbed):
    """Compare the state, the logged metrics and the samples."""
    assert_same_state(workdir, undisturbed, 200, 100)
    folders = (workdir, undisturbed)
    logs = [[json.loads(line) for line in (d / "metrics.jsonl").read_text().splitlines()] for d in folders]
    for key in ("step", "loss", "gradient_norm"):
        assert [record[key] for record in logs[0]] == [record[key] for record in logs[1]]
    np.testing.assert_array_equal(*[np.load(d / "samples" / "step_00000200.npz")["images"] for d in folders])


def kill_after_a_save(workdir, when, *flags):
    """Starts the run, waits until it has saved anew and then for `when`, and kills it."""
    process = start(workdir, *flags)
    before = max(saved_steps(workdir), default=0)
    wait_for(lambda: max(saved_steps(workdir), default=0) > before, process)
    when(process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_kills_at_random_and_during_a_save_change_no_bit(undisturbed, tmp_path):
    kill_after_a_save(tmp_path, lambda process: time.sleep(random.uniform(0.0, 0.05)))
    for _ in range(4):  # a save may end between the look and the kill
        kill_after_a_save(tmp_path, lambda process: wait_for(lambda: saving(tmp_path), process))
        if saving(tmp_path):
            break
    assert saving(tmp_path), "no kill fell into a save"
    finish(start(tmp_path))
    assert_same_run(tmp_path, undisturbed)


@pytest.mark.slow
def test_ten_kills_at_random_change_no_bit(undisturbed_points, tmp_path):
    often = (*POINTS, "--config.training.checkpoint_every=5", "--config.training.log_every=5")
    for _ in range(10):
        kill_after_a_save(tmp_path, lambda process: time.sleep(random.uniform(0.0, 0.05)), *often)
    finish(start(tmp_path, *RARE))
    assert_same_state(tmp_path, undisturbed_points, STEPS, 20)


OTHER_SIGNALS = [
    pytest.param(number, marks=pytest.mark.slow) for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
]


OTHERS = [pytest.param(other, marks=pytest.mark.slow) for other in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)]


@pytest.mark.parametrize("number", [signal.SIGTERM, *OTHERS])
def test_a_signal_saves_and_the_run_resumes(undisturbed_points, tmp_path, number):
    """No other checkpoint is due before the end, so that the run resumes from the one that the signal saved."""
    process = start(tmp_path, *RARE)
    wait_for(lambda: (tmp_path / "metrics.jsonl").exists(), process)
    process.send_signal(number)
    printed = finish(process)
    (step,) = saved_steps(tmp_path)
    assert 10 <= step < STEPS
    assert f"stopped by {number.name} and saved at step {step}; the same command resumes from there" in printed
    assert f"from step {step}" in finish(start(tmp_path, *RARE))
    # The mean of a log line starts anew at the signal's step, so only the state is compared.
    assert_same_state(tmp_path, undisturbed_points, STEPS, 20)


@pytest.mark.slow
def test_steps_a_call_may_change_at_a_resume(undisturbed, tmp_path):
    finish(start(tmp_path, "--config.training.num_steps=100"))
    printed = finish(start(tmp_path, "--config.training.steps_per_call=5"))
    assert "from step 100" in printed
    finished = finish(start(tmp_path))
    assert "has finished its 200 steps" in finished
    assert_same_state(tmp_path, undisturbed, 200, 100)


def test_another_config_is_refused_by_the_name_of_what_differs(tmp_path):
    def config(seed=0, batch_size=8, num_steps=10, multipliers=(1, 2)):
        training = {"batch_size": batch_size, "num_steps": num_steps}
        return {"seed": seed, "training": training, "model": {"kwargs": {"multipliers": multipliers}}}

    prepare(tmp_path, config())
    check_config(tmp_path, config(num_steps=99))
    with pytest.raises(UserError, match=r"seed was 0, is 1; training.batch_size was 8, is 16.*set workdir"):
        check_config(tmp_path, config(batch_size=16, seed=1))
    with pytest.raises(UserError, match=r"model.kwargs.multipliers was \[1, 2\], is \[1, 3\]"):
        check_config(tmp_path, config(multipliers=(1, 3)))
    check_config(tmp_path, config() | {"loss": {"uncertainty": False}})  # a key that this run's version did not have
    with pytest.raises(UserError, match=r"loss.uncertainty was False, is True"):
        check_config(tmp_path, config() | {"loss": {"uncertainty": True}})


def test_no_checkpoint_is_said(tmp_path):
    with pytest.raises(UserError, match="no checkpoint"):
        restore_newest(tmp_path)
