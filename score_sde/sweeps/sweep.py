"""`sweep` mode: run the unfinished trials of a sweep and write its report."""

import json
from pathlib import Path

from ml_collections import ConfigDict

from score_sde.experiment.paths import expand
from score_sde.runtime.disk import write_atomically
from score_sde.sweeps import engine, progress
from score_sde.sweeps.check import check, listing
from score_sde.sweeps.report import write_report
from score_sde.sweeps.settings import check_sweep
from score_sde.sweeps.trials import Trial, git_commit, link_checkpoints, make_trials, read_state, write_state

FINISHED = ("done", "stopped")  # statuses of trials that do not run again


def run_sweep(
    config: ConfigDict, workdir: Path, address: str = "", dry_run: bool = False, report_only: bool = False
) -> str:
    """Run or resume a sweep; finished trials do not run again, even if trials were added since.

    Args:
      config: Settings of the sweep (`settings.sweep`).
      workdir: Folder of the sweep, on a disk that all machines share.
      address: host:port of a Ray cluster; "" starts one on this machine.
      dry_run: Whether to only list the trials with their estimated cost.
      report_only: Whether to only write the report of the results so far; trials may be running.

    Returns:
      Summary for the user.

    Raises:
      UserError: if a trial can't run; then none has started.
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
            link_checkpoints(trial, Path(expand(config.from_run)))
    unfinished = [trial for trial in trials if read_state(trial.folder)["status"] not in FINISHED]
    if unfinished:
        engine.connect(address, config)
        _record(unfinished, config, workdir)
        with progress.print_progress(trials):
            engine.run(unfinished, config, workdir)
    page = write_report(trials, config, workdir)
    return f"{progress.lines(trials)[-1]}; the report is in {page}{_describe_unfinished(trials)}"


def _record(trials: list[Trial], config: ConfigDict, workdir: Path) -> None:
    """Record the overrides, seed and Git commit of each trial in its folder."""
    commit = git_commit()
    for trial in trials:
        state = read_state(trial.folder)
        write_state(trial.folder, state | {"overrides": trial.overrides, "seed": trial.seed, "commit": commit})
    write_atomically(workdir / "sweep.json", json.dumps(config.to_dict(), indent=2, default=str) + "\n")


def _describe_unfinished(trials: list[Trial]) -> str:
    """Return the text on trials that failed or are not finished; empty if all are."""
    failed = [trial for trial in trials if read_state(trial.folder)["status"] == "failed"]
    waiting = [trial for trial in trials if read_state(trial.folder)["status"] in ("new", "running", "damaged")]
    errors = "".join(f"\nfailed: {trial.folder}: {read_state(trial.folder)['error']}" for trial in failed)
    return errors + (f"\n{len(waiting)} are not finished: the same command resumes them" if waiting else "")
