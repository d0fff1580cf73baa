"""Requests to end the program: signals, and readers of its output that close their end."""

import codecs
import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

STOPPED = "launch.py: stopped at once; a run goes on from its last checkpoint"
_requests: list[Callable[[int], None]] = []  # handlers of the blocks that the program is in, the innermost last


@contextmanager
def interruptible() -> Iterator[Callable[[], str | None]]:
    """Remembers Ctrl-C, SIGTERM, SIGHUP and a closed output within the block, for a loop that saves and stops.

    A further Ctrl-C ends the program at once. SIGHUP stays ignored where it is, as under nohup.

    Yields:
      A function that returns the first signal's name, or None.
    """
    caught: list[str] = []

    def remember(number: int) -> None:
        if caught and number == signal.SIGINT:  # a closing terminal sends SIGHUP twice, and a cluster SIGTERM
            end_at_once(number)
        caught.append(signal.Signals(number).name)

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    with _handled(numbers, remember):
        yield lambda: caught[0] if caught else None


@contextmanager
def ending_at_ctrl_c() -> Iterator[None]:
    """Ends the program at once at a Ctrl-C within the block."""
    with _handled([signal.SIGINT], end_at_once):
        yield


def end_at_once(number: int) -> NoReturn:
    """Ends the program without cleaning up, with the exit status of a program that the signal has ended.

    Files are written atomically, so that nothing is half written; whatever a library would do at its end could wait.
    """
    if number == signal.SIGINT:
        with suppress(OSError):
            os.write(2, f"\n{STOPPED}\n".encode())
    os._exit(128 + number)


def guard_output() -> None:
    """Makes a closed pipe or terminal behind stdout or stderr end the program quietly: training saves first.

    Characters that a terminal has no code for are written in others, "±" as "+-".
    """
    sys.stdout = _Outlet(printable(sys.stdout or os.fdopen(1, "w")))
    sys.stderr = _Outlet(printable(sys.stderr or os.fdopen(2, "w")))


def printable(stream: Any) -> Any:
    """Returns the stream, which from now on writes what its encoding lacks as "+-" or "?"."""

    def plain(error: Any) -> tuple[str, int]:
        return "+-" if error.object[error.start] == "±" else "?", error.start + 1

    codecs.register_error("plain", plain)
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="plain")
    return stream


class _Outlet:
    """A text stream that nobody may read any more."""

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
        if error.errno not in (errno.EPIPE, errno.EIO):
            raise error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())  # where the compiler's messages go, too
        os.close(nowhere)
        (_requests[-1] if _requests else end_at_once)(signal.SIGPIPE)


@contextmanager
def _handled(numbers: list[signal.Signals], handle: Callable[[int], None]) -> Iterator[None]:
    """Calls `handle` at these signals from a thread, as Python's own handlers wait until compiled code returns."""
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
