"""Flow maps: denoisers with a second time, for generation in few steps, and the losses that train them.

The flow map Phi_{t->r} takes x_t along the probability flow to time r. A `FlowMap` gives it as the chord pair (X, E),

    alpha_t X + sigma_t E = x,    alpha_r X + sigma_r E = Phi_{t->r}(x),

which is (E[x0 | x], E[eps | x]) as r -> t: a denoiser is the diagonal r = t of a flow map. The step of DDIM with this
pair is exact at any size. A consistency model (Song et al. 2023) is r = t_min, where Phi is the sample; X equals Phi at
r = 0 only. MeanFlow's average velocity (Geng et al. 2025) is E - X on the SDE `flow`. sCM's F (Lu and Song 2025) is v
of the chord pair at r = 0.

Losses are written in the angle theta = atan2(sigma, alpha), in which every probability flow is the rotation

    d x^ / d theta = v^,  x^ = cos(theta) x0 + sin(theta) eps,  v^ = -sin(theta) x0 + cos(theta) eps,

of x^ = x / sqrt(alpha^2 + sigma^2). With V = v^ of the chord pair and Delta = theta_r - theta_t, a jump is
cos(Delta) x^ + sin(Delta) V. A loss is the squared error of V, summed over an example, for any SDE and prediction.

The mean divergence A of a jump gives likelihoods in few steps, log p^_t(x^) = log p^_r(Phi^) + Delta A with
A = 1 / Delta int div v^ d theta along the flow. A network learns A / (d kappa), where kappa is the mean of
1 / sqrt(theta^2 + c^2) over the jump. The quotient is of order 1: for data of standard deviation s the divergence is at
most d / (2 s), near theta = s.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from score_sde.conditioned import Conditioned, conditioned
from score_sde.errors import UserError, cut
from score_sde.parameterization import Denoiser, DivergencePrediction, Prediction, from_prediction
from score_sde.sde import SDE, add_noise, lift, prior_log_prob, sum_event, t_from_log_snr, time_derivative

DETAIL = 0.03  # standard deviation of the finest structure of images, such as the dequantization of a few levels

# (x (batch, *event), t (batch,), r (batch,)) -> the chord pair, each part of the shape of x.
FlowMap = Callable[[jax.Array, ArrayLike, ArrayLike], Prediction]


def jump(flow_map: FlowMap, sde: SDE, x: jax.Array, t: ArrayLike, r: ArrayLike) -> jax.Array:
    """Return Phi_{t->r}(x) = alpha_r X + sigma_r E, of the shape of x."""
    pair = flow_map(x, t, r)
    return add_noise(sde, pair.x0, pair.epsilon, r)


def chord(sde: SDE, x: jax.Array, phi: jax.Array, t: ArrayLike, r: ArrayLike) -> Prediction:
    """Return the chord pair of a point x at t and its image phi at r; 0 / 0 at r = t."""
    (alpha_t, sigma_t), (alpha_r, sigma_r) = ((lift(sde.alpha(s), x), lift(sde.sigma(s), x)) for s in (t, r))
    determinant = alpha_t * sigma_r - sigma_t * alpha_r
    return Prediction((sigma_r * x - sigma_t * phi) / determinant, (alpha_t * phi - alpha_r * x) / determinant)


def diagonal(flow_map: FlowMap) -> Conditioned:
    """Return the denoiser of a flow map, its pair at r = t."""
    return conditioned(lambda x, t, flow_map: flow_map(x, t, t), flow_map)


def eulerian(
    flow_map: FlowMap,
    sde: SDE,
    x: jax.Array,
    t: jax.Array,
    r: jax.Array,
    target: Prediction,
    tangent: Prediction | None = None,
) -> jax.Array:
    """Return the error of the Eulerian identity, d/dt Phi_{t->r}(x_t) = 0 along the flow, (batch,).

    In angles the identity is cos(Delta) (V - v^) = sin(Delta) (x^ + dV / d theta_t), which on the SDE `flow` is
    MeanFlow's u = v - (t - r) du/dt (Geng et al. 2025, eq. 6). At r = t this is denoising score matching. Only V has a
    gradient, as with their stopped target. On `flow` this is MeanFlow's loss times s_t^4 / s_r^2 with
    s_t^2 = (1 - t)^2 + t^2, because it compares angles. It is NaN at t where sigma = 0 and its slope is infinite (vp,
    vp_cosine).

    Args:
      flow_map: Flow map to train.
      sde: Forward process.
      x: Points x_t, (batch, *event).
      t: Times of x, (batch,).
      r: Times of the images, (batch,).
      target: Pair whose v^ is the target: (x0, eps) of a training example, of which the loss takes the mean, or a
        teacher's.
      tangent: Pair of the direction in which V is differentiated; None for `target`. Improved MeanFlow uses the
        prediction at r = t.
    """

    def v_at(x, t):
        return _v(flow_map(x, t, r), sde, t)

    rate = time_derivative(lambda t: angle(sde, t), t)
    velocity = from_prediction(target if tangent is None else tangent, t, sde, "velocity")
    v, derivative = jax.jvp(v_at, (x, t), (velocity / lift(rate, x), 1 / rate))
    delta = lift(angle(sde, r) - angle(sde, t), x)
    residual = jnp.cos(delta) * (v - _v(target, sde, t)) - jnp.sin(delta) * (x / _scale(sde, t, x) + derivative)
    return sum_event((v - jax.lax.stop_gradient(v - residual)) ** 2)


def denoising(
    flow_map: FlowMap, sde: SDE, x: jax.Array, t: jax.Array, target: Prediction, divergence: jax.Array | None = None
) -> jax.Array:
    """Return the error |V - v^|^2 of the diagonal r = t, (batch,); arguments as for `eulerian`.

    If `divergence` of v^ at (x, t), (batch,), is given, it includes the squared error of the mean divergence.
    """
    pair: Any = flow_map(x, t, t)
    error = sum_event((_v(pair, sde, t) - _v(target, sde, t)) ** 2)
    if divergence is None:
        return error
    return error + _divergence_error(pair, divergence / _kappa(sde, t, t) / x[0].size, x)


def lagrangian(flow_map: FlowMap, sde: SDE, x: jax.Array, t: jax.Array, r: jax.Array, denoiser: Denoiser) -> jax.Array:
    """Return the error of the Lagrangian identity, d Phi^ / d theta_r = v^(Phi, r), (batch,).

    Boffi et al. 2025, eq. 12. Only the left side has a gradient. It is NaN at r where sigma = 0 and its slope is
    infinite (vp, vp_cosine).

    Args:
      flow_map: Flow map to train.
      sde: Forward process.
      x: Points x_t, (batch, *event).
      t: Times of x, (batch,).
      r: Times of the images, (batch,).
      denoiser: Denoiser of the velocity v: a teacher, or `diagonal(flow_map)`.
    """

    def image(r):
        return jump(flow_map, sde, x, t, r) / _scale(sde, r, x)

    phi, derivative = jax.jvp(image, (r,), (jnp.ones_like(r),))
    rate = lift(time_derivative(lambda r: angle(sde, r), r), x)
    pair: Any = denoiser(jax.lax.stop_gradient(phi * _scale(sde, r, x)), r)
    return sum_event((derivative / rate - jax.lax.stop_gradient(_v(pair, sde, r))) ** 2)


def progressive(flow_map: FlowMap, sde: SDE, x: jax.Array, t: jax.Array, r: jax.Array) -> jax.Array:
    """Return the error of the semigroup identity Phi_{t->r} = Phi_{s->r} o Phi_{t->s}, s the middle angle, (batch,).

    Shortcut models (Frans et al. 2025, eq. 5). With delta = Delta / 2, the two jumps with V_1 and V_2 are one jump with
    V = (sin(delta) x^ + cos(delta) V_1 + V_2) / (2 cos(delta)), in which nothing cancels as r -> t. The gradient is
    that of the long jump. This loss needs no forward mode. A mean divergence is the mean of those of the two jumps.

    Args:
      flow_map: Flow map to train.
      sde: Forward process.
      x: Points x_t, (batch, *event).
      t: Times of x, (batch,).
      r: Times of the images, (batch,).
    """
    s = middle(sde, t, r)
    half = lift(0.5 * (angle(sde, r) - angle(sde, t)), x)
    first = flow_map(x, t, s)
    second = flow_map(add_noise(sde, first.x0, first.epsilon, s), s, r)
    two_jumps = jnp.sin(half) * x / _scale(sde, t, x) + jnp.cos(half) * _v(first, sde, t) + _v(second, sde, s)
    target = jax.lax.stop_gradient(two_jumps / (2 * jnp.cos(half)))
    long = flow_map(x, t, r)
    error = sum_event((_v(long, sde, t) - target) ** 2)
    if not isinstance(long, DivergencePrediction):
        return error
    mean = 0.5 * (_kappa(sde, t, s) * first.divergence + _kappa(sde, s, r) * second.divergence)
    return error + _divergence_error(long, mean / _kappa(sde, t, r), x)


def velocity_divergence(denoiser: Denoiser, sde: SDE, x: jax.Array, t: jax.Array, probe: jax.Array) -> jax.Array:
    """Return Hutchinson's estimate probe^T (d v^ / d x^) probe of the divergence of v^ at (x, t), (batch,).

    Args:
      denoiser: Denoiser of the velocity v.
      sde: Forward process.
      x: Points x_t, (batch, *event).
      t: Times, (batch,).
      probe: Random signs, of the shape of x.
    """
    scaled = probe * _scale(sde, t, x)

    def v_hat(x):
        pair: Any = denoiser(x, t)
        return _v(pair, sde, t)

    return sum_event(probe * jax.jvp(v_hat, (x,), (scaled,))[1])


def log_prob_change(pair: DivergencePrediction, sde: SDE, t: ArrayLike, r: ArrayLike) -> jax.Array:
    """Return Delta A of a jump from t to r, which is log p^_t(x^) - log p^_r(Phi^), (batch,)."""
    return pair.x0[0].size * (angle(sde, r) - angle(sde, t)) * _kappa(sde, t, r) * pair.divergence


def angle_grid(sde: SDE, num_steps: int) -> jax.Array:
    """Return num_steps + 1 times from t_min to t_max with equal differences of the angle."""
    first, last = angle(sde, sde.t_min), angle(sde, sde.t_max)
    between = t_from_angle(sde, first + (last - first) * jnp.arange(1, num_steps) / num_steps)
    return jnp.concatenate([jnp.array([sde.t_min]), between, jnp.array([sde.t_max])])


def log_likelihood(
    flow_map: Callable[..., DivergencePrediction], sde: SDE, x: jax.Array, times: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """Compute log p(x) in nats and the latent by jumps along ascending times, from x at times[0] to t_max.

    log p_t(x) = log N(z; 0, sigma(t_max)^2) + d log(scale_T / scale_t) + sum of Delta A,  scale^2 = alpha^2 + sigma^2

    Args:
      flow_map: Flow map with a learned mean divergence.
      sde: Forward process.
      x: Points, (batch, *event).
      times: Strictly ascending times that end at t_max, (num_steps + 1,), such as `angle_grid`.

    Returns:
      Pair (log p (batch,), z (batch, *event)). If the times are traced and invalid, both are NaN.

    Raises:
      UserError: if the times don't ascend from 0 or later to t_max.
    """
    if jnp.ndim(times) != 1 or len(times) < 2:  # type: ignore[arg-type]
        raise UserError(f"log_likelihood: expected times of shape (num_steps + 1,), got {jnp.shape(times)}.", "times")
    given, times = times, jnp.asarray(times, x.dtype)
    slack = 1e-6 * sde.t_max  # the ends of a float32 grid are rounded
    valid = jnp.all(jnp.diff(times) > 0) & (times[0] >= 0) & (jnp.abs(times[-1] - sde.t_max) <= slack)
    if isinstance(valid, jax.core.Tracer):
        x = jnp.where(valid, x, jnp.nan)
    elif not valid:
        raise UserError(
            f"log_likelihood: expected strictly ascending times from 0 or later to t_max = {sde.t_max:g}, got "
            f"{cut(str(np.asarray(given)))}.",
            "times",
        )

    def advance(carry, interval):
        x, total = carry
        t, r = (jnp.broadcast_to(time, x.shape[:1]) for time in interval)
        pair = flow_map(x, t, r)
        return (add_noise(sde, pair.x0, pair.epsilon, r), total + log_prob_change(pair, sde, t, r)), None

    (latent, total), _ = jax.lax.scan(advance, (x, jnp.zeros(len(x), x.dtype)), (times[:-1], times[1:]))
    scales = [jnp.log(sde.alpha(time) ** 2 + sde.sigma(time) ** 2) for time in (times[0], times[-1])]
    return prior_log_prob(sde, latent) + 0.5 * x[0].size * (scales[1] - scales[0]) + total, latent


def angle(sde: SDE, t: ArrayLike) -> jax.Array:
    """Return theta = atan2(sigma, alpha) in [0, pi / 2], of the shape of t."""
    return jnp.arctan2(sde.sigma(t), sde.alpha(t))


def t_from_angle(sde: SDE, theta: ArrayLike) -> jax.Array:
    """Return the time at which atan2(sigma, alpha) = theta, for 0 < theta < pi / 2, of the shape of theta."""
    return t_from_log_snr(sde, -2 * jnp.log(jnp.tan(theta)))


def middle(sde: SDE, t: ArrayLike, r: ArrayLike) -> jax.Array:
    """Return the time whose angle is midway between those of t and r, of the shape of t."""
    return t_from_angle(sde, 0.5 * (angle(sde, t) + angle(sde, r)))


def _kappa(sde: SDE, t: ArrayLike, r: ArrayLike) -> jax.Array:
    """Return the mean of 1 / sqrt(theta^2 + c^2) over the angles between t and r, c = `DETAIL`.

    With theta = c a and c b at the ends it is (arcsinh b - arcsinh a) / (c (b - a)), the difference being arcsinh y.
    """
    a, b = angle(sde, t) / DETAIL, angle(sde, r) / DETAIL
    slope = (a + b) / (b * jnp.sqrt(1 + a**2) + a * jnp.sqrt(1 + b**2))
    y = (b - a) * slope
    small = jnp.abs(y) < 1e-3
    return slope / DETAIL * jnp.where(small, 1 - y**2 / 6, jnp.arcsinh(y) / jnp.where(small, 1.0, y))


def _divergence_error(pair: Any, target: jax.Array, x: jax.Array) -> jax.Array:
    return x[0].size * (pair.divergence - jax.lax.stop_gradient(target)) ** 2


def _scale(sde: SDE, t: ArrayLike, x: jax.Array) -> jax.Array:
    return lift(jnp.sqrt(sde.alpha(t) ** 2 + sde.sigma(t) ** 2), x)


def _v(pair: Prediction, sde: SDE, t: ArrayLike) -> jax.Array:
    """Return v^ = -sin(theta) x0 + cos(theta) eps of a pair."""
    return from_prediction(pair, t, sde, "v") / _scale(sde, t, pair.x0)
