"""The kernel Inception distance (Binkowski et al. 2018): a squared maximum mean discrepancy, without bias."""

from typing import NamedTuple

import numpy as np

from score_sde.errors import UserError


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
