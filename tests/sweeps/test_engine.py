"""Sweeps from end to end on Ray: failures, kills, early stopping, several nodes, several hosts per trial."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli import ROOT, environment

SWEEP = """
from score_sde.sweeps import axis, chain, sweep
FIXED = {{
    "model.kwargs.features": (8,), "training.batch_size": 8, "training.steps_per_call": 1,
    "training.num_steps": {steps},
    "training.log_every": {every}, "training.checkpoint_every": {every}, "training.sample_every": {steps},
    "sampling.num_steps": 4, "sampling.num_samples": 10, "evaluation.num_samples": 100, "evaluation.num_real": 200,
}}
def get_config():
    return sweep("configs/toy2d.py", {trials}, {metrics}, FIXED, **{changes})
"""


def write(folder, trials, steps=20, metrics=("sliced_wasserstein_ratio", "train.loss"), **changes):
    path = folder / "sweep.py"
    path.write_text(SWEEP.format(trials=trials, steps=steps, every=steps // 10, metrics=metrics, changes=changes))
    return path


def start(path, workdir, *flags, address=""):
    command = [sys.executable, "launch.py", "--mode=sweep", f"--config={path}", f"--workdir={workdir}", *flags]
    command += [f"--address={address}"] if address else []
    return subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process, expected=0):
    out, error = process.communicate(timeout=600)
    assert process.returncode == expected, out + error
    return out


def states(workdir):
    return {path.parent.name: json.loads(path.read_text()) for path in Path(workdir).glob("trials/*/trial.json")}


def table(workdir):
    """Read results.csv without the columns that a kill may change."""
    lines = list(csv.DictReader((workdir / "results.csv").open()))
    return [
        {key: value for key, value in line.items() if key not in ("seconds", "chip_hours", "attempts")}
        for line in lines
    ]


@pytest.mark.slow
def test_failed_trial_does_not_stop_sweep_and_only_new_trials_run(tmp_path):
    rates = "axis('optimizer.learning_rate', (2e-3, 1e30))"
    path = write(tmp_path, rates, retries=1)
    workdir = tmp_path / "out"
    assert "2 trials: train, evaluate; nothing was run" in finish(start(path, workdir, "--dry_run"))
    assert not workdir.exists()
    printed = finish(start(path, workdir))
    found = states(workdir)
    assert sorted(state["status"] for state in found.values()) == ["done", "failed"]
    (failed,) = (state for state in found.values() if state["status"] == "failed")
    assert failed["attempts"] == 2 and "is not finite" in failed["error"]
    assert "2 trials: 1 done, 1 failed" in printed and "is not finite" in printed
    assert {state["attempts"] for state in found.values() if state["status"] == "done"} == {1}
    first = table(workdir)
    assert [line["status"] for line in first] == ["done", "failed"]
    assert float(first[0]["sliced_wasserstein_ratio"]) > 0
    assert "data:image/png" in (workdir / "index.html").read_text()

    # With more seeds, finished trials do not run again and failed ones do.
    finish(start(path, workdir, "--config.seeds=(0,1)", "--config.retries=0"))
    again = states(workdir)
    assert len(again) == 4
    for name, state in found.items():
        assert again[name]["attempts"] == state["attempts"] + (state["status"] == "failed")
    assert [line for line in table(workdir) if line["seed"] == "0"] == first

    # A sweep over solvers on one of its checkpoints trains nothing.
    (run,) = workdir.glob("trials/0.002_seed0_*")
    settings = {"modes": ("evaluate",), "from_run": str(run), "metrics": ("sliced_wasserstein_ratio", "nfe")}
    path = write(tmp_path, "axis('sampling.num_steps', (2, 8))", **settings)
    finish(start(path, tmp_path / "solvers"))
    assert [float(line["nfe"]) for line in table(tmp_path / "solvers")] == [3, 9]  # with the denoising at the end
    assert not list((tmp_path / "solvers").glob("trials/*/metrics.jsonl"))
    path = write(tmp_path, "axis('seed_of_none', (1,))")
    process = start(path, tmp_path / "none")
    assert "unknown config key 'seed_of_none'" in process.communicate(timeout=120)[1]

    path = write(tmp_path, rates, retries=1)
    assert "index.html" in finish(start(path, workdir, "--config.seeds=(0,1)", "--report_only"))


@pytest.mark.slow
def test_missing_cluster_and_missing_resources_raise(tmp_path):
    path = write(tmp_path, "[{}]")
    for flags, message in (
        (("--address=127.0.0.1:1",), "no Ray cluster answers at 127.0.0.1:1"),
        (("--config.gpus=64.0",), "a host of a trial needs 1 CPU, 64 GPU, and no node has that: at most"),
    ):
        begun = time.monotonic()
        process = start(path, tmp_path / "out", *flags)
        _, error = process.communicate(timeout=120)
        assert process.returncode == 2
        assert message in error and "Traceback" not in error
        assert time.monotonic() - begun < 60
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_killed_trials_and_driver_do_not_change_the_table(tmp_path):
    trials = "axis('model.prediction', ('epsilon', 'v'))"
    path = write(tmp_path, trials, steps=2000)
    whole, disturbed = tmp_path / "whole", tmp_path / "disturbed"
    finish(start(path, whole))
    driver = start(path, disturbed)
    killed = set()
    while len(killed) < 2:
        assert driver.poll() is None, driver.communicate()
        for folder in disturbed.glob("trials/*"):
            if folder.name not in killed and len(list(folder.glob("checkpoints/*0"))) >= 1 and kill(folder):
                killed.add(folder.name)
        time.sleep(0.05)
    time.sleep(1)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    assert any(state["status"] != "done" for state in states(disturbed).values())
    finish(start(path, disturbed))
    assert {state["status"] for state in states(disturbed).values()} == {"done"}
    assert max(states(disturbed)[name]["attempts"] for name in killed) >= 2
    assert table(disturbed) == table(whole)


def kill(folder):
    """Kills a trial's program, if it trains."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if f"--workdir={folder}".encode() in words and b"--mode=train" in words:
            os.kill(int(path.parent.name), signal.SIGKILL)
            return True
    return False


