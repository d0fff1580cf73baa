"""Messages while other code runs: periodic calls, and what a first call compiles."""

import functools
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import jax

from score_sde.runtime.disk import report

T = TypeVar("T")


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


def announcing(function: Callable[..., T], activity: str, after: float = 2.0) -> Callable[..., T]:
    """Wrap a function whose first call compiles: if that takes long, a line says so, and one the seconds it took."""
    calls = itertools.count()

    @functools.wraps(function)
    def announced(*args: Any) -> T:
        if next(calls):
            return function(*args)
        begun, timer = time.monotonic(), threading.Timer(after, report, [f"{activity} ..."])
        timer.daemon = True
        timer.start()
        try:
            return jax.block_until_ready(function(*args))
        finally:
            timer.cancel()
            if (seconds := time.monotonic() - begun) > after:
                report(f"{activity}: {seconds:.0f} s")

    return announced
