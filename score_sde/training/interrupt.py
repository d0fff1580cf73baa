"""Ctrl-C and SIGTERM as a question that the loop asks between two calls."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def interruptible() -> Iterator[Callable[[], str | None]]:
    """Within the block, the first Ctrl-C or SIGTERM is remembered, not raised; a second one ends the program at once.

    Yields:
      A function that returns the signal's name, or None.
    """
    caught: list[str] = []

    def remember(number, frame):
        if caught:
            raise KeyboardInterrupt
        caught.append(signal.Signals(number).name)

    previous = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: caught[0] if caught else None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
