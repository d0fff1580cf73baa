"""Forward SDEs and their reverse-time forms.

Every process is linear-Gaussian (Song et al. 2021, "Score-Based Generative Modeling through Stochastic Differential
Equations", Appendix B): the SDE

    dx = f(x, t) dt + g(t) dw

has the marginal x_t = alpha(t) x0 + sigma(t) eps with eps ~ N(0, I). An SDE therefore consists of alpha, sigma, the
drift f, the diffusion g, and the two ends of time. t = 0 is data. A new SDE is one function and one entry of `SDES`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from score_sde.errors import UserError


class SDE(NamedTuple):
    """A linear-Gaussian forward process, as pure functions of time."""

    alpha: Callable[[ArrayLike], jax.Array]  # t -> signal scale, shape of t
    sigma: Callable[[ArrayLike], jax.Array]  # t -> noise standard deviation, shape of t
    drift: Callable[[jax.Array, ArrayLike], jax.Array]  # (x, t) -> f(x, t), shape of x
    diffusion: Callable[[ArrayLike], jax.Array]  # t -> g(t), shape of t
    t_min: float  # where reverse-time integration stops
    t_max: float  # where it starts from the prior
    t_from_log_snr: Callable[[jax.Array], jax.Array] | None = None  # inverse of log_snr in closed form, if there is one


def lift(coefficient: ArrayLike, x: jax.Array) -> jax.Array:
    """Append axes of length one to a coefficient, () or (batch,), so that it multiplies x: (batch, *event)."""
    coefficient = jnp.asarray(coefficient)
    if coefficient.ndim == 0:
        return coefficient
    return coefficient.reshape(coefficient.shape + (1,) * (x.ndim - coefficient.ndim))


def sum_event(x: jax.Array) -> jax.Array:
    """Sum (batch, *event) to (batch,)."""
    return jnp.sum(x, axis=tuple(range(1, x.ndim)))


def time_derivative(function: Callable[[ArrayLike], jax.Array], t: ArrayLike) -> jax.Array:
    """Return d function / dt of an elementwise function of t by automatic differentiation; shape of t."""
    t = jnp.asarray(t, jnp.result_type(t, float))
    return jax.jvp(function, (t,), (jnp.ones_like(t),))[1]


def vp(beta_min: float = 0.1, beta_max: float = 20.0) -> SDE:
    """Return the variance-preserving SDE, dx = -beta(t)/2 x dt + sqrt(beta(t)) dw (Song et al. 2021, eq. 11).

    beta(t) = beta_min + t (beta_max - beta_min), and B(t) is its integral from 0 to t (Appendix C). Then alpha =
    exp(-B/2) and sigma = sqrt(1 - exp(-B)). The latter is computed with expm1, because 1 - exp(-B) loses every digit
    in float32 at t = 1e-7.

    Args:
      beta_min: Value of beta at t = 0, positive.
      beta_max: Value of beta at t = 1, larger than beta_min.

    Returns:
      SDE on [0, 1]. Reverse-time integration stops at 1e-3 (Song et al. 2021, Appendix C).

    Raises:
      UserError: unless 0 < beta_min < beta_max.
    """
    beta, integral, inverse_integral = _linear_beta("vp", beta_min, beta_max)
    return SDE(
        alpha=lambda t: jnp.exp(-0.5 * integral(t)),
        sigma=lambda t: jnp.sqrt(-jnp.expm1(-integral(t))),
        drift=lambda x, t: -0.5 * lift(beta(t), x) * x,
        diffusion=lambda t: jnp.sqrt(beta(t)),
        t_min=1e-3,
        t_max=1.0,
        # snr = exp(-B) / (1 - exp(-B)) implies B = log(1 + 1 / snr).
        t_from_log_snr=lambda log_snr: inverse_integral(jax.nn.softplus(-log_snr)),
    )


def sub_vp(beta_min: float = 0.1, beta_max: float = 20.0) -> SDE:
    """Return the sub-VP SDE: drift and alpha of `vp`, sigma = 1 - exp(-B) (Song et al. 2021, eq. 12 and 29).

    g^2 = beta (1 - exp(-2B)). See `vp` for arguments, range and errors.
    """
    beta, integral, inverse_integral = _linear_beta("sub_vp", beta_min, beta_max)
    return SDE(
        alpha=lambda t: jnp.exp(-0.5 * integral(t)),
        sigma=lambda t: -jnp.expm1(-integral(t)),
        drift=lambda x, t: -0.5 * lift(beta(t), x) * x,
        diffusion=lambda t: jnp.sqrt(-beta(t) * jnp.expm1(-2 * integral(t))),
        t_min=1e-3,
        t_max=1.0,
        # alpha / sigma = 1 / (exp(B/2) - exp(-B/2)) = 1 / (2 sinh(B/2))
        t_from_log_snr=lambda log_snr: inverse_integral(2 * jnp.arcsinh(0.5 * jnp.exp(-0.5 * log_snr))),
    )


def _linear_beta(name: str, beta_min: float, beta_max: float) -> tuple[Callable, Callable, Callable]:
    """Return beta(t), its integral B(t) from 0 to t, and t as a function of B."""
    if not 0 < beta_min < beta_max:
        raise UserError(f"{name}: need 0 < beta_min < beta_max, got beta_min={beta_min}, beta_max={beta_max}")
    rise = beta_max - beta_min

    def inverse_integral(b):
        return 2 * b / (beta_min + jnp.sqrt(beta_min**2 + 2 * rise * b))  # the stable form of the root

    return lambda t: beta_min + t * rise, lambda t: t * (beta_min + 0.5 * t * rise), inverse_integral


def vp_cosine(s: float = 0.008) -> SDE:
    """Return the variance-preserving SDE with alpha = cos(k t + b) / cos(b), k = (pi/2)/(1 + s), b = k s.

    This is the continuous-time limit of the cosine schedule (Nichol and Dhariwal 2021, "Improved DDPM", eq. 17). Its
    alpha reaches 0 at t = 1 (zero terminal SNR). There drift and diffusion are infinite, and x_1 is independent of x0.

    Args:
      s: Offset that makes sigma grow faster near t = 0, positive.

    Returns:
      SDE on [0, 1].

    Raises:
      UserError: if s is not positive.
    """
    if s <= 0:
        raise UserError(f"vp_cosine: expected s > 0, got {s}", "s")
    k = 0.5 * math.pi / (1 + s)
    b = k * s

    def alpha(t):  # cos(k t + b) = sin(k (1 - t)); each form is used where it is accurate
        return jnp.where(t < 0.5, jnp.cos(k * t + b), jnp.sin(k * (1 - t))) / math.cos(b)

    def sigma(t):  # cos(b)^2 - cos(k t + b)^2 = sin(k t) sin(k t + 2 b)
        return jnp.sqrt(jnp.sin(k * t) * jnp.sin(k * t + 2 * b)) / math.cos(b)

    def beta(t):  # -2 d log alpha / dt = 2 k tan(k t + b)
        return 2 * k * jnp.sin(k * t + b) / (alpha(t) * math.cos(b))

    def inverse(log_snr):  # tan(k t) from sin and cos of k t + b, without cancellation
        log_snr = jnp.asarray(log_snr, jnp.result_type(log_snr, float))
        alpha_hat, variance = jnp.sqrt(jax.nn.sigmoid(log_snr)), jax.nn.sigmoid(-log_snr)
        sine = jnp.sqrt(math.sin(b) ** 2 + variance * math.cos(b) ** 2)
        opposite = variance * (math.cos(b) ** 2 / (sine + math.sin(b)) + math.sin(b) / (1 + alpha_hat))
        return jnp.arctan2(opposite, alpha_hat * math.cos(b) + sine * math.tan(b)) / k

    return SDE(
        alpha=alpha,
        sigma=sigma,
        drift=lambda x, t: -0.5 * lift(beta(t), x) * x,
        diffusion=lambda t: jnp.sqrt(beta(t)),
        t_min=1e-3,
        t_max=1.0,
        t_from_log_snr=inverse,
    )


def ve(sigma_min: float = 0.01, sigma_max: float = 50.0) -> SDE:
    """Return the variance-exploding SDE, dx = sqrt(d sigma^2/dt) dw, sigma = sigma_min (sigma_max / sigma_min)^t.

    Song et al. 2021, eq. 9 and Appendix C. At t = 0 the data already has the noise sigma_min, which is negligible.

    Args:
      sigma_min: Noise standard deviation at t = 0, positive.
      sigma_max: Noise standard deviation at t = 1. It should be about the largest distance between two data points
        (Song and Ermon 2020, Technique 1).

    Returns:
      SDE on [0, 1]. Reverse-time integration stops at 1e-5 (Song et al. 2021, Appendix C).

    Raises:
      UserError: unless 0 < sigma_min < sigma_max.
    """
    _check_sigmas("ve", sigma_min, sigma_max)
    middle, log_ratio = math.sqrt(sigma_min * sigma_max), math.log(sigma_max / sigma_min)

    def sigma(t):  # relative to t = 1/2, which halves the exponent and its rounding error
        return middle * jnp.exp((t - 0.5) * log_ratio)

    return SDE(
        alpha=lambda t: jnp.ones_like(t, dtype=jnp.result_type(t, float)),
        sigma=sigma,
        drift=lambda x, t: jnp.zeros_like(x),
        diffusion=lambda t: sigma(t) * math.sqrt(2 * log_ratio),
        t_min=1e-5,
        t_max=1.0,
        t_from_log_snr=lambda log_snr: 0.5 - (0.5 * log_snr + math.log(middle)) / log_ratio,
    )


def edm(sigma_min: float = 0.002, sigma_max: float = 80.0) -> SDE:
    """Return the SDE with alpha = 1 and sigma = t, dx = sqrt(2 t) dw (Karras et al. 2022, EDM, Table 1, "Ours").

    Args:
      sigma_min: Noise level at which reverse-time integration stops, positive.
      sigma_max: Noise level at which it starts.

    Returns:
      SDE on [0, sigma_max], integrated down to sigma_min.

    Raises:
      UserError: unless 0 < sigma_min < sigma_max.
    """
    _check_sigmas("edm", sigma_min, sigma_max)
    return SDE(
        alpha=lambda t: jnp.ones_like(t, dtype=jnp.result_type(t, float)),
        sigma=lambda t: jnp.asarray(t, jnp.result_type(t, float)),
        drift=lambda x, t: jnp.zeros_like(x),
        diffusion=lambda t: jnp.sqrt(2.0 * t),
        t_min=sigma_min,
        t_max=sigma_max,
        t_from_log_snr=lambda log_snr: jnp.exp(-0.5 * log_snr),
    )


def _check_sigmas(name: str, sigma_min: float, sigma_max: float) -> None:
    if not 0 < sigma_min < sigma_max:
        raise UserError(f"{name}: expected 0 < sigma_min < sigma_max, got sigma_min={sigma_min}, sigma_max={sigma_max}")


def flow() -> SDE:
    """Return the SDE of flow matching's straight path x_t = (1 - t) x0 + t eps (Lipman et al. 2023; Liu et al. 2023).

    d log alpha/dt = -1/(1 - t), so f = -x/(1 - t) and g^2 = 2 t/(1 - t). alpha reaches 0 at t = 1 (zero terminal
    SNR). There drift and diffusion are infinite, but the velocity of the probability flow, eps - x0, is finite.

    Returns:
      SDE on [0, 1].
    """

    def alpha(t):
        return 1.0 - jnp.asarray(t)

    return SDE(
        alpha=alpha,
        sigma=lambda t: jnp.asarray(t, jnp.result_type(t, float)),
        drift=lambda x, t: -x / lift(alpha(t), x),
        diffusion=lambda t: jnp.sqrt(2.0 * t / alpha(t)),
        t_min=1e-3,
        t_max=1.0,
        t_from_log_snr=lambda log_snr: jax.nn.sigmoid(-0.5 * log_snr),
    )


def from_schedule(alpha: Callable, sigma: Callable, t_min: float, t_max: float) -> SDE:
    """Return the SDE of alpha(t) and sigma(t): f = (d log alpha/dt) x, g^2 = d sigma^2/dt - 2 (d log alpha/dt) sigma^2.

    Kingma et al. 2021, "Variational Diffusion Models", Section 3. Drift and diffusion use automatic differentiation.

    Args:
      alpha: Signal scale, an elementwise differentiable function of t; alpha / sigma must not increase.
      sigma: Noise standard deviation, an elementwise differentiable function of t.
      t_min: Time at which reverse-time integration stops.
      t_max: Time at which it starts.

    Raises:
      UserError: unless 0 <= t_min < t_max, or if alpha / sigma increases, which would make g^2 negative.
    """
    if not 0 <= t_min < t_max:
        raise UserError(f"from_schedule: expected 0 <= t_min < t_max, got t_min={t_min}, t_max={t_max}")

    def signal(t):  # alpha, but 0 where rounding makes it negative, as cos(pi / 2) in float32
        return alpha(t) - jax.lax.stop_gradient(jnp.minimum(alpha(t), 0.0))

    with jax.ensure_compile_time_eval():
        grid = jnp.linspace(t_min, t_max, 101)[1:]
        ratio = np.asarray(jnp.broadcast_to(signal(grid) / sigma(grid), grid.shape))
    if not (np.diff(ratio) <= 0).all():
        where = float(grid[int(np.argmax(~(np.diff(ratio) <= 0)))])
        raise UserError(f"from_schedule: expected alpha / sigma to decrease, got an increase at t = {where:.3g}")

    def log_alpha_slope(t):
        return time_derivative(alpha, t) / signal(t)

    def diffusion(t):
        return jnp.sqrt(2 * sigma(t) * (time_derivative(sigma, t) - log_alpha_slope(t) * sigma(t)))

    return SDE(signal, sigma, lambda x, t: lift(log_alpha_slope(t), x) * x, diffusion, t_min, t_max)


SDES = {"vp": vp, "vp_cosine": vp_cosine, "sub_vp": sub_vp, "ve": ve, "edm": edm, "flow": flow}


def perturb(sde: SDE, key: jax.Array, x0: jax.Array, t: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Sample x_t given x0 from the forward process, x_t = alpha(t) x0 + sigma(t) epsilon.

    Args:
      sde: Forward process.
      key: Typed PRNG key.
      x0: Data, (batch, *event).
      t: Times, () or (batch,).

    Returns:
      Pair (x_t, epsilon), each of the shape of x0.
    """
    epsilon = jax.random.normal(key, x0.shape, x0.dtype)
    return add_noise(sde, x0, epsilon, t), epsilon


