"""Periodic calls last as long as their block."""

import threading
import time

import pytest

from score_sde.runtime.periodic import call_periodically


def test_calls_end_with_the_block():
    calls, repeated = [], threading.Event()

    def function():
        calls.append(None)
        if len(calls) > 1:
            repeated.set()

    with pytest.raises(KeyError), call_periodically(function, interval=0.01):
        assert repeated.wait(100)
        raise KeyError  # an error in the block ends the calls as well
    count = len(calls)
    time.sleep(0.1)
    assert len(calls) == count


def test_short_block_calls_nothing():
    with call_periodically(pytest.fail, interval=100.0):
        pass
