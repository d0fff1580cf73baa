"""The Inception score (Salimans et al. 2016), of any classifier's logits."""

from typing import NamedTuple

import jax
import numpy as np


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