def add_noise(sde: SDE, x0: jax.Array, epsilon: jax.Array, t: ArrayLike) -> jax.Array:
    """Return x_t = alpha(t) x0 + sigma(t) epsilon; x0 and epsilon are (batch, *event), t is () or (batch,)."""
    return lift(sde.alpha(t), x0) * x0 + lift(sde.sigma(t), x0) * epsilon


def prior_sample(sde: SDE, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Sample an array of the given shape from the prior N(0, sigma(t_max)^2 I)."""
    return sde.sigma(sde.t_max) * jax.random.normal(key, shape)


def prior_log_prob(sde: SDE, x: jax.Array) -> jax.Array:
    """Return log N(x; 0, sigma(t_max)^2 I) in nats, (batch,), for x: (batch, *event)."""
    scale = sde.sigma(sde.t_max)
    return sum_event(-0.5 * (x / scale) ** 2 - jnp.log(scale) - 0.5 * jnp.log(2 * jnp.pi))


NO_SIGNAL = -30.0  # log-SNR below which alpha counts as 0, because 1 / alpha amplifies rounding errors


def log_snr(sde: SDE, t: ArrayLike) -> jax.Array:
    """Return log(alpha^2 / sigma^2), of the shape of t; its derivative in t is -g^2 / sigma^2."""
    return 2 * (jnp.log(sde.alpha(t)) - jnp.log(sde.sigma(t)))


def t_from_log_snr(sde: SDE, log_snr: ArrayLike) -> jax.Array:
    """Return the time at which alpha^2 / sigma^2 = exp(log_snr), of the shape of log_snr.

    This is the inverse of `log_snr`. It uses the closed form of the SDE if there is one, otherwise bisection on
    [0, t_max], which clips to the ends.
    """
    level = jnp.asarray(log_snr, jnp.result_type(log_snr, float))
    if sde.t_from_log_snr is not None:
        return sde.t_from_log_snr(level)
    return _bisect(lambda t: 2 * (jnp.log(sde.alpha(t)) - jnp.log(sde.sigma(t))), sde.t_max, level)


def _bisect(decreasing: Callable, t_max: float, value: jax.Array) -> jax.Array:
    """Return t in [0, t_max] with decreasing(t) = value, elementwise, to the last bit; differentiable in value."""

    @jax.custom_jvp
    def inverse(value):
        def halve(_, bracket):
            low, high = bracket
            middle = 0.5 * (low + high)
            later = decreasing(middle) > value
            return jnp.where(later, middle, low), jnp.where(later, high, middle)

        steps = jnp.finfo(value.dtype).nmant + 30  # a full mantissa for t down to 2^-30 t_max
        bracket = jnp.zeros_like(value), jnp.full_like(value, t_max)
        return jax.lax.fori_loop(0, steps, halve, bracket)[1]

    @inverse.defjvp
    def derivative(primals, tangents):
        t = inverse(*primals)
        return t, tangents[0] / time_derivative(decreasing, t)  # derivative of the inverse function

    return inverse(value)


def reverse_sde_epsilon(sde: SDE, epsilon_fn: Callable) -> tuple[Callable, Callable]:
    """Return the reverse SDE dx = [f(x, t) + g(t)^2 / sigma(t) epsilon(x, t)] dt + g(t) dw̄ (Song et al. 2021, eq. 6).

    The score of eq. 6 is -epsilon / sigma.

    Args:
      sde: Forward process.
      epsilon_fn: Noise prediction (x, t) -> E[epsilon | x_t = x], of the shape of x.

    Returns:
      Pair (drift(x, t), diffusion(t)). Time decreases from t_max, so dt is negative.
    """

    def drift(x, t):
        return sde.drift(x, t) + lift(sde.diffusion(t) ** 2 / sde.sigma(t), x) * epsilon_fn(x, t)

    return drift, sde.diffusion


def probability_flow_epsilon(sde: SDE, epsilon_fn: Callable) -> Callable:
    """Return the drift of dx = [f(x, t) + g(t)^2 / (2 sigma(t)) eps(x, t)] dt (Song et al. 2021, eq. 13)."""

    def drift(x, t):
        return sde.drift(x, t) + lift(sde.diffusion(t) ** 2 / (2 * sde.sigma(t)), x) * epsilon_fn(x, t)

    return drift


def reverse_sde(sde: SDE, score_fn: Callable) -> tuple[Callable, Callable]:
    """Return (drift(x, t), diffusion(t)) of the reverse SDE from score_fn: (x, t) -> grad log p_t(x)."""
    return reverse_sde_epsilon(sde, lambda x, t: -lift(sde.sigma(t), x) * score_fn(x, t))


def probability_flow(sde: SDE, score_fn: Callable) -> Callable:
    """Return the drift(x, t) of the probability flow ODE from score_fn: (x, t) -> grad log p_t(x)."""
    return probability_flow_epsilon(sde, lambda x, t: -lift(sde.sigma(t), x) * score_fn(x, t))
