"""Forward SDEs and their reverse-time forms.

Every process is linear-Gaussian (Song et al. 2021, "Score-Based Generative Modeling through Stochastic Differential
Equations", Appendix B): the SDE

    dx = f(x, t) dt + g(t) dw

has the marginal x_t = alpha(t) x0 + sigma(t) eps with eps ~ N(0, I). An SDE is therefore six things: alpha, sigma, the
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
    """A linear-Gaussian forward process, as pure functions of time; build it once a run and close over it."""

    alpha: Callable[[ArrayLike], jax.Array]  # t -> signal scale, shape of t
    sigma: Callable[[ArrayLike], jax.Array]  # t -> noise standard deviation, shape of t
    drift: Callable[[jax.Array, ArrayLike], jax.Array]  # (x, t) -> f(x, t), shape of x
    diffusion: Callable[[ArrayLike], jax.Array]  # t -> g(t), shape of t
    t_min: float  # where reverse-time integration stops
    t_max: float  # where it starts, from the prior
    t_from_log_snr: Callable[[jax.Array], jax.Array] | None = None  # the inverse of log_snr, where it has a closed form


def lift(coefficient: ArrayLike, x: jax.Array) -> jax.Array:
    """Appends axes of length one to a coefficient of shape () or (batch,), so that it multiplies x: (batch, *event)."""
    coefficient = jnp.asarray(coefficient)
    if coefficient.ndim == 0:
        return coefficient
    return coefficient.reshape(coefficient.shape + (1,) * (x.ndim - coefficient.ndim))


def sum_event(x: jax.Array) -> jax.Array:
    """Sums (batch, *event) to (batch,)."""
    return jnp.sum(x, axis=tuple(range(1, x.ndim)))


def slope(function: Callable[[ArrayLike], jax.Array], t: ArrayLike) -> jax.Array:
    """d function / dt by automatic differentiation, for an elementwise function of t; the shape of t."""
    t = jnp.asarray(t, jnp.result_type(t, float))
    return jax.jvp(function, (t,), (jnp.ones_like(t),))[1]


def vp(beta_min: float = 0.1, beta_max: float = 20.0) -> SDE:
    """The variance-preserving SDE, dx = -beta(t)/2 x dt + sqrt(beta(t)) dw (Song et al. 2021, eq. 11 and Appendix C).

    beta(t) = beta_min + t (beta_max - beta_min) and B(t) is its integral from 0, so that alpha = exp(-B/2) and
    sigma = sqrt(1 - exp(-B)), written with expm1: in float32 1 - exp(-B) has lost every digit at t = 1e-7.

    Args:
      beta_min: beta at t = 0; positive.
      beta_max: beta at t = 1; larger than beta_min.

    Returns:
      An SDE on [0, 1]. Reverse-time integration stops at 1e-3 (Song et al. 2021, Appendix C).

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
        # snr = exp(-B) / (1 - exp(-B)), so B = log(1 + 1 / snr)
        t_from_log_snr=lambda log_snr: inverse_integral(jax.nn.softplus(-log_snr)),
    )


