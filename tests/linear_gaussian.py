"""Gaussian data N(m, C) and what y = A x0 + noise says of them, in closed form."""

import jax.numpy as jnp
import numpy as np

from score_sde.parameterization import Prediction


def denoiser(sde, mean, covariance):
    """(x, t) -> E[x0 | x], E[eps | x], x (batch, d): regression on x_t = alpha x0 + sigma eps."""
    values, vectors = np.linalg.eigh(covariance)

    def denoise(x, t):
        alpha, sigma = (
            jnp.broadcast_to(f(jnp.asarray(t, x.dtype)), x.shape[:1])[:, None] for f in (sde.alpha, sde.sigma)
        )
        own = jnp.asarray(values, x.dtype)[None]
        rotation = jnp.asarray(vectors, x.dtype)
        offset = (x - alpha * jnp.asarray(mean, x.dtype)[None]) @ rotation / (alpha**2 * own + sigma**2)
        x0 = jnp.asarray(mean, x.dtype)[None] + (alpha * own * offset) @ rotation.T
        return Prediction(x0, sigma * (offset @ rotation.T))

    return denoise


def posterior(mean, covariance, a, y, noise):
    """Mean and covariance of x0 given y = A x0 + noise z."""
    gain = covariance @ a.T @ np.linalg.inv(a @ covariance @ a.T + noise**2 * np.eye(len(a)))
    return mean + gain @ (y - a @ mean), covariance - gain @ a @ covariance


def errors(samples, mean, covariance):
    """How far samples (n, d) are off: of the mean in standard deviations of the posterior, rms over dimensions, and of
    the covariance relative to its Frobenius norm."""
    samples = np.asarray(samples, np.float64)
    scale = np.sqrt(np.trace(covariance))
    of_mean = np.linalg.norm(samples.mean(0) - mean) / scale
    of_covariance = np.linalg.norm(np.cov(samples.T) - covariance) / np.linalg.norm(covariance)
    return float(of_mean), float(of_covariance)
