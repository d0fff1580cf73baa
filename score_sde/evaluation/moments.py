"""Mean and covariance of a stream of feature vectors, and the Frechet distance between two such Gaussians."""

from typing import NamedTuple

import numpy as np
import scipy.linalg


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
