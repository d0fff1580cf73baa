"""The Frechet distance between two sets of feature vectors."""

import numpy as np
import scipy.linalg


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of the means and covariances of two sets.

    The squared 2-Wasserstein distance of Gaussians (Dowson and Landau 1982; Heusel et al. 2017 take it of Inception
    features). tr (C1 C2)^(1/2) is the sum of the singular values of R1 R2^T, where Ci = Ri^T Ri with Ri the triangular
    factor of the centred data: unlike a matrix square root this stays exact where a covariance is singular.

    Args:
      first: (n, features).
      second: (m, features).
    """
    first, second = (np.asarray(x, np.float64) for x in (first, second))
    factors = []
    for x in (first, second):
        factors.append(np.linalg.qr((x - x.mean(0)) / np.sqrt(len(x) - 1), mode="r"))
    cross = np.sum(scipy.linalg.svdvals(factors[0] @ factors[1].T))
    traces = sum(np.sum(factor**2) for factor in factors)
    return float(np.sum((first.mean(0) - second.mean(0)) ** 2) + traces - 2 * cross)
