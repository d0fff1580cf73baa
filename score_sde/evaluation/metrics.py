"""Distances between sets of samples: FID, KID, precision and recall, the Inception score, sliced Wasserstein."""

from typing import NamedTuple

import jax
import numpy as np
import scipy.linalg
import scipy.stats
from scipy.spatial.distance import cdist

from score_sde.errors import UserError

DISTANCE_ROWS = 1000  # rows of a distance matrix that are in memory at a time


class Moments(NamedTuple):
    """The first two moments of a set of vectors, in float64; sets can be merged.

    Attributes:
      num_vectors: Number of vectors.
      mean: (d,) mean.
      scatter: (d, d) scatter matrix, the sum of (x - mean)(x - mean)^T.
    """

    num_vectors: int
    mean: np.ndarray
    scatter: np.ndarray

    @property
    def covariance(self) -> np.ndarray:
        """(d, d) unbiased covariance."""
        return self.scatter / (self.num_vectors - 1)


def compute_moments(features: np.ndarray) -> Moments:
    """Return the moments of (n, d) features."""
    x = np.asarray(features, np.float64)
    mean = x.mean(0)
    centered = x - mean
    return Moments(len(x), mean, centered.T @ centered)


def merge(first: Moments, second: Moments) -> Moments:
    """Merge the moments of two sets (Chan, Golub and LeVeque 1979), accurately also if the mean exceeds the spread."""
    count = first.num_vectors + second.num_vectors
    delta = second.mean - first.mean
    mean = first.mean + delta * (second.num_vectors / count)
    scatter = first.scatter + second.scatter + np.outer(delta, delta) * (first.num_vectors * second.num_vectors / count)
    return Moments(count, mean, scatter)


def frechet_distance(first: Moments, second: Moments) -> float:
    """Return |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), the squared 2-Wasserstein distance of two Gaussians.

    The formula is of Dowson and Landau 1982. For Inception features it is the FID of Heusel et al. 2017. The trace of
    (C1 C2)^(1/2) is the sum of the singular values of C1^(1/2) C2^(1/2). Unlike the root of a product this is exact
    for singular covariances, which fewer vectors than features have.
    """
    roots = [_root(moments.covariance) for moments in (first, second)]
    cross = np.sum(scipy.linalg.svdvals(roots[0] @ roots[1]))
    traces = np.trace(first.covariance) + np.trace(second.covariance)
    return float(np.sum((first.mean - second.mean) ** 2) + traces - 2 * cross)


def _root(covariance: np.ndarray) -> np.ndarray:
    """Return the symmetric square root; negative eigenvalues, which come from rounding, count as 0."""
    values, vectors = scipy.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T


class KID(NamedTuple):
    """The kernel Inception distance, as a mean over subsets with its standard error."""

    mean: float
    standard_error: float


