"""The flag that makes GPU programs repeat their bits."""

import os

import pytest

from score_sde.runtime.repeatable import exclude_nondeterministic_ops


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", "--xla_gpu_exclude_nondeterministic_ops=true"),
        ("--xla_dump_to=x", "--xla_dump_to=x --xla_gpu_exclude_nondeterministic_ops=true"),
        ("--xla_gpu_exclude_nondeterministic_ops=false", "--xla_gpu_exclude_nondeterministic_ops=false"),
        ("--xla_gpu_deterministic_ops=true", "--xla_gpu_deterministic_ops=true"),
    ],
)
def test_the_flag_is_added_unless_it_is_given(monkeypatch, given, expected):
    monkeypatch.setenv("XLA_FLAGS", given)
    exclude_nondeterministic_ops()
    assert os.environ["XLA_FLAGS"] == expected
