"""What happens where a trial runs: its command lines in turn, as programs that end when their parent does."""

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

POLL = 0.5  # seconds between looks at whether a program has ended
NOTED = 4  # looks between notes on the disk that all machines share
LOG = "trial.log"  # what the programs print
# Asks Linux for SIGTERM when the parent is gone, on which training saves and ends, and waits for the program of an
# earlier attempt that is still saving in the same folder; the lock is the program's as long as it lives.
GUARD = """
import ctypes, fcntl, os, signal, sys
lock, parent, *command = sys.argv[1:]
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    if os.getppid() != int(parent):
        sys.exit(143)
file = os.open(lock, os.O_CREAT | os.O_RDWR)
fcntl.flock(file, fcntl.LOCK_EX)
os.set_inheritable(file, True)
os.execv(command[0], command)
"""


class Failed(RuntimeError):
    """A program of a trial ended with an error."""


def run(
    folder: Path,
    commands: dict[str, list[str]],
    start: Callable[[list[str], Path], list[Any]],
    report: Callable[[dict[str, Any]], None] | None,
    node: str = "",
) -> None:
    """Runs the modes of a trial that aren't finished, and keeps its state in its folder.

    Args:
      folder: the trial's.
      commands: mode -> command line.
      start: (command line, folder) -> programs with poll() -> exit status or None; several hosts have one each.
      report: gets the last line of metrics.jsonl at each look, for early stopping; None: there is none.
      node: the name of this machine, for the record.

    Raises:
      Failed: a program ended with an error; its last words are in it.
    """
    state = read_state(folder)
    state |= {"status": "running", "attempts": state["attempts"] + 1, "error": "", "node": node}
    spent, begun = state["seconds"], time.monotonic()
    for mode, command in commands.items():
        if mode in state["modes"]:
            continue
        write_state(folder, state | {"mode": mode})
        programs = start(command, folder)
        for looks in _while_running(programs):
            if looks % NOTED == 0:
                write_state(folder, state | {"mode": mode, "seconds": spent + time.monotonic() - begun})
            if report is not None and mode == "train" and (record := last_record(folder)):
                report(record)
        state["seconds"] = spent + time.monotonic() - begun
        statuses = [program.poll() for program in programs]
        if any(statuses) or (mode == "train" and not _trained(folder)):
            said = f"{mode} ended with {', '.join(map(str, statuses))}: {last_words(folder)}"
            write_state(folder, state | {"status": "failed", "error": said})
            raise Failed(said)
        state["modes"] = [*state["modes"], mode]
        write_state(folder, state)
    write_state(folder, state | {"status": "done"})


def start_here(command: list[str], folder: Path) -> list[subprocess.Popen]:
    """One program on this machine, whose words go to the trial's log."""
    folder.mkdir(parents=True, exist_ok=True)
    guard = [sys.executable, "-c", GUARD, str(folder / "trial.lock"), str(os.getpid()), *command]
    root = Path(command[1]).parent
    with (folder / LOG).open("a") as log:
        # In a session of its own: a Ctrl-C reaches it once, as the guard's SIGTERM, and it has time to save.
        return [
            subprocess.Popen(guard, cwd=root, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
        ]


def last_words(folder: Path) -> str:
    """The last line of the trial's log, or of its hosts' logs."""
    logs = [
        path.read_text(errors="replace").strip()
        for path in (folder / LOG, *sorted(folder.glob(f"host_*/{LOG}")))
        if path.is_file()
    ]
    said = [log.splitlines()[-1][-500:] for log in logs if log]
    return said[0] if said else "it said nothing"


def _trained(folder: Path) -> bool:
    """Whether training ran to its end: a signal ends it with 0, too."""
    config = folder / "config.json"
    if not config.is_file():
        return False
    steps = [int(path.name) for path in (folder / "checkpoints").glob("*") if path.name.isdigit()]
    return json.loads(config.read_text())["training"]["num_steps"] in steps


def _while_running(programs: list[Any]) -> Iterator[int]:
    """0, 1, ... until all have ended, or one with an error: the others are then ended."""
    try:
        for looks in itertools.count():
            statuses = [program.poll() for program in programs]
            if None not in statuses:
                return
            if any(status for status in statuses if status is not None):
                break
            time.sleep(POLL)
            yield looks
    finally:
        for program in programs:
            if program.poll() is None:
                program.terminate()
        for program in programs:
            program.wait()
