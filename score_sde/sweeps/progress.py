"""Progress of a sweep: one line per running trial and a summary, read from the trials' folders."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from score_sde.runtime.disk import report
from score_sde.runtime.periodic import call_periodically
from score_sde.sweeps.trials import Trial, label, last_record, read_state


def lines(trials: list[Trial]) -> list[str]:
    """Return one line for each running trial, and a summary of all trials."""
    states = [read_state(trial.folder) for trial in trials]
    running = [
        f"{label(trial.overrides)}, seed {trial.seed}: {_status(trial, state)}"
        for trial, state in zip(trials, states, strict=True)
        if state["status"] == "running"
    ]
    counts = Counter(state["status"] for state in states)
    total = ", ".join(
        f"{counts[status]} {status}" for status in ("done", "running", "failed", "stopped", "damaged") if counts[status]
    )
    return [*running, f"{len(trials)} trials: {total or 'none has started'}{_time_left(states, counts)}"]


@contextmanager
def print_progress(trials: list[Trial], interval: float = 10.0) -> Iterator[None]:
    """Print the lines to stderr every `interval` seconds during the block, and the summary after it."""
    try:
        with call_periodically(lambda: report("\n".join(lines(trials))), interval):
            yield
    finally:
        report(lines(trials)[-1])


def _status(trial: Trial, state: dict) -> str:
    record = last_record(trial.folder)
    if state.get("mode") != "train" or "step" not in record:
        return f"{state.get('mode', 'starting')}, {state['seconds']:.0f} s"
    steps = trial.config.training.num_steps
    rate = record.get("steps_per_second")
    left = f", {_format_duration((steps - record['step']) / rate)} left" if rate else ""
    return f"step {record['step']} of {steps}, loss {record['loss']:.4f}{left}"


def _time_left(states: list[dict], counts: Counter) -> str:
    """Estimate the remaining time from the mean duration of finished trials, at the current number in parallel."""
    finished = [state["seconds"] for state in states if state["status"] == "done"]
    unfinished = counts["new"] + counts["running"]
    if not finished or not unfinished or not counts["running"]:
        return ""
    elapsed = sum(state["seconds"] for state in states if state["status"] == "running")
    left = max(unfinished * sum(finished) / len(finished) - elapsed, 0.0) / counts["running"]
    return f", about {_format_duration(left)} left"


def _format_duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
