"""The sliced Wasserstein distance against a shift and a scaling, whose distances are known."""

import numpy as np

from score_sde.evaluation.metrics import sliced_wasserstein


def test_a_shift_moves_every_slice_by_its_projection():
    """E|<v, shift>| = |shift| 2 / pi in the plane, v uniform on the circle; 4 standard errors of 4,000 directions."""
    x = np.random.default_rng(0).standard_normal((50, 2))
    found = sliced_wasserstein(x, x + np.array([3.0, 4.0]), num_directions=4000)
    assert abs(found - 10 / np.pi) < 4 * 5 * 0.308 / np.sqrt(4000)  # |cos| has the standard deviation 0.308


def test_it_is_zero_of_a_reordered_set_and_symmetric():
    x = np.random.default_rng(0).standard_normal((50, 3))
    y = np.random.default_rng(1).standard_normal((70, 3))
    assert sliced_wasserstein(x, x[::-1]) < 1e-12
    assert sliced_wasserstein(x, y) == sliced_wasserstein(y, x) > 0
