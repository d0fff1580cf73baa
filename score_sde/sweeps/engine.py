"""Trials on Ray: Tune allocates resources, retries failed trials, and stops trials early with ASHA."""

import logging
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from score_sde.errors import UserError, cut, not_none
from score_sde.sweeps import worker
from score_sde.sweeps.trials import ROOT, Trial, commands, read_state, write_state

WATCHER_CPUS = 0.001  # of the process that only watches a trial's programs on several hosts


def connect(address: str, sweep: ConfigDict) -> None:
    """Join the Ray cluster at host:port, or start one on this machine, and check that a trial fits on it.

    Raises:
      UserError: if Ray isn't installed or can't start, if no cluster answers at the address, or if no node has the
        resources of a trial.
    """
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # `progress` prints instead
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # each trial writes its own logs
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    # Ray would kill programs with SIGKILL, whereas `worker.PARENT_GUARD` lets them save.
    os.environ.setdefault("RAY_kill_child_processes_on_worker_exit", "0")
    try:
        import ray
    except ImportError:
        raise UserError('sweeps run on Ray, which is not installed here: pip install "ray[tune]"') from None
    if address:
        _check_address(address)
    # Without an address Ray would join any cluster that it finds on this machine.
    cluster = {"address": address} if address else {"address": "local", "include_dashboard": False}
    try:
        ray.init(**cluster, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}})
    except Exception as error:  # Ray raises errors of many kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"Ray can't start here: {cut(reason, 300)}", *(["address"] if address else [])) from error
    logging.getLogger("ray.tune").setLevel(logging.ERROR)  # hides warnings that a trial writes no logs of Tune
    needed = _host_resources(sweep) | ({sweep.head: 1.0} if sweep.head else {})
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fitting = [node for node in nodes if all(node.get(name, 0.0) >= value for name, value in needed.items())]
    if not fitting:
        best = {name: max((node.get(name, 0.0) for node in nodes), default=0.0) for name in needed}
        ray.shutdown()
        raise UserError(
            f"a host of a trial needs {_format_resources(needed)}, and no node has that: at most "
            f"{_format_resources(best)}",
            "cpus",
            "gpus",
            "tpus",
            "head",
        )


