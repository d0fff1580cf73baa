"""Distances between sets of samples: FID, KID, precision and recall, the Inception score, sliced Wasserstein."""

from typing import NamedTuple

import jax
import numpy as np
import scipy.linalg
import scipy.stats
from scipy.spatial.distance import cdist

from score_sde.errors import UserError

DISTANCE_ROWS = 1000  # rows of a matrix of distances held at a time


class Moments(NamedTuple):
    """Of a set of vectors, in float64; sets are merged exactly, whatever parts they come in."""

    number: int
    mean: np.ndarray  # (features,)
    scatter: np.ndarray  # (features, features), sum of (x - mean)(x - mean)^T

    @property
    def covariance(self) -> np.ndarray:
        """(features, features), unbiased."""
        return self.scatter / (self.number - 1)


def moments_of(features: np.ndarray) -> Moments:
    """Of (n, features) vectors."""
    x = np.asarray(features, np.float64)
    mean = x.mean(0)
    centred = x - mean
    return Moments(len(x), mean, centred.T @ centred)


def merge(first: Moments, second: Moments) -> Moments:
    """Of two sets together (Chan, Golub and LeVeque 1979); exact also where the mean is large beside the spread."""
    number = first.number + second.number
    apart = second.mean - first.mean
    mean = first.mean + apart * (second.number / number)
    scatter = first.scatter + second.scatter + np.outer(apart, apart) * (first.number * second.number / number)
    return Moments(number, mean, scatter)


def frechet_distance(first: Moments, second: Moments) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), the squared 2-Wasserstein distance of two Gaussians.

    Dowson and Landau 1982; Heusel et al. 2017 take it of Inception features and call it FID. tr (C1 C2)^(1/2) is the
    sum of the singular values of C1^(1/2) C2^(1/2): unlike the root of a product this stays exact where a covariance
    is singular, as it is of fewer vectors than features.
    """
    roots = [_root(moments.covariance) for moments in (first, second)]
    cross = np.sum(scipy.linalg.svdvals(roots[0] @ roots[1]))
    traces = np.trace(first.covariance) + np.trace(second.covariance)
    return float(np.sum((first.mean - second.mean) ** 2) + traces - 2 * cross)


def _root(covariance: np.ndarray) -> np.ndarray:
    """The symmetric square root; rounding's negative eigenvalues are 0."""
    values, vectors = scipy.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T


class KernelDistance(NamedTuple):
    """A mean over subsets, and its standard error."""

    mean: float
    standard_error: float


