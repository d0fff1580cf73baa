"""Closed forms for Gaussian and mixture data: exact denoisers, densities, posteriors and solver errors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from score_sde.errors import UserError, cut
from score_sde.flow_map import FlowMap, chord
from score_sde.models.mixture import Mixture
from score_sde.parameterization import Denoiser, Prediction, make_denoiser
from score_sde.sde import SDE, lift, log_snr, sum_event
from score_sde.solvers import Solver, solve


@dataclass(frozen=True)
class ExactDenoiser:
    """An exact denoiser (x, t) -> Prediction, with the log-density of its marginals.

    Attributes:
      predict: Function (x (batch, *event), t () or (batch,)) -> Prediction.
      log_prob: Function (x, t) -> (batch,) log p_t(x) in nats.
    """

    predict: Callable[[jax.Array, ArrayLike], Prediction]
    log_prob: Callable[[jax.Array, ArrayLike], jax.Array]

    def __call__(self, x: jax.Array, t: ArrayLike) -> Prediction:
        """Return E[x0 | x_t] and E[eps | x_t]."""
        return self.predict(x, t)


def gaussian_denoiser(sde: SDE, mean: ArrayLike, std: ArrayLike) -> ExactDenoiser:
    """Return the denoiser of data N(mean, std^2) with independent components.

    The marginal is N(alpha mean, tau^2) with tau^2 = alpha^2 std^2 + sigma^2, and x0 and eps are the linear regressions
    on it, x0 = mean + alpha std^2 (x - alpha mean) / tau^2 and eps = sigma (x - alpha mean) / tau^2.

    Args:
      sde: Forward process.
      mean: Mean, a number or an array of the event's shape.
      std: Standard deviation, a number or an array of the event's shape.
    """

    def parts(x, t):
        alpha, sigma = lift(sde.alpha(t), x), lift(sde.sigma(t), x)
        return alpha, sigma, x - alpha * mean, alpha**2 * jnp.asarray(std, x.dtype) ** 2 + sigma**2

    def predict(x, t):
        alpha, sigma, offset, variance = parts(x, t)
        return Prediction(mean + alpha * jnp.asarray(std, x.dtype) ** 2 * offset / variance, sigma * offset / variance)

    def log_prob(x, t):
        _, _, offset, variance = parts(x, t)
        return -0.5 * sum_event(offset**2 / variance + jnp.log(2 * jnp.pi * variance))

    return ExactDenoiser(predict, log_prob)


def subspace_denoiser(sde: SDE, denoiser: Denoiser, basis: ArrayLike) -> Denoiser:
    """Return the denoiser of x0 = basis @ z0, given the denoiser of z0.

    The noise orthogonal to the subspace is independent of the data. So E[x0 | x] = basis @ E[z0 | z] with
    z = basis^T x, and the rest of x is noise: E[eps | x] = basis @ E[eps | z] + (x - basis @ z) / sigma. At sigma = 0,
    where x has no noise, the last term is 0.

    Args:
      sde: Forward process.
      denoiser: Denoiser of z0, (batch, k).
      basis: Orthonormal columns, (d, k).
    """

    def predict(x, t):
        columns = jnp.asarray(basis, x.dtype)
        product = partial(jnp.matmul, precision="highest")  # because x - basis @ z cancels
        z = product(x, columns)
        low = denoiser(z, t)
        sigma = lift(sde.sigma(t), x)
        orthogonal = jnp.where(sigma > 0, (x - product(z, columns.T)) / jnp.where(sigma > 0, sigma, 1.0), 0.0)
        return Prediction(product(low.x0, columns.T), product(low.epsilon, columns.T) + orthogonal)

    return predict


def gaussian_flow_map(sde: SDE, mean: ArrayLike, std: ArrayLike) -> FlowMap:
    """Build the chord pair of data N(mean, std^2) with independent components, finite at all t and r.

    The flow keeps (x - alpha mean) / tau. With the angles phi = atan2(sigma, alpha std), their mean m and difference
    delta at t and r: (X - mean) / std = cos(m) / cos(delta / 2) z and E = sin(m) / cos(delta / 2) z, where
    z = (x - alpha_t mean) / tau_t.

    Raises:
      UserError: unless std > 0.
    """
    _check_std("gaussian_flow_map", std)

    def predict(x, t, r):
        data_std = jnp.asarray(std, x.dtype)
        (alpha, sigma), (alpha_r, sigma_r) = ((lift(sde.alpha(s), x), lift(sde.sigma(s), x)) for s in (t, r))
        phi, phi_r = jnp.arctan2(sigma, alpha * data_std), jnp.arctan2(sigma_r, alpha_r * data_std)
        z = (x - alpha * mean) / jnp.hypot(alpha * data_std, sigma) / jnp.cos(0.5 * (phi - phi_r))
        return Prediction(mean + data_std * jnp.cos(0.5 * (phi + phi_r)) * z, jnp.sin(0.5 * (phi + phi_r)) * z)

    return predict


def mixture_flow_map_1d(
    sde: SDE, means: Sequence[float], stds: Sequence[float], weights: Sequence[float] = ()
) -> FlowMap:
    """Return the chord pair of a mixture of normal distributions, for each component of x on its own, at r != t.

    The flow keeps the distribution function of the marginal: Phi = F_r^-1(F_t(x)). The inverse is found by bisection,
    and by two steps of Newton's method, which also give its derivatives.

    Raises:
      UserError: unless every std > 0.
    """
    _check_std("mixture_flow_map_1d", stds)
    share = np.asarray(weights if len(weights) else np.ones(len(means)), float)

    def moments(t, x):
        alpha, sigma = lift(sde.alpha(t), x), lift(sde.sigma(t), x)
        return [(alpha * mean, jnp.hypot(alpha * std, sigma)) for mean, std in zip(means, stds, strict=True)]

    def average(function, t, x):
        values = (function(x, *component) for component in moments(t, x))
        return sum(weight * value for weight, value in zip(share / share.sum(), values, strict=True))

    def tail(sign, t, x):
        """Return F_t(x) for the sign 1, and 1 - F_t(x) for -1."""
        return average(lambda x, mean, std: jax.scipy.stats.norm.cdf(sign * (x - mean) / std), t, x)

    def predict(x, t, r):
        sign = jnp.where(tail(1, t, x) < 0.5, 1, -1)  # of the smaller tail, which keeps its digits
        value = tail(sign, t, x)

        def excess(y):
            return sign * (tail(sign, r, y) - value)

        low = jnp.min(jnp.stack([center - 12 * std + 0 * x for center, std in moments(r, x)]), axis=0)
        high = jnp.max(jnp.stack([center + 12 * std + 0 * x for center, std in moments(r, x)]), axis=0)

        def halve(_, ends):
            low, high = ends
            between = 0.5 * (low + high)
            below = excess(between) < 0
            return jnp.where(below, between, low), jnp.where(below, high, between)

        root = jax.lax.stop_gradient(0.5 * sum(jax.lax.fori_loop(0, 60, halve, (low, high))))
        for _ in range(2):
            root = root - excess(root) / average(jax.scipy.stats.norm.pdf, r, root)
        return chord(sde, x, root, t, r)

    return predict


def correlated_gaussian_denoiser(sde: SDE, mean: np.ndarray, covariance: np.ndarray) -> Callable:
    """Return the denoiser of data N(mean, covariance) in d dimensions, for x (batch, d)."""
    values, vectors = np.linalg.eigh(covariance)

    def predict(x, t):
        alpha, sigma = lift(sde.alpha(t), x), lift(sde.sigma(t), x)
        variances, rotation = jnp.asarray(values, x.dtype)[None], jnp.asarray(vectors, x.dtype)
        center = jnp.asarray(mean, x.dtype)[None]
        offset = (x - alpha * center) @ rotation / (alpha**2 * variances + sigma**2)
        return Prediction(center + (alpha * variances * offset) @ rotation.T, sigma * (offset @ rotation.T))

    return predict


def gaussian_posterior(
    mean: np.ndarray, covariance: np.ndarray, operator: np.ndarray, y: np.ndarray, noise: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and covariance of x0 ~ N(mean, covariance) given y = A x0 + noise z.

    Args:
      mean: (d,) prior mean.
      covariance: (d, d) prior covariance.
      operator: (m, d) matrix A.
      y: (m,) measurement.
      noise: Standard deviation of the measurement noise.
    """
    gain = (
        covariance @ operator.T @ np.linalg.inv(operator @ covariance @ operator.T + noise**2 * np.eye(len(operator)))
    )
    return mean + gain @ (y - operator @ mean), covariance - gain @ operator @ covariance


