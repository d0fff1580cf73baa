"""Samplers of toy distributions, mostly of two-dimensional data, at about the scale of pixels in [-1, 1].

`datasets.toy` samples each data set once from a fixed seed, so that a resumed run trains on the same examples.
"""

from collections.abc import Callable, Sequence

import numpy as np

from score_sde.errors import UserError

SampleFn = Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]  # (rng, n) -> points (n, d), labels (n,)


def mixture(means: Sequence[Sequence[float]], stds: Sequence[float], weights: Sequence[float] = ()) -> SampleFn:
    """Return a sampler of the Gaussian mixture sum_k w_k N(mean_k, std_k^2 I); the label is the component.

    Args:
      means: Means of the components, (components, d).
      stds: Standard deviations of the components, (components,).
      weights: Weights of the components up to a common factor, (components,); by default they are equal.

    Raises:
      UserError: unless there is one mean, one standard deviation and one weight per component.
    """
    if not len(means) == len(stds) or len(weights) not in (0, len(means)) or not len(means):
        raise UserError(
            f"mixture: expected one mean, std and weight per component, got {len(means)} means, {len(stds)} stds and "
            f"{len(weights)} weights"
        )
    centers = np.asarray(means, np.float64)
    probabilities = np.asarray(weights if len(weights) else np.ones(len(means)), np.float64)

    def sample(rng, n):
        labels = rng.choice(len(means), n, p=probabilities / probabilities.sum())
        return centers[labels] + np.asarray(stds)[labels, None] * rng.standard_normal((n, centers.shape[1])), labels

    return sample


def in_subspace(sample: SampleFn, basis: np.ndarray) -> SampleFn:
    """Return a sampler of the points basis @ z, for the points z of another sampler.

    Args:
      sample: Sampler of points (n, k).
      basis: Orthonormal columns, (d, k).
    """

    def sample_in_subspace(rng, n):
        points, labels = sample(rng, n)
        return points @ basis.T, labels

    return sample_in_subspace


def random_basis(d: int, k: int) -> np.ndarray:
    """Return orthonormal columns (d, k) of a random subspace, from a fixed seed.

    Raises:
      UserError: if k > d.
    """
    if k > d:
        raise UserError(f"subspace: expected channels >= {k}, the length of each mean, got {d}", "channels")
    return np.linalg.qr(np.random.default_rng(0).standard_normal((d, k)))[0]


def two_moons(noise: float = 0.05) -> SampleFn:
    """Return a sampler of two interleaved half circles; the label is the half circle.

    Args:
      noise: Standard deviation of the noise added to each coordinate.
    """

    def sample(rng, n):
        labels = rng.integers(2, size=n)
        angle = np.pi * rng.random(n)
        moon = np.stack([np.cos(angle), np.sin(angle)], 1)
        points = np.where(labels[:, None] == 0, moon, np.array([1.0, 0.5]) - moon) - np.array([0.5, 0.25])
        return 0.65 * points + noise * rng.standard_normal((n, 2)), labels

    return sample


def swiss_roll(noise: float = 0.03) -> SampleFn:
    """Return a sampler of a spiral of one and a half turns; all labels are 0.

    Args:
      noise: Standard deviation of the noise added to each coordinate.
    """

    def sample(rng, n):
        angle = 1.5 * np.pi * (1 + 2 * rng.random(n))
        points = angle[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1) / (4.5 * np.pi)
        return points + noise * rng.standard_normal((n, 2)), np.zeros(n, np.int64)

    return sample


def checkerboard() -> SampleFn:
    """Return a sampler of uniform points on the 8 dark squares of a 4x4 board on [-1, 1]^2; the label is the square."""

    def sample(rng, n):
        labels = rng.integers(8, size=n)
        row, pair = np.divmod(labels, 2)
        corner = np.stack([2 * pair + row % 2, row], 1)
        return (corner + rng.random((n, 2))) / 2 - 1, labels

    return sample
