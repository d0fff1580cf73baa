"""Deprecation warnings for our modules are errors, as `pyproject.toml` states; those inside other packages are not."""

import warnings

import numpy as np
import pytest

CATEGORIES = [DeprecationWarning, PendingDeprecationWarning, FutureWarning, np.exceptions.VisibleDeprecationWarning]


def warn(category, module):
    """Warn as a library does about a call in `module`."""
    warnings.warn_explicit("deprecated", category, "file.py", 1, module)


@pytest.mark.parametrize("category", CATEGORIES)
def test_deprecations_in_our_modules_are_errors(category):
    for module in (
        "score_sde",
        "score_sde.solvers.base",
        "configs.vp_digits",
        "launch",
        "tests.cli",
        "benchmarks.data",
    ):
        with pytest.raises(category, match="deprecated"):
            warn(category, module)
    for module in ("jax._src.core", "orbax.checkpoint", "score_sde_peer"):
        with pytest.warns(category, match="deprecated"):
            warn(category, module)