def kernel_distance(
    first: np.ndarray, second: np.ndarray, num_subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> KernelDistance:
    """KID of two sets of features, of the kernel (x.y / d + 1)^3; it may be negative, and is 0 on average of one law.

    Each set is cut into disjoint subsets, so that the values are independent and their spread gives the standard error
    (the reference draws subsets that overlap); of sets of two or three vectors there is one value, and no error.

    Args:
      first: (n, d).
      second: (m, d).
      num_subsets: at most.
      subset_size: at most; half of a set that has fewer than twice as many.
      seed: of the subsets.

    Raises:
      UserError: a set has fewer than two vectors.
    """
    if min(len(first), len(second)) < 2:
        raise UserError(f"KID takes two vectors of each set, got {len(first)} and {len(second)}")
    rng = np.random.default_rng(seed)
    size = max(min(subset_size, len(first) // 2, len(second) // 2), 2)
    number = min(num_subsets, len(first) // size, len(second) // size)
    subsets = (rng.permutation(len(features))[: number * size].reshape(number, size) for features in (first, second))
    values = np.array([squared_mmd(first[a], second[b]) for a, b in zip(*subsets, strict=True)])
    error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return KernelDistance(float(values.mean()), float(error))


def squared_mmd(first: np.ndarray, second: np.ndarray) -> float:
    """The unbiased estimate of the squared discrepancy (Gretton et al. 2012, eq. 3) of (n, d) and (m, d) vectors."""
    x, y = (np.asarray(features, np.float64) for features in (first, second))
    return float(_mean_off_diagonal(_kernel(x, x)) + _mean_off_diagonal(_kernel(y, y)) - 2 * _kernel(x, y).mean())


def _kernel(x, y):
    return (x @ y.T / x.shape[1] + 1) ** 3


def _mean_off_diagonal(square):
    return (square.sum() - np.trace(square)) / (len(square) * (len(square) - 1))


class Manifolds(NamedTuple):
    """Shares between 0 and 1; density may be above 1."""

    precision: float  # samples inside of some real image's ball (Kynkaanniemi et al. 2019, eq. 1 and 2)
    recall: float  # real images inside of some sample's ball
    density: float  # real images' balls that a sample lies in, over k (Naeem et al. 2020, eq. 4)
    coverage: float  # real images with a sample in their ball (eq. 5)


def manifolds(real: np.ndarray, samples: np.ndarray, neighbours: int = 3, density_neighbours: int = 5) -> Manifolds:
    """Improved precision and recall, density and coverage, in any features.

    A ball's radius is the distance to the k-th nearest other vector of its own set.

    Args:
      real: (n, features), n > k.
      samples: (m, features), m > k.
      neighbours: k of precision and recall.
      density_neighbours: k of density and coverage.
    """
    real, samples = (np.asarray(features, np.float64) for features in (real, samples))
    radii, wider = _radii(real, (neighbours, density_neighbours))
    (sample_radii,) = _radii(samples, (neighbours,))
    precise, dense = np.zeros(len(samples), bool), np.zeros(len(samples))
    recalled, covered = np.zeros(len(real), bool), np.zeros(len(real), bool)
    for first in range(0, len(samples), DISTANCE_ROWS):
        rows = slice(first, first + DISTANCE_ROWS)
        distances = cdist(samples[rows], real)
        precise[rows] = (distances <= radii).any(1)
        dense[rows] = (distances <= wider).sum(1) / density_neighbours
        recalled |= (distances <= sample_radii[rows, None]).any(0)
        covered |= (distances <= wider).any(0)
    return Manifolds(*(float(np.mean(part)) for part in (precise, recalled, dense, covered)))


def nearest(queries: np.ndarray, keys: np.ndarray, number: int) -> np.ndarray:
    """The nearest keys of each query, by Euclidean distance.

    Args:
      queries: (n, features).
      keys: (m, features).
      number: how many, at most m.

    Returns:
      (n, number) places in keys, nearest first.
    """
    distances = cdist(np.asarray(queries, np.float64), np.asarray(keys, np.float64))
    return np.argsort(distances, axis=1, kind="stable")[:, :number]


def _radii(features: np.ndarray, neighbours: tuple[int, ...]) -> np.ndarray:
    """(len(neighbours), n) distances to the k-th nearest other vector."""
    radii = np.empty((len(neighbours), len(features)))
    for first in range(0, len(features), DISTANCE_ROWS):
        rows = slice(first, first + DISTANCE_ROWS)
        ordered = np.partition(cdist(features[rows], features), neighbours, axis=1)  # the 0th is the vector itself
        radii[:, rows] = ordered[:, list(neighbours)].T
    return radii


class Score(NamedTuple):
    """Over parts of the samples."""

    mean: float
    std: float


def inception_score(logits: np.ndarray, num_parts: int = 10) -> Score:
    """exp(mean KL(p(y | x) | p(y))), p(y) being the mean over x: from 1 to the number of classes.

    Args:
      logits: (n, classes).
      num_parts: the score is taken of so many parts of equal size, at most n; what is left over is not dropped: parts
        differ by one sample at most.
    """
    log_p = np.asarray(jax.nn.log_softmax(np.asarray(logits, np.float32)), np.float64)
    scores = []
    for part in np.array_split(log_p, min(num_parts, len(log_p))):
        marginal = np.log(np.mean(np.exp(part), axis=0))
        scores.append(np.exp(np.mean(np.sum(np.exp(part) * (part - marginal), axis=1))))
    return Score(float(np.mean(scores)), float(np.std(scores)))


def sliced_wasserstein(first: np.ndarray, second: np.ndarray, num_directions: int = 128, seed: int = 0) -> float:
    """The mean 1-Wasserstein distance of projections on random directions (Rabin et al. 2011).

    Args:
      first: (n, features).
      second: (m, features).
      num_directions: random directions, the same for every call with a seed.
      seed: of the directions.
    """
    directions = np.random.default_rng(seed).standard_normal((num_directions, first.shape[1]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    pairs = zip(
        (np.asarray(first, np.float64) @ directions.T).T, (np.asarray(second, np.float64) @ directions.T).T, strict=True
    )
    return float(np.mean([scipy.stats.wasserstein_distance(a, b) for a, b in pairs]))
