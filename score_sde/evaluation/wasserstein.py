"""The sliced Wasserstein distance between two sets of points."""

import numpy as np
import scipy.stats


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
