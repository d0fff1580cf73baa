"""Execution of a trial: its commands one after another, as programs that end when their parent process ends."""

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from score_sde.sweeps.trials import last_record, read_state, write_state

POLL_INTERVAL = 0.5  # seconds between two polls of the programs
STATE_EVERY = 4  # polls between two writes of the state to the shared disk
LOG = "trial.log"  # output of the programs
MAX_MESSAGE = 1000  # characters of the last log line in an error
# Linux sends SIGTERM when the parent has ended; training then saves and ends. A program of an earlier attempt may still
# be saving in the same folder, so the guard first waits for its lock, which a program holds until it ends.
PARENT_GUARD = """
import ctypes, fcntl, os, signal, sys
lock, parent, *command = sys.argv[1:]
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    if os.getppid() != int(parent):
        sys.exit(143)
file = os.open(lock, os.O_CREAT | os.O_RDWR)
try:
    fcntl.flock(file, fcntl.LOCK_EX)
except OSError as error:
    message = f"has no file locks ({error.strerror}): no second process may write to it"
    print(os.path.dirname(lock), message, file=sys.stderr)
os.set_inheritable(file, True)
os.execv(command[0], command)
"""


class TrialError(RuntimeError):
    """Error of a trial whose program ended with a non-zero status or before its training was complete."""


def run(
    folder: Path,
    commands: dict[str, list[str]],
    start: Callable[[list[str], Path], list[Any]],
    report: Callable[[dict[str, Any]], None] | None,
    node: str = "",
) -> None:
    """Run the unfinished modes of a trial, and record its state in its folder.

    Args:
      folder: Folder of the trial.
      commands: Command line of each mode.
      start: Function (command line, folder) -> programs, one per host; their poll() returns an exit status or None.
      report: Function that receives the last record of metrics.jsonl at each poll, for early stopping; None disables
        it.
      node: Name of this machine, for the record.

    Raises:
      TrialError: if a program exits with a non-zero status; the message holds the last log line.
    """
    state = read_state(folder)
    state |= {"status": "running", "attempts": state["attempts"] + 1, "error": "", "node": node}
    spent, begun = state["seconds"], time.monotonic()
    for mode, command in commands.items():
        if mode in state["modes"]:
            continue
        write_state(folder, state | {"mode": mode})
        programs = start(command, folder)
        for polls in _poll_until_end(programs):
            if polls % STATE_EVERY == 0:
                write_state(folder, state | {"mode": mode, "seconds": spent + time.monotonic() - begun})
            if report is not None and mode == "train" and (record := last_record(folder)):
                report(record)
        state["seconds"] = spent + time.monotonic() - begun
        statuses = [program.poll() for program in programs]
        if any(statuses) or (mode == "train" and not _training_complete(folder)):
            message = f"{mode} ended with {', '.join(map(str, statuses))}: {last_log_line(folder)}"
            write_state(folder, state | {"status": "failed", "error": message})
            raise TrialError(message)
        state["modes"] = [*state["modes"], mode]
        write_state(folder, state)
    write_state(folder, state | {"status": "done"})


def start_here(command: list[str], folder: Path) -> list[subprocess.Popen]:
    """Start one program on this machine, with its output in the trial's log."""
    folder.mkdir(parents=True, exist_ok=True)
    guard = [sys.executable, "-c", PARENT_GUARD, str(folder / "trial.lock"), str(os.getpid()), *command]
    root = Path(command[1]).parent
    with (folder / LOG).open("a") as log:
        # In a new session Ctrl-C reaches the program only once, as the SIGTERM of the guard, so that it can save.
        return [
            subprocess.Popen(guard, cwd=root, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
        ]


def last_log_line(folder: Path) -> str:
    """Return the last line of the trial's log, or of the first log of its hosts with any output."""
    logs = [
        path.read_text(errors="replace").strip()
        for path in (folder / LOG, *sorted(folder.glob(f"host_*/{LOG}")))
        if path.is_file()
    ]
    last = [log.splitlines()[-1][-MAX_MESSAGE:] for log in logs if log]
    return last[0] if last else "no output"


def _training_complete(folder: Path) -> bool:
    """Return whether training reached its last step; its exit status is 0 after a signal too."""
    config = folder / "config.json"
    if not config.is_file():
        return False
    steps = [int(path.name) for path in (folder / "checkpoints").glob("*") if path.name.isdigit()]
    return json.loads(config.read_text())["training"]["num_steps"] in steps


def _poll_until_end(programs: list[Any]) -> Iterator[int]:
    """Yield 0, 1, ... until all programs have ended; if one fails, terminate the others."""
    try:
        for polls in itertools.count():
            statuses = [program.poll() for program in programs]
            if None not in statuses:
                return
            if any(status for status in statuses if status is not None):
                break
            time.sleep(POLL_INTERVAL)
            yield polls
    finally:
        for program in programs:
            if program.poll() is None:
                program.terminate()
        for program in programs:
            program.wait()
