"""Trials on Ray: Tune gives each its resources, tries failed ones again, and stops those that ASHA leaves behind."""

import logging
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from score_sde.errors import UserError, not_none
from score_sde.sweeps import worker
from score_sde.sweeps.trials import ROOT, Trial, commands, read_state, write_state

HEAD = 0.001  # CPUs of the part of a trial that only watches its hosts' programs


def connect(address: str, sweep: ConfigDict) -> None:
    """Joins the Ray cluster at host:port, or starts one on this machine, and checks that a trial finds room on it.

    Raises:
      UserError: Ray isn't installed, nothing answers at the address, or no node has what a trial asks for.
    """
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # our own lines of progress are printed
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # a trial keeps its own records
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_kill_child_processes_on_worker_exit", "0")  # by SIGKILL: `worker.GUARD` lets them save
    try:
        import ray
    except ImportError:
        raise UserError(
            "sweeps run on Ray, which is not installed here: pip install -r requirements-sweep.txt"
        ) from None
    if address:
        _check_answers(address)
    where = {"address": address} if address else {"include_dashboard": False}
    ray.init(**where, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}})
    logging.getLogger("ray.tune").setLevel(logging.ERROR)  # that a trial leaves Tune no records of its own is no news
    needed = _of_a_host(sweep) | ({sweep.head: 1.0} if sweep.head else {})
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fitting = [node for node in nodes if all(node.get(name, 0.0) >= value for name, value in needed.items())]
    if not fitting:
        best = {name: max((node.get(name, 0.0) for node in nodes), default=0.0) for name in needed}
        ray.shutdown()
        raise UserError(
            f"a host of a trial needs {_said(needed)}, and no node has that: at most {_said(best)} (set --config.cpus, "
            "--config.gpus, --config.tpus or --config.head)"
        )


def run(trials: list[Trial], sweep: ConfigDict, workdir: Path) -> None:
    """Runs trials until each is done, has failed more often than it may, or is stopped early; Ray is connected.

    A failure takes down no other trial. Ctrl-C ends it: what runs saves, and the next call goes on from there.
    """
    import ray
    from ray import tune

    specs = [
        {
            "folder": str(trial.folder.absolute()),
            "commands": dict(zip(sweep.modes, commands(trial, sweep, list(sweep.modes)), strict=True)),
            "hosts": sweep.hosts,
            "host": _of_a_host(sweep),
            "metric": sweep.stop_metric,
        }
        for trial in trials
    ]
    tuner = tune.Tuner(
        tune.with_resources(
            _trial, tune.PlacementGroupFactory(_bundles(sweep), strategy="PACK" if sweep.hosts == 1 else "SPREAD")
        ),
        param_space={"spec": tune.grid_search(specs)},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=sweep.concurrent or None,
            scheduler=_scheduler(sweep, trials) if sweep.stop_metric else None,
        ),
        run_config=tune.RunConfig(
            storage_path=str((workdir / "ray").absolute()),
            name=time.strftime("%Y-%m-%d_%H-%M-%S"),
            failure_config=tune.FailureConfig(max_failures=sweep.retries),
            verbose=0,
        ),
    )
    try:
        results = tuner.fit()
    finally:
        ray.shutdown()
    for i in range(len(results)):
        result = results[i]
        if not result.config:  # Ctrl-C came before it began
            continue
        folder = Path(result.config["spec"]["folder"])
        state = read_state(folder)
        if result.error is not None and state["status"] != "done":
            write_state(folder, state | {"status": "failed", "error": state["error"] or _last_line(result.error)})
        elif state["status"] == "running" and _stopped_early(result, sweep):
            write_state(folder, state | {"status": "stopped"})


def _trial(config: dict[str, Any]) -> None:
    """What Tune calls, on a node that has the trial's resources."""
    import ray
    from ray import tune

    spec, node = config["spec"], ray.get_runtime_context().get_node_id()
    reported = {"step": -1}

    def report(record):
        if record["step"] > reported["step"]:
            reported["step"] = record["step"]
            tune.report({"step": record["step"], spec["metric"]: record[spec["metric"]]})

    worker.run(Path(spec["folder"]), spec["commands"], _start_of(spec), report if spec["metric"] else None, node)