def run(trials: list[Trial], sweep: ConfigDict, workdir: Path) -> None:
    """Run trials until each is done, has exhausted its retries, or is stopped early; call `connect` first.

    A failure affects no other trial. After Ctrl-C running trials save, and the next call resumes them.
    """
    import ray
    from ray import tune

    specs = [
        {
            "folder": str(trial.folder.absolute()),
            "commands": dict(zip(sweep.modes, commands(trial, sweep, list(sweep.modes)), strict=True)),
            "hosts": sweep.hosts,
            "host": _host_resources(sweep),
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
        if not result.config:  # Ctrl-C came before the trial started
            continue
        folder = Path(result.config["spec"]["folder"])
        state = read_state(folder)
        if result.error is not None and state["status"] != "done":
            write_state(folder, state | {"status": "failed", "error": state["error"] or _last_line(result.error)})
        elif state["status"] == "running" and _stopped_early(result, sweep):
            write_state(folder, state | {"status": "stopped"})


def _trial(config: dict[str, Any]) -> None:
    """Run a trial; Tune calls this on a node with the trial's resources."""
    import ray
    from ray import tune

    spec, node = config["spec"], ray.get_runtime_context().get_node_id()
    latest = {"step": -1}

    def report(record):
        if record["step"] > latest["step"]:
            latest["step"] = record["step"]
            tune.report({"step": record["step"], spec["metric"]: record[spec["metric"]]})

    worker.run(Path(spec["folder"]), spec["commands"], _launcher(spec), report if spec["metric"] else None, node)


def _launcher(spec: dict[str, Any]) -> Callable[[list[str], Path], list[Any]]:
    """Return the function that starts a program on this machine, or on each of the trial's hosts."""
    if spec["hosts"] == 1:
        return worker.start_here
    return lambda command, folder: _start_on_hosts(command, folder, spec)


def _start_on_hosts(command: list[str], folder: Path, spec: dict[str, Any]) -> list[Any]:
    """Start a program on each host of the trial's placement group; jax.distributed joins them."""
    import ray
    from ray.util.placement_group import get_current_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    group = not_none(get_current_placement_group())

    def remote(i, function):
        amounts = dict(spec["host"])
        strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=i + 1)
        return ray.remote(function).options(
            num_cpus=amounts.pop("CPU", 0),
            num_gpus=amounts.pop("GPU", 0),
            resources=amounts,
            max_retries=0,
            scheduling_strategy=strategy,
        )

    coordinator = ray.get(remote(0, _free_address).remote())
    joined = [f"--coordinator={coordinator}", f"--num_processes={spec['hosts']}"]
    return [
        RemoteProcess(
            remote(i, _run_on_host).remote([*command, *joined, f"--process_id={i}"], str(folder / f"host_{i}"))
        )
        for i in range(spec["hosts"])
    ]


class RemoteProcess:
    """Program on another host, with the interface of a subprocess."""

    def __init__(self, reference: Any):
        """Wrap the Ray reference of the program's exit status."""
        self._reference = reference
        self._status: int | None = None

    def poll(self) -> int | None:
        """Return the exit status, None while the program runs."""
        import ray

        if self._status is None and ray.wait([self._reference], timeout=0)[0]:
            self.wait()
        return self._status

    def wait(self) -> None:
        """Wait for the end of the program."""
        import ray

        try:
            self._status = ray.get(self._reference)
        except Exception:  # the program was canceled, or its node was lost
            self._status = self._status or 1

    def terminate(self) -> None:
        """Cancel the program."""
        import ray

        ray.cancel(self._reference, force=True)


def _run_on_host(command: list[str], folder: str) -> int:
    """Run a program on this host and log its output to a folder per host; return the exit status."""
    (program,) = worker.start_here(command, Path(folder))
    return program.wait()


def _free_address() -> str:
    """Return the host:port of an unused port of this machine."""
    import ray

    with socket.socket() as free:
        free.bind(("", 0))
        return f"{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"


def _host_resources(sweep: ConfigDict) -> dict[str, float]:
    amounts = {"CPU": float(sweep.cpus), "GPU": float(sweep.gpus), "TPU": float(sweep.tpus)}
    return {name: amount for name, amount in amounts.items() if amount}


def _bundles(sweep: ConfigDict) -> list[dict[str, float]]:
    """Return the resources of a trial: those of one host, or those of the watcher and each host."""
    head = {sweep.head: 1.0} if sweep.head else {}
    host = _host_resources(sweep)
    if sweep.hosts == 1:
        return [host | head]
    return [{"CPU": WATCHER_CPUS}, host | head, *[host] * (sweep.hosts - 1)]


def _scheduler(sweep: ConfigDict, trials: list[Trial]) -> Any:
    from ray.tune.schedulers import ASHAScheduler

    longest = max(trial.config.training.num_steps for trial in trials)
    return ASHAScheduler(
        time_attr="step",
        metric=sweep.stop_metric,
        mode=sweep.stop_mode,
        max_t=longest + 1,  # so that ASHA does not stop a trial that finishes its training
        grace_period=min(sweep.stop_grace, longest),
        reduction_factor=sweep.stop_factor,
    )


def _stopped_early(result: Any, sweep: ConfigDict) -> bool:
    """Return whether ASHA, not Ctrl-C, ended a trial; Tune then marks its last report as done."""
    return bool(sweep.stop_metric) and bool((result.metrics or {}).get("done"))


def _check_address(address: str) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=5):
            return
    except (OSError, ValueError) as error:
        raise UserError(
            f"no Ray cluster answers at {address}: {error}; start one with `ray start --head`, or give no address",
            "address",
        ) from None


def _format_resources(amounts: dict[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in amounts.items()) or "nothing"


def _last_line(error: Any) -> str:
    return str(error).strip().splitlines()[-1][-500:]
