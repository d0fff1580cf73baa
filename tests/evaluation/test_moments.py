"""Streamed moments against whole ones, and the Frechet distance in closed form."""

import numpy as np

from score_sde.evaluation.metrics import Moments, compute_moments, frechet_distance, merge


def gaussian(mean, covariance, count=100):
    return Moments(count, np.asarray(mean, float), np.asarray(covariance, float) * (count - 1))


def test_commuting_covariances():
    """|m1 - m2|^2 + sum (s1 - s2)^2 over the common axes."""
    rng = np.random.default_rng(0)
    rotation, _ = np.linalg.qr(rng.standard_normal((64, 64)))
    first, second = rng.uniform(0.1, 3, (2, 64))
    x = gaussian(np.zeros(64), rotation @ np.diag(first**2) @ rotation.T)
    y = gaussian(np.full(64, 0.5), rotation @ np.diag(second**2) @ rotation.T)
    np.testing.assert_allclose(frechet_distance(x, y), 16 + np.sum((first - second) ** 2), rtol=1e-12)


def test_covariances_that_do_not_commute():
    """In two dimensions tr (A B)^(1/2) = (tr A B + 2 (det A B)^(1/2))^(1/2), by Cayley and Hamilton."""
    a, b = np.array([[2.0, 0.9], [0.9, 1.0]]), np.array([[0.5, -0.3], [-0.3, 4.0]])
    cross = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
    expected = 4 + np.trace(a) + np.trace(b) - 2 * cross
    np.testing.assert_allclose(frechet_distance(gaussian([0, 0], a), gaussian([2, 0], b)), expected, rtol=1e-12)


def test_singular_covariances():
    """Fewer vectors than features, and a constant one: 0 of a set against itself, the shift's square of a shift."""
    x = np.random.default_rng(0).standard_normal((5, 12))
    x[:, 3] = 0.0
    assert abs(frechet_distance(compute_moments(x), compute_moments(x))) < 1e-7 * np.sum(
        x**2
    )  # roots of rounding's 1e-16
    np.testing.assert_allclose(frechet_distance(compute_moments(x), compute_moments(x + np.eye(12)[3])), 1.0, rtol=1e-6)


def test_parts_of_any_size_merge_to_the_whole():
    """Also where the mean is 1e6 times the spread, where sums of squares in float64 would lose four digits."""
    x = np.random.default_rng(0).standard_normal((1000, 6)) + 1e6
    whole = compute_moments(x)
    for size in (1, 7, 333, 1000):
        parts = [compute_moments(x[first : first + size]) for first in range(0, 1000, size)]
        total = parts[0]
        for part in parts[1:]:
            total = merge(total, part)
        assert total.num_vectors == 1000
        np.testing.assert_allclose(total.mean, whole.mean, rtol=1e-13)  # a thousand roundings
        np.testing.assert_allclose(total.covariance, np.cov(x.T), rtol=1e-9, atol=1e-9)
