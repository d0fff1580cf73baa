"""Flow maps: denoisers with a second time, for generation in few steps, and the losses that train them.

The flow map Phi_{t->r} takes x_t along the probability flow to time r. A `FlowMap` gives it as the chord pair (X, E),

    alpha_t X + sigma_t E = x,    alpha_r X + sigma_r E = Phi_{t->r}(x),

which is (E[x0 | x], E[eps | x]) as r -> t: a denoiser is the diagonal r = t of a flow map. The step of DDIM with this
pair is exact at any size. A consistency model (Song et al. 2023) is r = t_min, where X is the sample. MeanFlow's
average velocity (Geng et al. 2025) is E - X on the SDE `flow`. sCM's F (Lu and Song 2025) is v of the chord pair.

Losses are written in the angle theta = atan2(sigma, alpha), in which every probability flow is the rotation

    d x^ / d theta = v^,  x^ = cos(theta) x0 + sin(theta) eps,  v^ = -sin(theta) x0 + cos(theta) eps,

of x^ = x / sqrt(alpha^2 + sigma^2). With V = v^ of the chord pair and Delta = theta_r - theta_t, a jump is
cos(Delta) x^ + sin(Delta) V. A loss is the squared error of V, summed over an example, for any SDE and prediction.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from score_sde.conditioned import Conditioned, conditioned
from score_sde.parameterization import Denoiser, Prediction, from_prediction, velocity_fn
from score_sde.sde import SDE, add_noise, lift, sum_event, t_from_log_snr, time_derivative

# (x (batch, *event), t (batch,), r (batch,)) -> the chord pair, each part of the shape of x.
FlowMap = Callable[[jax.Array, ArrayLike, ArrayLike], Prediction]


def jump(flow_map: FlowMap, sde: SDE, x: jax.Array, t: ArrayLike, r: ArrayLike) -> jax.Array:
    """Return Phi_{t->r}(x) = alpha_r X + sigma_r E, of the shape of x."""
    return add_noise(sde, *flow_map(x, t, r), r)


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
    MeanFlow's u = v - (t - r) du/dt (Geng et al. 2025, eq. 6). At r = t this is denoising score matching. The gradient
    is that of V alone, as with their stopped target.

    Args:
      flow_map: Flow map to train.
      sde: Forward process.
      x: Points x_t, (batch, *event).
      t: Times of x, (batch,).
      r: Times of the images, (batch,).
      target: Pair whose v^ is the target: (x0, eps) of a training example, of which the loss takes the mean, or a
        teacher's.
      tangent: Pair of the direction in which V is differentiated; None for `target`. The prediction at r = t is that of
        improved MeanFlow.
    """

    def v_at(x, t):
        return _v(flow_map(x, t, r), sde, t)

    rate = time_derivative(lambda t: angle(sde, t), t)
    velocity = from_prediction(target if tangent is None else tangent, t, sde, "velocity")
    v, derivative = jax.jvp(v_at, (x, t), (velocity / lift(rate, x), 1 / rate))
    delta = lift(angle(sde, r) - angle(sde, t), x)
    residual = jnp.cos(delta) * (v - _v(target, sde, t)) - jnp.sin(delta) * (x / _scale(sde, t, x) + derivative)
    return sum_event((v - jax.lax.stop_gradient(v - residual)) ** 2)


def denoising(flow_map: FlowMap, sde: SDE, x: jax.Array, t: jax.Array, target: Prediction) -> jax.Array:
    """Return the error |V - v^|^2 of the diagonal r = t; arguments as for `eulerian`, (batch,)."""
    return sum_event((_v(flow_map(x, t, t), sde, t) - _v(target, sde, t)) ** 2)


def lagrangian(flow_map: FlowMap, sde: SDE, x: jax.Array, t: jax.Array, r: jax.Array, denoiser: Denoiser) -> jax.Array:
    """Return the error of the Lagrangian identity, d/dr Phi_{t->r}(x) = v(Phi_{t->r}(x), r), (batch,).

    Boffi et al. 2025, eq. 12. The gradient is that of the left side.

    Args:
      flow_map: Flow map to train.
      sde: Forward process.
      x: Points x_t, (batch, *event).
      t: Times of x, (batch,).
      r: Times of the images, (batch,).
      denoiser: Denoiser of the velocity v: a teacher, or `diagonal(flow_map)`.
    """
    phi, derivative = jax.jvp(lambda r: jump(flow_map, sde, x, t, r), (r,), (jnp.ones_like(r),))
    velocity = velocity_fn(denoiser, sde)(jax.lax.stop_gradient(phi), r)
    rate = lift(time_derivative(lambda r: angle(sde, r), r), x)
    return sum_event(((derivative - jax.lax.stop_gradient(velocity)) / (rate * _scale(sde, r, x))) ** 2)


def progressive(flow_map: FlowMap, sde: SDE, x: jax.Array, t: jax.Array, r: jax.Array) -> jax.Array:
    """Return the error of the semigroup identity Phi_{t->r} = Phi_{s->r} o Phi_{t->s}, s the middle angle, (batch,).

    Shortcut models (Frans et al. 2025, eq. 5). With delta = Delta / 2, the two jumps with V_1 and V_2 are one jump with
    V = (sin(delta) x^ + cos(delta) V_1 + V_2) / (2 cos(delta)), in which nothing cancels as r -> t. The gradient is
    that of the long jump. This loss needs no forward mode.

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
    second = flow_map(add_noise(sde, *first, s), s, r)
    two_jumps = jnp.sin(half) * x / _scale(sde, t, x) + jnp.cos(half) * _v(first, sde, t) + _v(second, sde, s)
    target = jax.lax.stop_gradient(two_jumps / (2 * jnp.cos(half)))
    return sum_event((_v(flow_map(x, t, r), sde, t) - target) ** 2)


def angle(sde: SDE, t: ArrayLike) -> jax.Array:
    """Return theta = atan2(sigma, alpha) in [0, pi / 2], of the shape of t."""
    return jnp.arctan2(sde.sigma(t), sde.alpha(t))


def t_from_angle(sde: SDE, theta: ArrayLike) -> jax.Array:
    """Return the time at which atan2(sigma, alpha) = theta, for 0 < theta < pi / 2, of the shape of theta."""
    return t_from_log_snr(sde, -2 * jnp.log(jnp.tan(theta)))


def middle(sde: SDE, t: ArrayLike, r: ArrayLike) -> jax.Array:
    """Return the time whose angle is midway between those of t and r, of the shape of t."""
    return t_from_angle(sde, 0.5 * (angle(sde, t) + angle(sde, r)))


def _scale(sde: SDE, t: ArrayLike, x: jax.Array) -> jax.Array:
    return lift(jnp.sqrt(sde.alpha(t) ** 2 + sde.sigma(t) ** 2), x)


def _v(pair: Prediction, sde: SDE, t: ArrayLike) -> jax.Array:
    """Return v^ = -sin(theta) x0 + cos(theta) eps of a pair."""
    return from_prediction(pair, t, sde, "v") / _scale(sde, t, pair.x0)
