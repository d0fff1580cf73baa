"""Periodic calls last as long as their block."""

import threading
import time

import pytest

from score_sde.runtime.periodic import announcing, call_periodically


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


def test_long_first_call_is_announced(capsys):
    function = announcing(lambda seconds: time.sleep(seconds) or seconds, "compiling the test", after=0.05)
    assert function(0.2) == 0.2
    assert capsys.readouterr().err == "compiling the test ...\ncompiling the test: 0 s\n"
    function(0.2)
    announcing(lambda: None, "compiling the test", after=10.0)()
    assert not capsys.readouterr().err