def moment_errors(samples: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> tuple[float, float]:
    """Return the errors of the mean and the covariance of samples (n, d).

    The first is in standard deviations, as a root mean square over dimensions; the second is relative to the Frobenius
    norm of the covariance.
    """
    samples = np.asarray(samples, np.float64)
    mean_error = np.linalg.norm(samples.mean(0) - mean) / np.sqrt(np.trace(covariance))
    covariance_error = np.linalg.norm(np.cov(samples.T) - covariance) / np.linalg.norm(covariance)
    return float(mean_error), float(covariance_error)


def mixture_denoiser(
    sde: SDE, means: Sequence[Sequence[float]], stds: Sequence[float], weights: Sequence[float] = ()
) -> ExactDenoiser:
    """Return the denoiser of the Gaussian mixture sum_k w_k N(mean_k, std_k^2 I), for x (batch, d).

    Args:
      sde: Forward process.
      means: K means of d numbers.
      stds: K standard deviations, 0 for a point.
      weights: K positive weights, which are normalized; equal if empty.
    """
    module = Mixture(_tuples(means), _tuples(stds), _tuples(weights))

    def log_prob(x, t):
        # The module takes x on the scale of a variance-preserving process, c = alpha / scale and s = sigma / scale.
        t = jnp.asarray(t, x.dtype)
        scale = jnp.sqrt(sde.alpha(t) ** 2 + sde.sigma(t) ** 2)
        level = jnp.broadcast_to(log_snr(sde, t), x.shape[:1])
        log_density = module.apply({}, x / lift(scale, x), level, method="log_prob")
        return log_density - x[0].size * jnp.log(scale)

    return ExactDenoiser(
        make_denoiser(lambda x, level: module.apply({}, x, level), sde, preconditioning="log_snr"), log_prob
    )


def gaussian_marginal(sde: SDE, mean: float, std: float, t: ArrayLike) -> tuple[Any, Any]:
    """Return the mean and standard deviation of x_t for data N(mean, std^2), in float64."""
    alpha, sigma = (np.float64(f(jnp.asarray(t, float))) for f in (sde.alpha, sde.sigma))
    return alpha * mean, np.sqrt(alpha**2 * std**2 + sigma**2)


def solver_moments(solver: Solver, sde: SDE, times: Any, mean: float, std: float) -> tuple[float, float]:
    """Return the mean and standard deviation of a solver's result on data N(mean, std^2), without sampling.

    The solver must be affine in x and its noise, so that its result is a x + sum_n b_n z_n + c. One solve with a batch
    of unit vectors gives a, c and every b_n.
    """
    num_steps = len(times) - 1
    prior_mean, prior_std = gaussian_marginal(sde, mean, std, times[0])
    x = np.full((num_steps + 2, 1), prior_mean)
    x[1] += prior_std
    noise = np.zeros((num_steps, num_steps + 2, 1))
    noise[np.arange(num_steps), 2 + np.arange(num_steps)] = 1.0
    denoiser = gaussian_denoiser(sde, mean, std)
    result = jax.jit(lambda x, noise: solve(solver, sde, denoiser, x, times, noise=noise))(x, noise)
    if not np.isnan(result.nonfinite_at):
        raise FloatingPointError(f"solver_moments: not finite at t = {result.nonfinite_at}")
    end = np.asarray(result.x)[:, 0]
    return float(end[0]), float(np.sqrt(np.sum((end[1:] - end[0]) ** 2)))


def flow_error(solver: Solver, sde: SDE, times: Any, mean: float, std: float) -> float:
    """Return the largest error of a solver of the probability flow from five points, on data N(mean, std^2).

    The exact flow maps x_T to alpha_t mean + (tau_t / tau_T) (x_T - alpha_T mean), tau^2 = alpha^2 std^2 + sigma^2.
    """
    (mean_1, std_1), (mean_0, std_0) = (gaussian_marginal(sde, mean, std, t) for t in (times[0], times[-1]))
    x = mean_1 + std_1 * jnp.linspace(-2.0, 2.0, 5)[:, None]
    exact = mean_0 + std_0 / std_1 * (x - mean_1)
    result = jax.jit(lambda x: solve(solver, sde, gaussian_denoiser(sde, mean, std), x, times).x)(x)
    return float(np.abs(result - exact).max())


def solver_error(solver: Solver, sde: SDE, times: Any, mean: float, std: float) -> float:
    """Return the error of a solver's mean or standard deviation on data N(mean, std^2), in standard deviations."""
    found_mean, found_std = solver_moments(solver, sde, times, mean, std)
    true_mean, true_std = gaussian_marginal(sde, mean, std, times[-1])
    return float(max(abs(found_mean - true_mean), abs(found_std - true_std)) / true_std)


def _check_std(name: str, std: Any) -> None:
    if not isinstance(std, jax.core.Tracer) and not np.all(np.asarray(std) > 0):
        raise UserError(f"{name}: expected std > 0, got {cut(str(std))}.", "std")


def _tuples(values: Any) -> Any:
    """Return nested sequences as tuples, which a Flax module can hash."""
    return tuple(_tuples(value) for value in values) if np.ndim(values) else float(values)
