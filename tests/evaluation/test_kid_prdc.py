"""KID, precision and recall, density and coverage, Inception score: on sets where they are known."""

import numpy as np
import pytest

from score_sde.errors import UserError
from score_sde.evaluation.metrics import inception_score, kid, nearest_neighbors, precision_recall, squared_mmd


def test_kid_is_unbiased():
    """Its mean over splits of one law is 0; of two laws it is E k(x,x') + E k(y,y') - 2 E k(x,y) of all pairs."""
    rng = np.random.default_rng(0)
    found = kid(rng.standard_normal((4000, 8)), rng.standard_normal((4000, 8)), subset_size=100)
    assert abs(found.mean) < 3 * found.standard_error
    # In one dimension of unit normals and of normals about 1, with moments 1, 0, 1, 0 and 1, 1, 2, 4 (E x^0 .. x^3)
    # E (x y + 1)^3 = sum_j binom(3, j) m_j m'_j.
    weights, first, second = np.array([1, 3, 3, 1]), np.array([1, 0, 1, 0]), np.array([1, 1, 2, 4])
    expected = np.sum(weights * (first - second) ** 2)
    found = kid(rng.standard_normal((20000, 1)), 1 + rng.standard_normal((20000, 1)), subset_size=200)
    assert abs(found.mean - expected) < 3 * found.standard_error < expected / 4


def test_mmd_is_the_sum_over_pairs():
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((4, 3)), rng.standard_normal((5, 3))

    def k(a, b):
        return (a @ b / 3 + 1) ** 3

    own = np.mean([k(x[i], x[j]) for i in range(4) for j in range(4) if i != j])
    other = np.mean([k(y[i], y[j]) for i in range(5) for j in range(5) if i != j])
    across = np.mean([k(a, b) for a in x for b in y])
    np.testing.assert_allclose(squared_mmd(x, y), own + other - 2 * across, rtol=1e-12)
    with pytest.raises(UserError, match="two vectors"):
        kid(x[:1], y)


def test_precision_and_recall_where_they_are_known():
    """Real data in two far clusters; samples in one of them and, a quarter, nowhere near: precision 3/4, recall 1/2."""
    rng = np.random.default_rng(0)
    cluster, other = rng.uniform(0, 1, (2, 400, 2))
    real = np.concatenate([cluster, other + 100])
    samples = np.concatenate([rng.permutation(cluster)[:300], rng.uniform(1000, 1001, (100, 2))])
    found = precision_recall(real, samples)
    assert found.precision == 0.75
    assert 0.45 < found.recall <= 0.5 + 1e-9
    assert 0.45 < found.coverage <= 0.5
    again = precision_recall(real, real)
    assert (again.precision, again.recall, again.coverage) == (1, 1, 1)
    # A real vector lies in its own ball and, on average, in those of the k others that it is a neighbour of.
    np.testing.assert_allclose(again.density, 6 / 5, rtol=1e-12)


def test_balls_by_hand():
    """On a line, k = 1: real 0, 1, 10 with radii 1, 1, 9; samples 1.5, 30, 31 with radii 28.5, 1, 1."""
    real, samples = np.array([[0.0], [1.0], [10.0]]), np.array([[1.5], [30.0], [31.0]])
    found = precision_recall(real, samples, k=1, density_k=1)
    assert found.precision == pytest.approx(1 / 3)  # 1.5, in the balls of 1 and of 10
    assert found.recall == 1.0  # all in the ball of 1.5
    assert found.density == pytest.approx(2 / 3)
    assert found.coverage == pytest.approx(2 / 3)


def test_nearest_neighbours():
    places = nearest_neighbors(np.array([[0.0, 0.0]]), np.array([[3.0, 4.0], [0.0, 1.0], [9.0, 9.0]]), 2)
    np.testing.assert_array_equal(places, [[1, 0]])


def test_inception_score_from_1_to_the_number_of_classes():
    sure = np.tile(100.0 * np.eye(4), (25, 1))
    parts_of_ten = np.exp(-0.6 * np.log(0.3) - 0.4 * np.log(0.2))  # of 4 classes, 3, 3, 2 and 2 times
    np.testing.assert_allclose(inception_score(sure).mean, parts_of_ten, rtol=1e-6)
    np.testing.assert_allclose(inception_score(sure, num_parts=1), (4.0, 0.0), rtol=1e-6)
    np.testing.assert_allclose(inception_score(np.zeros((100, 4))), (1.0, 0.0), atol=1e-6)
    half = np.log(np.array([[0.75, 0.25], [0.25, 0.75]]))
    expected = np.exp(0.75 * np.log(1.5) + 0.25 * np.log(0.5))
    np.testing.assert_allclose(inception_score(half, num_parts=1).mean, expected, rtol=1e-6)
