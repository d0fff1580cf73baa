"""How much of samples lies among real data and the other way round, by balls that reach to nearest neighbours."""

from typing import NamedTuple

import numpy as np
from scipy.spatial.distance import cdist

ROWS = 1000  # of a matrix of distances held at a time


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
    for first in range(0, len(samples), ROWS):
        rows = slice(first, first + ROWS)
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
    for first in range(0, len(features), ROWS):
        rows = slice(first, first + ROWS)
        ordered = np.partition(cdist(features[rows], features), neighbours, axis=1)  # the 0th is the vector itself
        radii[:, rows] = ordered[:, list(neighbours)].T
    return radii