def sub_vp(beta_min: float = 0.1, beta_max: float = 20.0) -> SDE:
    """The sub-VP SDE: vp's drift and alpha with less noise, sigma = 1 - exp(-B) (Song et al. 2021, eq. 12 and 29).

    g^2 = beta (1 - exp(-2B)). Arguments, range and errors are those of `vp`.
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
    """beta(t), its integral B(t) from 0, and t as a function of B."""
    if not 0 < beta_min < beta_max:
        raise UserError(f"{name}: need 0 < beta_min < beta_max, got beta_min={beta_min}, beta_max={beta_max}")
    rise = beta_max - beta_min

    def inverse_integral(b):
        return 2 * b / (beta_min + jnp.sqrt(beta_min**2 + 2 * rise * b))  # of the two forms of the root, the stable one

    return lambda t: beta_min + t * rise, lambda t: t * (beta_min + 0.5 * t * rise), inverse_integral


def vp_cosine(s: float = 0.008) -> SDE:
    """The variance-preserving SDE with alpha = cos(k t + b) / cos(b), k = (pi/2)/(1 + s), b = k s.

    The limit of Nichol and Dhariwal's cosine chain (2021, "Improved DDPM", eq. 17), whose alpha reaches 0 at t = 1
    (zero terminal SNR): there drift and diffusion are infinite, and x_1 holds nothing of the data.

    Args:
      s: the offset that keeps sigma from growing too slowly at the data; positive.

    Returns:
      An SDE on [0, 1].

    Raises:
      UserError: s is not positive.
    """
    if s <= 0:
        raise UserError(f"vp_cosine: need s > 0, got s={s}", "s")
    k = 0.5 * math.pi / (1 + s)
    b = k * s

    def alpha(t):  # cos(k t + b) = sin(k (1 - t)): each form where its argument keeps its digits
        return jnp.where(t < 0.5, jnp.cos(k * t + b), jnp.sin(k * (1 - t))) / math.cos(b)

    def sigma(t):  # cos(b)^2 - cos(k t + b)^2 = sin(k t) sin(k t + 2 b)
        return jnp.sqrt(jnp.sin(k * t) * jnp.sin(k * t + 2 * b)) / math.cos(b)

    def beta(t):  # -2 d log alpha / dt = 2 k tan(k t + b)
        return 2 * k * jnp.sin(k * t + b) / (alpha(t) * math.cos(b))

    def inverse(log_snr):  # sin and cos of k t, from those of k t + b, without a difference of near numbers
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
    """The variance-exploding SDE, dx = sqrt(d sigma^2/dt) dw, sigma = sigma_min (sigma_max / sigma_min)^t.

    Song et al. 2021, eq. 9 and Appendix C. Data at t = 0 already has the noise sigma_min, too little to see.

    Args:
      sigma_min: sigma at t = 0; positive.
      sigma_max: sigma at t = 1; about the largest distance between two data points (Song and Ermon 2020, Technique 1).

    Returns:
      An SDE on [0, 1]. Reverse-time integration stops at 1e-5 (Song et al. 2021, Appendix C).

    Raises:
      UserError: unless 0 < sigma_min < sigma_max.
    """
    _check_sigmas("ve", sigma_min, sigma_max)
    middle, log_ratio = math.sqrt(sigma_min * sigma_max), math.log(sigma_max / sigma_min)

    def sigma(t):  # from the middle, where the exponent, and so its rounding, is half as large
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
    """The SDE with alpha = 1 and sigma = t, dx = sqrt(2 t) dw (Karras et al. 2022, "Elucidating ...", Table 1, "Ours").

    Args:
      sigma_min: where reverse-time integration stops; positive.
      sigma_max: where it starts.

    Returns:
      An SDE on [0, sigma_max], integrated down to sigma_min.

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
        raise UserError(f"{name}: need 0 < sigma_min < sigma_max, got sigma_min={sigma_min}, sigma_max={sigma_max}")


def flow() -> SDE:
    """The straight path x_t = (1 - t) x0 + t eps of flow matching (Lipman et al. 2023; Liu et al. 2023), as an SDE.

    d log alpha/dt = -1/(1 - t), so f = -x/(1 - t) and g^2 = 2 t/(1 - t). alpha reaches 0 at t = 1 (zero terminal
    SNR): there drift and diffusion are infinite, while the probability flow, eps - x0, is finite everywhere.

    Returns:
      An SDE on [0, 1].
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
    """The SDE of any alpha(t) and sigma(t): f = (d log alpha/dt) x, g^2 = d sigma^2/dt - 2 (d log alpha/dt) sigma^2.

    Kingma et al. 2021, "Variational Diffusion Models", Section 3; drift and diffusion by automatic differentiation.

    Args:
      alpha, sigma: elementwise, differentiable functions of t with alpha / sigma falling.
      t_min, t_max: the ends of reverse-time integration.

    Raises:
      UserError: t_min is not below t_max, or alpha / sigma rises somewhere, where g^2 would be negative.
    """
    if not 0 <= t_min < t_max:
        raise UserError(f"from_schedule: need 0 <= t_min < t_max, got t_min={t_min}, t_max={t_max}")
    with jax.ensure_compile_time_eval():
        grid = jnp.linspace(t_min, t_max, 101)[1:]
        ratio = np.asarray(jnp.broadcast_to(alpha(grid) / sigma(grid), grid.shape))
    if not (np.diff(ratio) <= 0).all():
        where = float(grid[int(np.argmax(~(np.diff(ratio) <= 0)))])
        raise UserError(f"from_schedule: alpha / sigma must fall from t_min to t_max, but not so at t = {where:.3g}")

    def log_alpha_slope(t):
        return slope(alpha, t) / alpha(t)

    def diffusion(t):
        return jnp.sqrt(2 * sigma(t) * (slope(sigma, t) - log_alpha_slope(t) * sigma(t)))

    return SDE(alpha, sigma, lambda x, t: lift(log_alpha_slope(t), x) * x, diffusion, t_min, t_max)


SDES = {"vp": vp, "vp_cosine": vp_cosine, "sub_vp": sub_vp, "ve": ve, "edm": edm, "flow": flow}


def perturb(sde: SDE, key: jax.Array, x0: jax.Array, t: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Draws x_t given x0 from the forward process' marginal, x_t = alpha(t) x0 + sigma(t) epsilon.

    Args:
      sde: the forward process.
      key: one typed key.
      x0: (batch, *event) data.
      t: () or (batch,) times.

    Returns:
      (x_t, epsilon), each of the shape of x0.
    """
    epsilon = jax.random.normal(key, x0.shape, x0.dtype)
    return marginal(sde, x0, epsilon, t), epsilon


