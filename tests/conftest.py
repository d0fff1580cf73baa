"""Setup of all tests: eight virtual CPU devices, and no broadcasting between arrays of different rank."""

import os

from tests.cli import IN_PROCESS, ROOT

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 {IN_PROCESS}"
os.environ["JAX_PLATFORMS"] = "cpu"
# Workers and later calls of pytest reuse compiled programs, the slow tests also those of the fast ones.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(ROOT / ".pytest_cache" / "compiled")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


# Tests of half a minute and more. They run first, so that on several workers the others fill the rest of the time.
LONGEST = (
    "test_the_commands_run",
    "test_the_demonstration_draws_digits",
    "test_failed_trial_does_not_stop_sweep_and_only_new_trials_run",
    "test_training_reaches_the_exact_map",
    "test_wrong_flags_get_one_sentence",
    "test_every_mode_runs_on_one_run",
    "test_every_part_keeps_what_it_found",
    "test_kills_at_random_and_during_a_save_change_no_bit",
    "test_a_notebook_runs",
)


def pytest_collection_modifyitems(items):
    """Order the longest tests first."""
    items.sort(key=lambda item: LONGEST.index(item.originalname) if item.originalname in LONGEST else len(LONGEST))


def pytest_ignore_collect(collection_path, config):
    """Ignore the tests of peers without `-m peers`, because they import the peers."""
    return True if collection_path.name == "peers" and config.option.markexpr != "peers" else None


@pytest.fixture
def x64():
    """Double precision for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def compilations():
    """The names of what was compiled since it was last cleared."""
    seen = []

    def listen(event, duration, **kwargs):
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)
