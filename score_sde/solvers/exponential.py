"""Exponential integrators of the probability flow in log-SNR, shared by DPM-Solver++, UniPC and DEIS.

With lambda = log(alpha / sigma) the flow is d(x / sigma) / d lambda = e^lambda x0 (Lu et al. 2022, "DPM-Solver++", eq.
8). So from t to t' over h = lambda' - lambda

    x' = (sigma' / sigma) x + alpha' * integral of h e^(h (u - 1)) x0(u) over u in [0, 1],   lambda(u) = lambda + u h

If x0(u) is replaced by a polynomial through known predictions, the integral is a weighted sum of them.

With zero terminal SNR lambda starts at -inf, and the steps after the first do not shrink in lambda as the grid is
refined. On a uniform grid of `flow` they are log 2, log 3/2, ..., which reduces methods of order 3 to order 2. There
they use the coordinate log(1 + alpha / sigma) instead, which is finite and smooth at alpha = 0, and tends to lambda
near the data. In this coordinate the integral has the factor alpha' + sigma' instead of alpha'.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from score_sde.errors import UserError
from score_sde.sde import NO_SIGNAL, SDE, log_snr, t_from_log_snr

DEFAULT_REACH = 4.0  # limit of extrapolation, see `dpm_solver_pp`
FLOOR = -20.0  # lower bound of lambda; there x0 is constant up to e^-20 = 2e-9, and at alpha = 0 lambda is -inf


def check_method(name: str, order: int, known: Sequence[int], reach: float = DEFAULT_REACH) -> None:
    """Raise UserError unless the method has this order and reach >= 1."""
    if order not in known or not isinstance(order, int):
        raise UserError(f"{name}: the order must be one of {known}, got {order}", "order")
    if not reach >= 1:
        raise UserError(f"{name}: expected reach >= 1, got {reach}", "reach")


def half_log_snr(sde: SDE, t: jax.Array) -> jax.Array:
    """Return lambda(t) = log(alpha / sigma), of the shape of t, but at least -20, so that it is finite at alpha = 0."""
    return jnp.maximum(0.5 * log_snr(sde, t), FLOOR)


def offset(sde: SDE, order: int) -> float:
    """Return c of the coordinate log(c + alpha / sigma): 1 for order 3 with zero terminal SNR, otherwise 0 (lambda)."""
    if order < 3:
        return 0.0
    with jax.ensure_compile_time_eval():
        return 0.0 if float(log_snr(sde, jnp.float32(sde.t_max))) > NO_SIGNAL else 1.0


def coordinate(sde: SDE, t: jax.Array, c: float) -> jax.Array:
    """Return log(c + alpha / sigma), of the shape of t."""
    return jnp.log1p(sde.alpha(t) / sde.sigma(t)) if c else half_log_snr(sde, t)


def time_at(sde: SDE, coord: jax.Array, c: float) -> jax.Array:
    """Return the time at which `coordinate` is coord."""
    return t_from_log_snr(sde, 2 * (jnp.log(jnp.expm1(coord)) if c else coord))


def moments(h: jax.Array, count: int) -> list[jax.Array]:
    """Return psi_k, the integral of h e^(h (u - 1)) u^k over [0, 1], for k = 0 .. count - 1.

    Integration by parts gives psi_0 = 1 - e^-h and psi_k = 1 - (k / h) psi_(k-1), which is inaccurate for small h. For
    h < 1 the series h k! sum_j (-h)^j / (k + j + 1)! is used.
    """
    coefficients = [[math.factorial(k) / math.factorial(k + j + 1) for j in range(18)] for k in range(count)]
    powers = jnp.minimum(h, 1.0) * jnp.power(-jnp.minimum(h, 1.0), jnp.arange(18))
    series = jnp.asarray(coefficients, h.dtype) @ powers
    values, psi = [], -jnp.expm1(-h)
    for k in range(count):
        psi = psi if k == 0 else 1 - k / h * psi
        values.append(jnp.where(h < 1.0, series[k], psi))
    return values


def lagrange_weights(nodes: Sequence, integrals: Sequence) -> list[jax.Array]:
    """Return the weights of values at nodes in the integral of the polynomial through them.

    Args:
      nodes: Distinct nodes, n of them.
      integrals: Integrals of u^0 .. u^(n-1).
    """
    weights = []
    for node in nodes:
        coefficients = [1.0]  # ascending, of the polynomial that is 1 at this node and 0 at the others
        for other in nodes:
            if other is not node:
                shifted = zip([0.0, *coefficients], [*coefficients, 0.0], strict=True)
                coefficients = [(low - other * high) / (node - other) for low, high in shifted]
        weights.append(sum(c * value for c, value in zip(coefficients, integrals, strict=True)))
    return weights


def combine(weights: Sequence, values: Sequence[jax.Array]) -> jax.Array:
    """Return the weighted sum of arrays of one shape."""
    return sum(weight * value for weight, value in zip(weights, values, strict=True))


def data_step(sde: SDE, x, t, t_next, integral, c: float = 0.0) -> jax.Array:
    """Return x' = (sigma' / sigma) x + (alpha' + c sigma') integral at t_next, with c of the coordinate."""
    return sde.sigma(t_next) / sde.sigma(t) * x + (sde.alpha(t_next) + c * sde.sigma(t_next)) * integral


class History(NamedTuple):
    """State of a multistep method; entries before the first step are zeros at distinct coordinates."""

    x: jax.Array  # (batch, *event)
    x_before: jax.Array  # x at the previous time
    values: tuple[jax.Array, ...]  # previous predictions, the latest first
    coordinates: tuple[jax.Array, ...]  # their coordinates, lambda or t
    t_before: jax.Array  # previous time
    steps: jax.Array  # number of steps taken


def init_history(count: int):
    """Return the `init` of a multistep method with a history of `count` predictions."""

    def init(x):
        zeros = jnp.zeros_like(x)
        coordinates = tuple(jnp.asarray(-k - 1.0, x.dtype) for k in range(count))
        return History(x, zeros, (zeros,) * count, coordinates, jnp.ones((), x.dtype), jnp.zeros((), jnp.int32))

    return init


def push_history(state: History, x_next, x, value, coord, t) -> History:
    """Return the state after a step from x at t, where `value` was predicted, to x_next."""
    count = len(state.values)
    return History(
        x=x_next,
        x_before=x,
        values=(value, *state.values)[:count],
        coordinates=(coord, *state.coordinates)[:count],
        t_before=t,
        steps=state.steps + 1,
    )


def past_nodes(state: History, coord, width) -> list[jax.Array]:
    """Return the coordinates of previous predictions in units of a step of size `width` that starts at `coord`.

    Missing predictions get distinct dummy values.
    """
    return [
        jnp.where(state.steps > k, (before - coord) / width, -1.0 - k) for k, before in enumerate(state.coordinates)
    ]