@pytest.mark.slow
def test_trials_run_on_every_node_and_on_several_hosts(tmp_path, monkeypatch):
    """Two nodes simulated on this machine: trials on both; then one trial whose two processes are one on each."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=4")  # the nodes', and so the trials'
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        path = write(tmp_path, "axis('model.prediction', ('epsilon', 'v'))", steps=200)
        finish(start(path, tmp_path / "both", address=cluster.address))
        assert {state["status"] for state in states(tmp_path / "both").values()} == {"done"}
        assert len({state["node"] for state in states(tmp_path / "both").values()}) == 2

        path = write(tmp_path, "[{}]", hosts=2, cpus=0.9, retries=2)
        finish(start(path, tmp_path / "joined", address=cluster.address))
        ((name, state),) = states(tmp_path / "joined").items()
        assert state["status"] == "done", state
        folder = tmp_path / "joined" / "trials" / name
        assert "8 cpu device(s) of 2 processes, batch 8, 1 per device" in (folder / "host_0" / "trial.log").read_text()
    finally:
        cluster.shutdown()


@pytest.mark.slow
def test_early_stopping_stops_bad_trials(tmp_path, monkeypatch):
    """Without --address no other cluster is joined, whatever Ray's own variable says."""
    rates = "axis('optimizer.learning_rate', (1e-3, 1e-9, 1e-10))"
    path = write(tmp_path, rates, steps=2000, stop_metric="loss", stop_grace=400, stop_factor=2, concurrent=2)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    finish(start(path, tmp_path / "out"))
    found = states(tmp_path / "out")
    best = next(state for name, state in found.items() if name.startswith("0.001"))
    assert best["status"] == "done"
    assert "stopped" in {state["status"] for state in found.values()}
    before = {name: state["attempts"] for name, state in found.items()}
    finish(start(path, tmp_path / "out"))  # stopped trials do not run again
    assert {name: state["attempts"] for name, state in states(tmp_path / "out").items()} == before
