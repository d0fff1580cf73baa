"""How far the trials of a sweep are, in a line each and one for all, read from their folders."""

import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from score_sde.sweeps.trials import Trial, label, last_record, read_state

INTERVAL = 10.0  # seconds


def lines(trials: list[Trial]) -> list[str]:
    """A line for each trial that runs, and one for the whole."""
    states = [read_state(trial.folder) for trial in trials]
    said = []
    for trial, state in zip(trials, states, strict=True):
        if state["status"] == "running":
            said.append(f"{label(trial.overrides)}, seed {trial.seed}: {_doing(trial, state)}")
    counts = Counter(state["status"] for state in states)
    total = ", ".join(
        f"{counts[status]} {status}" for status in ("done", "running", "failed", "stopped", "damaged") if counts[status]
    )
    return [*said, f"{len(trials)} trials: {total or 'none has begun'}{_left(states, counts)}"]


@contextmanager
def shown(trials: list[Trial], interval: float = INTERVAL) -> Iterator[None]:
    """Prints the lines every few seconds while the block runs, and once behind it."""
    ended = threading.Event()

    def show():
        while not ended.wait(interval):
            print("\n".join(lines(trials)), file=sys.stderr, flush=True)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        print(lines(trials)[-1], file=sys.stderr, flush=True)


def _doing(trial: Trial, state: dict) -> str:
    record = last_record(trial.folder)
    if state.get("mode") != "train" or "step" not in record:
        return f"{state.get('mode', 'starting')}, {state['seconds']:.0f} s"
    steps = trial.config.training.num_steps
    rate = record.get("steps_per_second")
    left = f", {_clock((steps - record['step']) / rate)} left" if rate else ""
    return f"step {record['step']} of {steps}, loss {record['loss']:.4f}{left}"


def _left(states: list[dict], counts: Counter) -> str:
    """How long the rest takes at the finished trials' mean, so many at a time as run now."""
    finished = [state["seconds"] for state in states if state["status"] == "done"]
    waiting = counts["new"] + counts["running"]
    if not finished or not waiting or not counts["running"]:
        return ""
    gone = sum(state["seconds"] for state in states if state["status"] == "running")
    left = max(waiting * sum(finished) / len(finished) - gone, 0.0) / counts["running"]
    return f", about {_clock(left)} left"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