def _start_of(spec: dict[str, Any]) -> Callable[[list[str], Path], list[Any]]:
    """How a program is started: here, or one on each of the trial's hosts."""
    if spec["hosts"] == 1:
        return worker.start_here
    return lambda command, folder: _start_on_hosts(command, folder, spec)


def _start_on_hosts(command: list[str], folder: Path, spec: dict[str, Any]) -> list[Any]:
    """The program once on each host of the trial's placement group, joined by jax.distributed."""
    import ray
    from ray.util.placement_group import get_current_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    group = not_none(get_current_placement_group())

    def on(i, function):
        amounts = dict(spec["host"])
        place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=i + 1)
        return ray.remote(function).options(
            num_cpus=amounts.pop("CPU", 0),
            num_gpus=amounts.pop("GPU", 0),
            resources=amounts,
            max_retries=0,
            scheduling_strategy=place,
        )

    coordinator = ray.get(on(0, _free_address).remote())
    joined = [f"--coordinator={coordinator}", f"--num_processes={spec['hosts']}"]
    return [
        OnHost(on(i, _host).remote([*command, *joined, f"--process_id={i}"], str(folder / f"host_{i}")))
        for i in range(spec["hosts"])
    ]


class OnHost:
    """A program on another host, asked like a subprocess."""

    def __init__(self, reference: Any):
        self._reference = reference
        self._status: int | None = None

    def poll(self) -> int | None:
        import ray

        if self._status is None and ray.wait([self._reference], timeout=0)[0]:
            self.wait()
        return self._status

    def wait(self) -> None:
        import ray

        try:
            self._status = ray.get(self._reference)
        except Exception:  # cancelled, or its node is gone
            self._status = self._status or 1

    def terminate(self) -> None:
        import ray

        ray.cancel(self._reference, force=True)


def _host(command: list[str], folder: str) -> int:
    """A host's part of a trial; its words go to a folder of its own."""
    (program,) = worker.start_here(command, Path(folder))
    return program.wait()


def _free_address() -> str:
    """host:port of this machine, where nothing listens."""
    import ray

    with socket.socket() as free:
        free.bind(("", 0))
        return f"{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"


def _of_a_host(sweep: ConfigDict) -> dict[str, float]:
    amounts = {"CPU": float(sweep.cpus), "GPU": float(sweep.gpus), "TPU": float(sweep.tpus)}
    return {name: amount for name, amount in amounts.items() if amount}


def _bundles(sweep: ConfigDict) -> list[dict[str, float]]:
    """What Tune reserves for a trial: one host's resources, or a watcher's and each host's."""
    head = {sweep.head: 1.0} if sweep.head else {}
    host = _of_a_host(sweep)
    if sweep.hosts == 1:
        return [host | head]
    return [{"CPU": HEAD}, host | head, *[host] * (sweep.hosts - 1)]


def _scheduler(sweep: ConfigDict, trials: list[Trial]) -> Any:
    from ray.tune.schedulers import ASHAScheduler

    longest = max(trial.config.training.num_steps for trial in trials)
    return ASHAScheduler(
        time_attr="step",
        metric=sweep.stop_metric,
        mode=sweep.stop_mode,
        max_t=longest + 1,  # a trial that comes to its end is measured
        grace_period=min(sweep.stop_grace, longest),
        reduction_factor=sweep.stop_factor,
    )


def _stopped_early(result: Any, sweep: ConfigDict) -> bool:
    """Whether ASHA ended it, and not Ctrl-C: Tune marks its last report as done."""
    return bool(sweep.stop_metric) and bool((result.metrics or {}).get("done"))


def _check_answers(address: str) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=5):
            return
    except (OSError, ValueError) as error:
        raise UserError(
            f"no Ray cluster answers at {address}: {error} (start one with `ray start --head`, or leave out --address)"
        ) from None


def _said(amounts: dict[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in amounts.items()) or "nothing"


def _last_line(error: Any) -> str:
    return str(error).strip().splitlines()[-1][-500:]