def kid(first: np.ndarray, second: np.ndarray, num_subsets: int = 100, subset_size: int = 1000, seed: int = 0) -> KID:
    """Return the KID (Binkowski et al. 2018), with the kernel (x.y / d + 1)^3, in any features.

    It may be negative; its mean is 0 for two sets from one distribution. Each set is split into disjoint subsets,
    unlike in the reference, so that the values are independent and their spread gives the standard error. Sets of two
    or three vectors give one value, and NaN as the error.

    Args:
      first: (n, d) features.
      second: (m, d) features.
      num_subsets: Maximum number of subsets.
      subset_size: Maximum size of a subset, which is also at most half of each set.
      seed: Seed of the subsets.

    Raises:
      UserError: if a set has fewer than two vectors.
    """
    if min(len(first), len(second)) < 2:
        raise UserError(f"KID: expected at least two vectors in each set, got {len(first)} and {len(second)}")
    rng = np.random.default_rng(seed)
    size = max(min(subset_size, len(first) // 2, len(second) // 2), 2)
    count = min(num_subsets, len(first) // size, len(second) // size)
    subsets = (rng.permutation(len(features))[: count * size].reshape(count, size) for features in (first, second))
    values = np.array([squared_mmd(first[a], second[b]) for a, b in zip(*subsets, strict=True)])
    error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return KID(float(values.mean()), float(error))


def squared_mmd(first: np.ndarray, second: np.ndarray) -> float:
    """Return the unbiased estimate of the squared MMD (Gretton et al. 2012, eq. 3) of (n, d) and (m, d) vectors."""
    x, y = (np.asarray(features, np.float64) for features in (first, second))
    return float(_mean_off_diagonal(_kernel(x, x)) + _mean_off_diagonal(_kernel(y, y)) - 2 * _kernel(x, y).mean())


def _kernel(x, y):
    return (x @ y.T / x.shape[1] + 1) ** 3


def _mean_off_diagonal(square):
    return (square.sum() - np.trace(square)) / (len(square) * (len(square) - 1))


class PRDC(NamedTuple):
    """Precision, recall, density and coverage; all but density are fractions.

    Attributes:
      precision: Fraction of samples in the ball of a real image (Kynkaanniemi et al. 2019, eq. 1 and 2).
      recall: Fraction of real images in the ball of a sample.
      density: Mean number of real images' balls that a sample is in, over k (Naeem et al. 2020, eq. 4).
      coverage: Fraction of real images with a sample in their ball (eq. 5).
    """

    precision: float
    recall: float
    density: float
    coverage: float


def precision_recall(real: np.ndarray, samples: np.ndarray, k: int = 3, density_k: int = 5) -> PRDC:
    """Return improved precision and recall, density and coverage, in any features.

    The radius of a vector's ball is the distance to the k-th nearest other vector of its set.

    Args:
      real: (n, d) features of real images, n > k.
      samples: (m, d) features of samples, m > k.
      k: Number of neighbors for precision and recall.
      density_k: Number of neighbors for density and coverage.
    """
    real, samples = (np.asarray(features, np.float64) for features in (real, samples))
    radii, density_radii = _radii(real, (k, density_k))
    (sample_radii,) = _radii(samples, (k,))
    precise, density = np.zeros(len(samples), bool), np.zeros(len(samples))
    recalled, covered = np.zeros(len(real), bool), np.zeros(len(real), bool)
    for first in range(0, len(samples), DISTANCE_ROWS):
        rows = slice(first, first + DISTANCE_ROWS)
        distances = cdist(samples[rows], real)
        precise[rows] = (distances <= radii).any(1)
        density[rows] = (distances <= density_radii).sum(1) / density_k
        recalled |= (distances <= sample_radii[rows, None]).any(0)
        covered |= (distances <= density_radii).any(0)
    return PRDC(*(float(np.mean(values)) for values in (precise, recalled, density, covered)))


def nearest_neighbors(queries: np.ndarray, keys: np.ndarray, k: int) -> np.ndarray:
    """Return the nearest keys of each query, by Euclidean distance.

    Args:
      queries: (n, d) vectors.
      keys: (m, d) vectors.
      k: Number of neighbors, at most m.

    Returns:
      (n, k) indices into keys, nearest first.
    """
    distances = cdist(np.asarray(queries, np.float64), np.asarray(keys, np.float64))
    return np.argsort(distances, axis=1, kind="stable")[:, :k]


def _radii(features: np.ndarray, ks: tuple[int, ...]) -> np.ndarray:
    """Return the (len(ks), n) distances to the k-th nearest other vector."""
    radii = np.empty((len(ks), len(features)))
    for first in range(0, len(features), DISTANCE_ROWS):
        rows = slice(first, first + DISTANCE_ROWS)
        ordered = np.partition(cdist(features[rows], features), ks, axis=1)  # index 0 is the vector itself
        radii[:, rows] = ordered[:, list(ks)].T
    return radii


class InceptionScore(NamedTuple):
    """The mean and standard deviation of the Inception score over parts of the samples."""

    mean: float
    std: float


def inception_score(logits: np.ndarray, num_parts: int = 10) -> InceptionScore:
    """Return exp(mean KL(p(y | x) | p(y))), with p(y) the mean over x (Salimans et al. 2016).

    It is between 1 and the number of classes.

    Args:
      logits: (n, classes) logits.
      num_parts: Number of parts that the samples are split into, at most n. Their sizes differ by at most one.
    """
    log_p = np.asarray(jax.nn.log_softmax(np.asarray(logits, np.float32)), np.float64)
    scores = []
    for part in np.array_split(log_p, min(num_parts, len(log_p))):
        marginal = np.log(np.mean(np.exp(part), axis=0))
        scores.append(np.exp(np.mean(np.sum(np.exp(part) * (part - marginal), axis=1))))
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)))


def sliced_wasserstein(first: np.ndarray, second: np.ndarray, num_directions: int = 128, seed: int = 0) -> float:
    """Return the mean 1-Wasserstein distance of projections on random directions (Rabin et al. 2011).

    Args:
      first: (n, d) points.
      second: (m, d) points.
      num_directions: Number of random directions.
      seed: Seed of the directions.
    """
    directions = np.random.default_rng(seed).standard_normal((num_directions, first.shape[1]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    pairs = zip(
        (np.asarray(first, np.float64) @ directions.T).T, (np.asarray(second, np.float64) @ directions.T).T, strict=True
    )
    return float(np.mean([scipy.stats.wasserstein_distance(a, b) for a, b in pairs]))
