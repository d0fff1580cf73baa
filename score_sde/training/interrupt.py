"""Requests to end the program: signals, and a closed pipe or terminal behind its output."""

import codecs
import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

STOPPED = "launch.py: stopped at once; a run resumes from its last checkpoint"
_requests: list[Callable[[int], None]] = []  # handlers of the active blocks, the innermost last


@contextmanager
def interruptible() -> Iterator[Callable[[], str | None]]:
    """Record Ctrl-C, SIGTERM, SIGUSR1, SIGUSR2, SIGHUP and a closed output within the block, for a loop that saves.

    Slurm sends SIGUSR1 or SIGUSR2 before the end of a job on request (--signal). A second Ctrl-C ends the program at
    once. SIGHUP stays ignored if it was, as under nohup.

    Yields:
      A function that returns the name of the first signal, or None.
    """
    caught: list[str] = []

    def record(number: int) -> None:
        if caught and number == signal.SIGINT:  # other signals may repeat, as SIGHUP of a closing terminal does
            end_at_once(number)
        caught.append(signal.Signals(number).name)

    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    with _handled(numbers, record):
        yield lambda: caught[0] if caught else None


@contextmanager
def ending_at_ctrl_c() -> Iterator[None]:
    """End the program at once on a Ctrl-C within the block."""
    with _handled([signal.SIGINT], end_at_once):
        yield


def end_at_once(number: int) -> NoReturn:
    """End the program without cleaning up, with the exit status of a program that the signal has ended.

    Files are written atomically, so none is left incomplete. The clean-up of libraries could take long.
    """
    if number == signal.SIGINT:
        with suppress(OSError):
            os.write(2, f"\n{STOPPED}\n".encode())
    os._exit(128 + number)


def guard_output() -> None:
    """Make a closed pipe or terminal behind stdout or stderr end the program quietly; training saves first.

    Characters that a terminal can't encode are replaced, "±" by "+-".
    """
    sys.stdout = _Outlet(printable(sys.stdout or os.fdopen(1, "w")))
    sys.stderr = _Outlet(printable(sys.stderr or os.fdopen(2, "w")))


def printable(stream: Any) -> Any:
    """Return the stream, changed to write characters that it can't encode as "+-" (for "±") or "?"."""

    def plain(error: Any) -> tuple[str, int]:
        return "+-" if error.object[error.start] == "±" else "?", error.start + 1

    codecs.register_error("plain", plain)
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="plain")
    return stream


class _Outlet:
    """A text stream that survives a closed pipe or terminal, and a full disk."""

    def __init__(self, stream: Any):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._close(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._close(error)

    def _close(self, error: OSError) -> None:
        if error.errno not in (errno.EPIPE, errno.EIO, errno.ENOSPC, errno.EDQUOT):
            raise error
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())  # the compiler writes to this descriptor, too
        os.close(null)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return  # the rest of the log is lost, the work goes on
        (_requests[-1] if _requests else end_at_once)(signal.SIGPIPE)


@contextmanager
def _handled(numbers: list[signal.Signals], handle: Callable[[int], None]) -> Iterator[None]:
    """Call `handle` on these signals from a thread, as Python's own handlers wait until compiled code returns."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def listen() -> None:
        while number := os.read(reader, 1):
            if number[0] in numbers:
                handle(number[0])

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    previous = {number: signal.signal(number, lambda number, frame: None) for number in numbers}
    _requests.append(handle)
    try:
        yield
    finally:
        _requests.pop()
        for number, handler in previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        os.close(writer)
        thread.join()
        os.close(reader)
