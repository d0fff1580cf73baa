"""Periodic calls, such as progress messages, while other code runs."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def call_periodically(function: Callable[[], object], interval: float = 10.0) -> Iterator[None]:
    """Call a function repeatedly from a daemon thread while the block runs.

    Args:
      function: Function without arguments; its result is ignored.
      interval: Seconds between two calls, and before the first.
    """
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(interval):
            function()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
