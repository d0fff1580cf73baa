"""A Gaussian mixture whose marginals, scores and denoisers are known at every time, written out for the tests."""

import jax
import jax.numpy as jnp
import numpy as np

from score_sde.parameterization import Prediction
from score_sde.sde import lift

MEANS = np.array([[-0.8, -0.5], [0.7, -0.2], [0.1, 0.9]])
STDS = np.array([0.1, 0.2, 0.3])
WEIGHTS = np.array([0.5, 0.3, 0.2])


def draw(n: int, seed: int) -> np.ndarray:
    """(n, 2) samples."""
    rng = np.random.default_rng(seed)
    component = rng.choice(3, n, p=WEIGHTS)
    return MEANS[component] + STDS[component, None] * rng.standard_normal((n, 2))


def log_density(x, alpha, sigma):
    """log p of alpha x0 + sigma eps at x (batch, 2); alpha and sigma are () or (batch,); the shape (batch,)."""
    alpha, sigma = (jnp.broadcast_to(c, x.shape[:1])[:, None] for c in (alpha, sigma))
    variance = alpha**2 * STDS[None] ** 2 + sigma**2
    distance = jnp.sum((x[:, None] - alpha[..., None] * MEANS[None]) ** 2, axis=-1)
    logs = jnp.log(WEIGHTS)[None] - jnp.log(2 * jnp.pi * variance) - 0.5 * distance / variance
    return jax.nn.logsumexp(logs, axis=1)


def score(sde):
    """(x, t) -> grad log p_t(x)."""
    return jax.grad(lambda x, t: jnp.sum(log_density(x, sde.alpha(t), sde.sigma(t))))


def denoiser(sde):
    """(x, t) -> E[x0 | x], E[eps | x] through the score: eps = -sigma score; for alpha > 0."""

    def denoise(x, t):
        epsilon = -lift(sde.sigma(t), x) * score(sde)(x, t)
        return Prediction((x - lift(sde.sigma(t), x) * epsilon) / lift(sde.alpha(t), x), epsilon)

    return denoise


def sliced_wasserstein(a, b, num_directions: int = 64) -> float:
    """The sliced 1-Wasserstein distance of two samples of one size (n, 2)."""
    angles = np.pi * np.arange(num_directions) / num_directions
    directions = np.stack([np.cos(angles), np.sin(angles)])
    a, b = np.sort(np.asarray(a, np.float64) @ directions, 0), np.sort(np.asarray(b, np.float64) @ directions, 0)
    return float(np.abs(a - b).mean())
