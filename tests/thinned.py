"""Grids of parameters of which a few values run in the fast tests and the others in the slow ones."""

import pytest

from score_sde.solvers import SOLVERS

WITH_DENOISERS = [name for name in SOLVERS if name != "flow_map_steps"]  # which takes a flow map instead


def thinned(values, *fast):
    """Return the values of a grid as pytest parameters, slow except those in `fast`."""
    values = list(values)
    assert all(value in values for value in fast)
    return [pytest.param(value, marks=() if value in fast else pytest.mark.slow) for value in values]