def marginal(sde: SDE, x0: jax.Array, epsilon: jax.Array, t: ArrayLike) -> jax.Array:
    """The point alpha(t) x0 + sigma(t) epsilon; x0 and epsilon are (batch, *event), t is () or (batch,)."""
    return lift(sde.alpha(t), x0) * x0 + lift(sde.sigma(t), x0) * epsilon


def prior_sample(sde: SDE, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draws from the prior N(0, sigma(t_max)^2 I), in the shape given."""
    return sde.sigma(sde.t_max) * jax.random.normal(key, shape)


def prior_log_prob(sde: SDE, x: jax.Array) -> jax.Array:
    """log N(x; 0, sigma(t_max)^2 I) in nats: x is (batch, *event), the result (batch,)."""
    scale = sde.sigma(sde.t_max)
    return sum_event(-0.5 * (x / scale) ** 2 - jnp.log(scale) - 0.5 * jnp.log(2 * jnp.pi))


def log_snr(sde: SDE, t: ArrayLike) -> jax.Array:
    """log(alpha^2 / sigma^2), of the shape of t; falls from data to noise, at the rate g^2 / sigma^2."""
    return 2 * (jnp.log(sde.alpha(t)) - jnp.log(sde.sigma(t)))


def t_from_log_snr(sde: SDE, log_snr: ArrayLike) -> jax.Array:
    """The time at which alpha^2 / sigma^2 = exp(log_snr), of the shape of log_snr: the inverse of `log_snr`.

    In closed form where the SDE has one, otherwise by bisection on [0, t_max], where a log-SNR beyond an end gives
    the end.
    """
    level = jnp.asarray(log_snr, jnp.result_type(log_snr, float))
    if sde.t_from_log_snr is not None:
        return sde.t_from_log_snr(level)
    return _bisect(lambda t: 2 * (jnp.log(sde.alpha(t)) - jnp.log(sde.sigma(t))), sde.t_max, level)


def _bisect(falling: Callable, t_max: float, value: jax.Array) -> jax.Array:
    """The t in [0, t_max] with falling(t) = value, elementwise, to the last bit; differentiable in value."""

    @jax.custom_jvp
    def inverse(value):
        def halve(_, bracket):
            low, high = bracket
            middle = 0.5 * (low + high)
            later = falling(middle) > value
            return jnp.where(later, middle, low), jnp.where(later, high, middle)

        steps = jnp.finfo(value.dtype).nmant + 30  # a full mantissa for t down to 2^-30 t_max
        bracket = jnp.zeros_like(value), jnp.full_like(value, t_max)
        return jax.lax.fori_loop(0, steps, halve, bracket)[1]

    @inverse.defjvp
    def derivative(primals, tangents):  # of an inverse function
        t = inverse(*primals)
        return t, tangents[0] / slope(falling, t)

    return inverse(value)


def reverse_sde_epsilon(sde: SDE, epsilon_fn: Callable) -> tuple[Callable, Callable]:
    """The reverse SDE dx = [f(x, t) + g(t)^2 / sigma(t) epsilon(x, t)] dt + g(t) dw̄ (Song et al. 2021, eq. 6).

    The score of eq. 6 is -epsilon / sigma.

    Args:
      sde: the forward process.
      epsilon_fn: (x, t) -> E[epsilon | x_t = x], of the shape of x.

    Returns:
      (drift(x, t), diffusion(t)); time runs from t_max down, so dt is negative.
    """

    def drift(x, t):
        return sde.drift(x, t) + lift(sde.diffusion(t) ** 2 / sde.sigma(t), x) * epsilon_fn(x, t)

    return drift, sde.diffusion


def probability_flow_epsilon(sde: SDE, epsilon_fn: Callable) -> Callable:
    """The probability flow ODE dx = [f(x, t) + g(t)^2 / (2 sigma(t)) epsilon(x, t)] dt (Song et al. 2021, eq. 13)."""

    def drift(x, t):
        return sde.drift(x, t) + lift(sde.diffusion(t) ** 2 / (2 * sde.sigma(t)), x) * epsilon_fn(x, t)

    return drift


def reverse_sde(sde: SDE, score_fn: Callable) -> tuple[Callable, Callable]:
    """`reverse_sde_epsilon` from score_fn: (x, t) -> grad log p_t(x); (drift(x, t), diffusion(t))."""
    return reverse_sde_epsilon(sde, lambda x, t: -lift(sde.sigma(t), x) * score_fn(x, t))


def probability_flow(sde: SDE, score_fn: Callable) -> Callable:
    """`probability_flow_epsilon` from score_fn: (x, t) -> grad log p_t(x); drift(x, t)."""
    return probability_flow_epsilon(sde, lambda x, t: -lift(sde.sigma(t), x) * score_fn(x, t))
