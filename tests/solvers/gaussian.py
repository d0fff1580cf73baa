"""Data N(M, S^2), of which everything is known, and what any solver that is affine in (x, noise) makes of them."""

import jax
import jax.numpy as jnp
import numpy as np

from score_sde.parameterization import Prediction
from score_sde.sde import lift
from score_sde.solvers import solve

M, S = 0.4, 0.6


def denoiser(sde):
    """(x, t) -> E[x0 | x], E[eps | x]: regression of the one on the other, two jointly Gaussian variables."""

    def denoise(x, t):
        alpha, sigma = lift(sde.alpha(t), x), lift(sde.sigma(t), x)
        residual = (x - alpha * M) / (alpha**2 * S**2 + sigma**2)
        return Prediction(M + alpha * S**2 * residual, sigma * residual)

    return denoise


def add_noise(sde, t):
    """Mean and standard deviation of x_t."""
    alpha, sigma = (np.float64(f(jnp.asarray(t, float))) for f in (sde.alpha, sde.sigma))
    return alpha * M, np.sqrt(alpha**2 * S**2 + sigma**2)


def moments(solver, sde, times):
    """Mean and standard deviation of what a solver makes of x ~ N(marginal at times[0]), without drawing anything.

    The result is a x + sum_n b_n z_n + c: a, c and every b_n come from one solve with a batch of unit vectors.
    """
    n = len(times) - 1
    mean, std = add_noise(sde, times[0])
    x = np.zeros((n + 2, 1))
    x[0] = mean
    x[1] = mean + std
    noise = np.zeros((n, n + 2, 1))
    noise[np.arange(n), 2 + np.arange(n)] = 1.0
    x[2:] = mean
    run = jax.jit(lambda x, noise: solve(solver, sde, denoiser(sde), x, times, noise=noise))
    result = run(jnp.asarray(x), jnp.asarray(noise))
    end = np.asarray(result.x)[:, 0]
    assert np.isnan(result.nonfinite_at)
    return end[0], np.sqrt(np.sum((end[1:] - end[0]) ** 2))


def error(solver, sde, times):
    """How far the mean and the standard deviation of the result are from the truth, in standard deviations."""
    mean, std = moments(solver, sde, times)
    true_mean, true_std = add_noise(sde, times[-1])
    return max(abs(mean - true_mean), abs(std - true_std)) / true_std
