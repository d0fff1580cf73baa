"""The Frechet distance in closed form, and the classifier's figures on sets where they are known."""

import numpy as np
from sklearn.datasets import load_digits

from score_sde.evaluation.evaluate import compare
from score_sde.evaluation.frechet import frechet_distance


def with_moments(rng, n, mean, covariance):
    """n points whose sample mean and covariance are exactly these."""
    x = rng.standard_normal((n, len(mean)))
    x -= x.mean(0)
    whitened = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T
    return whitened @ np.linalg.cholesky(covariance).T + mean


def test_frechet_distance_of_gaussians_is_the_closed_form():
    """Commuting covariances: |m1 - m2|^2 + sum (s1 - s2)^2 over the axes."""
    rng = np.random.default_rng(0)
    rotation, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    first, second = np.array([1.0, 2.0, 0.5]), np.array([0.3, 1.0, 2.0])
    x = with_moments(rng, 50, np.zeros(3), rotation @ np.diag(first**2) @ rotation.T)
    y = with_moments(rng, 80, np.ones(3), rotation @ np.diag(second**2) @ rotation.T)
    np.testing.assert_allclose(frechet_distance(x, y), 3 + np.sum((first - second) ** 2), rtol=1e-9)


def test_frechet_distance_with_constant_features_and_few_points():
    x = np.random.default_rng(0).standard_normal((5, 12))
    x[:, 3] = 0.0
    assert abs(frechet_distance(x, x)) < 1e-12 * np.sum(x**2)
    shifted = x + np.eye(12)[3]
    np.testing.assert_allclose(frechet_distance(x, shifted), 1.0, rtol=1e-9)


def test_real_digits_pass_for_digits_and_noise_does_not():
    bunch = load_digits()
    images = (bunch.images / 8 - 1)[..., None].astype(np.float32)
    train, test, other = slice(0, 1000), slice(1000, 1400), slice(1400, 1797)
    real = (images[train], bunch.target[train], images[test], bunch.target[test])
    figures = compare(images[other], *real)
    assert figures["svm_test_accuracy"] > 0.9
    assert abs(figures["top_class_probability_samples"] - figures["top_class_probability_test"]) < 0.05
    assert min(figures["class_shares"]) > 0.04
    noise = compare(np.random.default_rng(0).uniform(-1, 1, (400, 8, 8, 1)), *real)
    assert noise["frechet_ratio"] > 10 * figures["frechet_ratio"]
    assert min(noise["class_shares"]) < 0.04
