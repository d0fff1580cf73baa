"""`--mode=sweep`: runs every trial of a sweep that isn't finished, and leaves its tables, plots and page."""

import json
from pathlib import Path

from ml_collections import ConfigDict

from score_sde.runtime.disk import write_atomically
from score_sde.sweeps import engine, progress
from score_sde.sweeps.check import check, listing
from score_sde.sweeps.report import write_report
from score_sde.sweeps.settings import check_sweep
from score_sde.sweeps.trials import Trial, adopt, commit, make_trials, read_state, write_state

OVER = ("done", "stopped")  # what isn't run again


def run_sweep(
    config: ConfigDict, workdir: Path, address: str = "", dry_run: bool = False, report_only: bool = False
) -> str:
    """Runs a sweep, or goes on with it; a trial that is done is not run again, whatever was added meanwhile.

    Args:
      config: what a file in configs/sweeps/ gives.
      workdir: the sweep's folder, on a disk that all machines share.
      address: host:port of a Ray cluster; "": one is started on this machine.
      dry_run: list the trials with what they take, and run nothing.
      report_only: write the report of what there is, also while trials run.

    Returns:
      What was done, in words.

    Raises:
      UserError: something can't be run; nothing was started.
    """
    check_sweep(config)
    trials = make_trials(config, workdir)
    if report_only:
        return f"the report is in {write_report(trials, config, workdir)}"
    check(trials, config)
    if dry_run:
        return listing(trials, config)
    if config.from_run:
        for trial in trials:
            adopt(trial, Path(config.from_run))
    left = [trial for trial in trials if read_state(trial.folder)["status"] not in OVER]
    if left:
        engine.connect(address, config)
        _record(left, config, workdir)
        with progress.shown(trials):
            engine.run(left, config, workdir)
    page = write_report(trials, config, workdir)
    return f"{progress.lines(trials)[-1]}; the report is in {page}{_unfinished(trials)}"


def _record(trials: list[Trial], config: ConfigDict, workdir: Path) -> None:
    """Notes in each trial's folder what it is, and of which commit."""
    at = commit()
    for trial in trials:
        state = read_state(trial.folder)
        write_state(trial.folder, state | {"overrides": trial.overrides, "seed": trial.seed, "commit": at})
    write_atomically(workdir / "sweep.json", json.dumps(config.to_dict(), indent=2, default=str) + "\n")


def _unfinished(trials: list[Trial]) -> str:
    failed = [trial for trial in trials if read_state(trial.folder)["status"] == "failed"]
    running = [trial for trial in trials if read_state(trial.folder)["status"] in ("new", "running", "damaged")]
    said = "".join(f"\nfailed: {trial.folder}: {read_state(trial.folder)['error']}" for trial in failed)
    return said + (f"\n{len(running)} are not finished: the same command goes on with them" if running else "")
