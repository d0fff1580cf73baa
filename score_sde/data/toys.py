"""Data in two dimensions, of about the size of pixels in [-1, 1]: densities one can look at.

Each is drawn once from a fixed seed, so that a run sees the same set whenever it resumes; train and test differ.
"""

from collections.abc import Callable, Sequence

import numpy as np

from score_sde.errors import UserError

Draw = Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]  # (rng, n) -> points (n, d), labels (n,)


def draw_mixture(means: Sequence[Sequence[float]], stds: Sequence[float], weights: Sequence[float] = ()) -> Draw:
    """sum_k w_k N(mean_k, std_k^2 I), in any dimension; the label is the component."""
    if not len(means) == len(stds) or len(weights) not in (0, len(means)) or not len(means):
        raise UserError(
            f"mixture: got {len(means)} means, {len(stds)} stds and {len(weights)} weights; one of each a "
            "component is needed"
        )
    centres = np.asarray(means, np.float64)
    shares = np.asarray(weights if len(weights) else np.ones(len(means)), np.float64)

    def draw(rng, n):
        labels = rng.choice(len(means), n, p=shares / shares.sum())
        return centres[labels] + np.asarray(stds)[labels, None] * rng.standard_normal((n, centres.shape[1])), labels

    return draw


def draw_two_moons(noise: float = 0.05) -> Draw:
    """Two half circles that reach into each other; the label is the moon."""

    def draw(rng, n):
        labels = rng.integers(2, size=n)
        angle = np.pi * rng.random(n)
        moon = np.stack([np.cos(angle), np.sin(angle)], 1)
        points = np.where(labels[:, None] == 0, moon, np.array([1.0, 0.5]) - moon) - np.array([0.5, 0.25])
        return 0.65 * points + noise * rng.standard_normal((n, 2)), labels

    return draw


def draw_swiss_roll(noise: float = 0.03) -> Draw:
    """A spiral of one and a half turns, seen from above; one label."""

    def draw(rng, n):
        angle = 1.5 * np.pi * (1 + 2 * rng.random(n))
        points = angle[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1) / (4.5 * np.pi)
        return points + noise * rng.standard_normal((n, 2)), np.zeros(n, np.int64)

    return draw


def draw_checkerboard() -> Draw:
    """The 8 dark squares of a 4x4 board on [-1, 1]^2, evenly; the label is the square. Its density has edges."""

    def draw(rng, n):
        labels = rng.integers(8, size=n)
        row, pair = np.divmod(labels, 2)
        corner = np.stack([2 * pair + row % 2, row], 1)
        return (corner + rng.random((n, 2))) / 2 - 1, labels

    return draw
