"""What a network predicts, and how it becomes a denoiser.

What a network predicts is a linear combination of x0 and eps, and x_t = alpha x0 + sigma eps is another, so the
two together give the pair (x0, eps), which is all that solvers and losses consume. A prediction is therefore one `Row`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from score_sde.conditioned import Conditioned, conditioned
from score_sde.errors import UserError, lookup
from score_sde.sde import SDE, lift, log_snr, slope, t_from_log_snr, vp


class Prediction(NamedTuple):
    """E[x0 | x_t] and E[eps | x_t], each of the shape of x_t."""

    x0: jax.Array
    epsilon: jax.Array


class VariancePrediction(NamedTuple):
    """A `Prediction` with a learned reverse variance (Nichol and Dhariwal 2021, eq. 15)."""

    x0: jax.Array
    epsilon: jax.Array
    v: jax.Array  # of the shape of x, see `reverse_log_variance`


# (x (batch, *event), t () or (batch,)) -> Prediction. A plain function where there is no conditioning, else a
# `Conditioned`, which carries labels and the like and checks the batch size.
Denoiser = Callable[[jax.Array, ArrayLike], Prediction | VariancePrediction]


def reverse_log_variance(v: jax.Array, smallest: jax.Array, largest: jax.Array) -> jax.Array:
    """Interpolates log variances: `smallest` at v = -1, `largest` at v = 1 (Nichol and Dhariwal 2021, eq. 15).

    Args:
      v: a network's output, unbounded.
      smallest: log of the variance of q(x_s | x_t, x0), exact for a single data point.
      largest: log of the variance of q(x_t | x_s) (beta), exact for standard normal data.
    """
    return 0.5 * (1 + v) * largest + 0.5 * (1 - v) * smallest


def move_x0(pair: Prediction, shift: jax.Array, t: ArrayLike, sde: SDE) -> Prediction:
    """Adds shift to x0 and moves eps along, so that alpha x0 + sigma eps stays x_t.

    Computed as a difference, so that unmoved components stay exact where sigma is small.
    """
    ratio = lift(sde.alpha(t) / sde.sigma(t), shift)
    return pair._replace(x0=pair.x0 + shift, epsilon=pair.epsilon - ratio * shift)


class Row(NamedTuple):
    """A prediction p as scale p = a x0 + b eps; each of the shape of t, or a Python 0 or 1 where it always is that."""

    scale: ArrayLike
    a: ArrayLike
    b: ArrayLike


PREDICTIONS: dict[str, Callable[[SDE, ArrayLike], Row]] = {
    "x0": lambda sde, t: Row(1, 1, 0),
    "epsilon": lambda sde, t: Row(1, 0, 1),
    "v": lambda sde, t: Row(1, -sde.sigma(t), sde.alpha(t)),  # Salimans and Ho 2022, Section 4
    "score": lambda sde, t: Row(-sde.sigma(t), 0, 1),  # Tweedie's formula
    "velocity": lambda sde, t: Row(1, slope(sde.alpha, t), slope(sde.sigma, t)),  # dx/dt of the probability flow
}


def to_prediction(output: jax.Array, x: jax.Array, t: ArrayLike, sde: SDE, source: str) -> Prediction:
    """The pair (x0, eps) of a prediction and x_t.

    Args:
      output: the prediction, of the shape of x.
      x: (batch, *event), x_t.
      t: () or (batch,) times.
      sde: the forward process.
      source: what the prediction is, a key of `PREDICTIONS`.

    Returns:
      The pair. It is infinite where the pair is not a function of the two: x0 of an epsilon or score at alpha = 0,
      eps of an x0 at sigma = 0. Of v it is finite everywhere, of a velocity wherever alpha sigma' != sigma alpha'.
    """
    row = lookup("prediction", PREDICTIONS, source, "prediction")
    return _solve(row(sde, t), output, x, sde.alpha(t), sde.sigma(t))


def from_prediction(pair: Prediction, t: ArrayLike, sde: SDE, target: str) -> jax.Array:
    """The prediction `target`, a key of `PREDICTIONS`, of a pair (x0, eps); a score is infinite at sigma = 0."""
    scale, a, b = lookup("prediction", PREDICTIONS, target, "prediction")(sde, t)
    terms = [lift(c, part) * part for c, part in ((a, pair.x0), (b, pair.epsilon)) if not _is(c, 0)]  # 0 * inf is NaN
    return sum(terms[1:], terms[0]) / lift(scale, pair.x0)


def convert(output: jax.Array, x: jax.Array, t: ArrayLike, sde: SDE, source: str, target: str) -> jax.Array:
    """Turns one prediction into another; arguments, shapes and limits as for `to_prediction`."""
    pair = to_prediction(output, x, t, sde, source)
    return output if source == target else from_prediction(pair, t, sde, target)


def _solve(row: Row, output, x, alpha, sigma) -> Prediction:
    """Solves scale p = a x0 + b eps, x = alpha x0 + sigma eps for (x0, eps), by Cramer's rule.

    Where a or b is always 0 the first equation alone gives one of the two, so that it stays exact where the other is
    singular.
    """
    a, b = (coefficient if _is(coefficient, 0) else lift(coefficient, x) for coefficient in (row.a, row.b))
    alpha, sigma, p = lift(alpha, x), lift(sigma, x), lift(row.scale, x) * output
    determinant = alpha * b - sigma * a
    x0 = p / a if _is(b, 0) else (b * x - sigma * p) / determinant
    epsilon = p / b if _is(a, 0) else (alpha * p - a * x) / determinant
    return Prediction(x0, epsilon)


def _is(coefficient, number: int) -> bool:
    return isinstance(coefficient, int) and coefficient == number


def score_from_epsilon(epsilon, sigma):
    """score = -epsilon / sigma (Tweedie's formula); singular at sigma = 0."""
    return -epsilon / lift(sigma, epsilon)


def epsilon_from_score(score, sigma):
    """epsilon = -sigma score; never singular."""
    return -lift(sigma, score) * score


def x0_from_epsilon(x, epsilon, alpha, sigma):
    """x0 = (x - sigma epsilon) / alpha (Ho et al. 2020, eq. 15); singular at alpha = 0."""
    return (x - lift(sigma, x) * epsilon) / lift(alpha, x)


def epsilon_from_x0(x, x0, alpha, sigma):
    """epsilon = (x - alpha x0) / sigma; singular at sigma = 0."""
    return (x - lift(alpha, x) * x0) / lift(sigma, x)


def v_from(x0, epsilon, alpha, sigma):
    """v = alpha epsilon - sigma x0 (Salimans and Ho 2022, Section 4); never singular."""
    return lift(alpha, x0) * epsilon - lift(sigma, x0) * x0


def x0_from_v(x, v, alpha, sigma):
    """x0 = (alpha x - sigma v) / (alpha^2 + sigma^2); never singular."""
    return (lift(alpha, x) * x - lift(sigma, x) * v) / lift(alpha**2 + sigma**2, x)


def epsilon_from_v(x, v, alpha, sigma):
    """epsilon = (sigma x + alpha v) / (alpha^2 + sigma^2); never singular."""
    return (lift(sigma, x) * x + lift(alpha, x) * v) / lift(alpha**2 + sigma**2, x)


def score_from_x0(x, x0, alpha, sigma):
    """score = (alpha x0 - x) / sigma^2; singular at sigma = 0."""
    return score_from_epsilon(epsilon_from_x0(x, x0, alpha, sigma), sigma)


def score_from_v(x, v, alpha, sigma):
    """score = -(sigma x + alpha v) / (sigma (alpha^2 + sigma^2)); singular at sigma = 0."""
    return score_from_epsilon(epsilon_from_v(x, v, alpha, sigma), sigma)


class Preconditioning(NamedTuple):
    """What a network is shown, and for some what it predicts; functions of (sde, t, sigma_data)."""

    c_in: Callable  # the factor of x_t, of the shape of t
    c_noise: Callable  # the noise level, of the shape of t
    row: Callable | None  # what the network predicts; None: what `prediction` says


def _scaled_sigma(sde: SDE, t: ArrayLike) -> jax.Array:
    """sigma / alpha, Karras' sigma: theirs is x_t / alpha = x0 + (sigma / alpha) eps."""
    return sde.sigma(t) / sde.alpha(t)


def _edm_radius(sde: SDE, t: ArrayLike, sigma_data: float) -> jax.Array:
    """The standard deviation of x_t, for data of the standard deviation sigma_data."""
    return jnp.sqrt(sde.sigma(t) ** 2 + (sigma_data * sde.alpha(t)) ** 2)


def _edm_row(sde: SDE, t: ArrayLike, sigma_data: float) -> Row:
    """F of x0 = c_skip x / alpha + c_out F: solved, sigma_data F = (sigma x0 - sigma_data^2 alpha eps) / radius."""
    radius = _edm_radius(sde, t, sigma_data)
    return Row(sigma_data, sde.sigma(t) / radius, -(sigma_data**2) * sde.alpha(t) / radius)


# Karras et al. 2022, Table 1, for any alpha and sigma: their sigma is sigma / alpha, their input x_t / alpha. Of "vp"
# and "ve" the network predicts eps and -eps.
PRECONDITIONINGS = {
    "none": Preconditioning(  # x_t as it is, and the index of a chain of 1,000 steps
        c_in=lambda sde, t, sigma_data: jnp.ones_like(t),
        c_noise=lambda sde, t, sigma_data: 999 * (t / sde.t_max),
        row=None,
    ),
    "log_sigma": Preconditioning(  # x_t as it is, and the logarithm of its noise: NCSN's, for ve
        c_in=lambda sde, t, sigma_data: jnp.ones_like(t),
        c_noise=lambda sde, t, sigma_data: jnp.log(sde.sigma(t)),
        row=None,
    ),
    "vp": Preconditioning(
        c_in=lambda sde, t, sigma_data: 1 / jnp.sqrt(sde.alpha(t) ** 2 + sde.sigma(t) ** 2),
        c_noise=lambda sde, t, sigma_data: 999 * t_from_log_snr(vp(), log_snr(sde, t)),
        row=lambda sde, t, sigma_data: Row(1, 0, 1),
    ),
    "ve": Preconditioning(
        c_in=lambda sde, t, sigma_data: 1 / sde.alpha(t),
        c_noise=lambda sde, t, sigma_data: jnp.log(0.5 * _scaled_sigma(sde, t)),
        row=lambda sde, t, sigma_data: Row(-1, 0, 1),
    ),
    "edm": Preconditioning(
        c_in=lambda sde, t, sigma_data: 1 / _edm_radius(sde, t, sigma_data),
        c_noise=lambda sde, t, sigma_data: 0.25 * jnp.log(_scaled_sigma(sde, t)),
        row=_edm_row,
    ),
    # What decides an exact denoiser: x_t on the scale of a variance-preserving process, and the log-SNR; it predicts
    # the v of that process, which is finite at both ends.
    "log_snr": Preconditioning(
        c_in=lambda sde, t, sigma_data: 1 / jnp.sqrt(sde.alpha(t) ** 2 + sde.sigma(t) ** 2),
        c_noise=lambda sde, t, sigma_data: log_snr(sde, t),
        row=lambda sde, t, sigma_data: Row(
            jnp.sqrt(sde.alpha(t) ** 2 + sde.sigma(t) ** 2), -sde.sigma(t), sde.alpha(t)
        ),
    ),
}


def make_denoiser(
    network: Callable,
    sde: SDE,
    prediction: str = "epsilon",
    preconditioning: str = "none",
    sigma_data: float = 0.5,
    learned_variance: bool = False,
) -> Conditioned:
    """Makes a denoiser of a network: here a network meets an SDE.

    Args:
      network: (x, noise_level) -> raw output of the shape of x; noise_level is (batch,). The denoiser keeps its
        conditioning (`models.network`).
      sde: the forward process that x_t comes from.
      prediction: what the raw output estimates, a key of `PREDICTIONS`. Only "none" and "log_sigma" leave the choice;
        with another preconditioning the output is what Karras et al. call F.
      preconditioning: what the network is shown, a key of `PRECONDITIONINGS`.
      sigma_data: the data's standard deviation, for "edm".
      learned_variance: whether the output has twice the channels of x, of which the second half is v of a
        `VariancePrediction`.

    Returns:
      (x, t) -> Prediction, or VariancePrediction, for x: (batch, *event) and t: () or (batch,).

    Raises:
      UserError: prediction or preconditioning is unknown; the message lists the known ones.
    """
    chosen_row = lookup("prediction", PREDICTIONS, prediction, "prediction")
    output_of = show(network, sde, preconditioning, sigma_data)
    decided_row = PRECONDITIONINGS[preconditioning].row

    def denoiser(x, t, output_of):
        t = jnp.asarray(t, x.dtype)
        row = decided_row(sde, t, sigma_data) if decided_row else chosen_row(sde, t)
        output = output_of(x, t)
        raw, *v = jnp.split(output, 2, axis=-1) if learned_variance else [output]
        pair = _solve(row, raw, x, sde.alpha(t), sde.sigma(t))
        return VariancePrediction(*pair, *v) if learned_variance else pair

    return conditioned(denoiser, output_of)


def show(network: Callable, sde: SDE, preconditioning: str = "none", sigma_data: float = 0.5) -> Conditioned:
    """A network of (scaled x_t, noise level) as a function of (x_t, t); arguments and errors of `make_denoiser`."""
    chosen = lookup("preconditioning", PRECONDITIONINGS, preconditioning, "preconditioning")

    def output(x, t, network):
        t = jnp.asarray(t, x.dtype)
        level = jnp.broadcast_to(chosen.c_noise(sde, t, sigma_data), x.shape[:1])
        return network(lift(chosen.c_in(sde, t, sigma_data), x) * x, level)

    return conditioned(output, network)


def check_parameterization(sde: SDE, prediction: str, preconditioning: str) -> None:
    """Refuses what can't work with an SDE, with the reason.

    Raises:
      UserError: an unknown name, a prediction that the preconditioning doesn't read, or one that has no x0 at alpha =
        0.
    """
    lookup("prediction", PREDICTIONS, prediction, "prediction")
    chosen = lookup("preconditioning", PRECONDITIONINGS, preconditioning, "preconditioning")
    if chosen.row is not None and prediction != "epsilon":
        raise UserError(
            f"preconditioning {preconditioning!r} decides what the network predicts, so prediction {prediction!r} "
            "would not be read (leave --config.model.prediction=epsilon, or set --config.model.preconditioning=none)"
        )
    if float(sde.alpha(sde.t_max)) > 0:
        return
    if chosen.row is not None:
        raise UserError(
            f"preconditioning {preconditioning!r} takes log(sigma / alpha), infinite at t = {sde.t_max}, where this "
            "SDE has alpha = 0 (set --config.model.preconditioning=none, or another --config.sde.name)"
        )
    if prediction in ("epsilon", "score"):
        raise UserError(
            f"prediction {prediction!r} can't start from zero terminal SNR: alpha = 0 at t = {sde.t_max}, so x0 = "
            "(x - sigma epsilon) / alpha is infinite there (set --config.model.prediction to v, x0 or velocity, "
            "or another --config.sde.name)"
        )


def through(denoiser: Denoiser, sde: SDE, prediction: str) -> Denoiser:
    """A denoiser as a network with this prediction would give it: its pair through `prediction` and back."""

    def converted(x, t, denoiser):
        t = jnp.asarray(t, x.dtype)
        return to_prediction(from_prediction(denoiser(x, t), t, sde, prediction), x, t, sde, prediction)

    return conditioned(converted, denoiser)


def score_fn(denoiser: Denoiser, sde: SDE) -> Conditioned:
    """The score grad log p_t(x) = -epsilon(x, t) / sigma(t) of a denoiser: (x, t) -> score, of the shape of x."""
    return conditioned(lambda x, t, denoiser: score_from_epsilon(denoiser(x, t).epsilon, sde.sigma(t)), denoiser)


def velocity_fn(denoiser: Denoiser, sde: SDE) -> Conditioned:
    """dx/dt = alpha'(t) x0 + sigma'(t) eps of the probability flow: (x, t) -> velocity, of the shape of x.

    Finite where alpha = 0, unlike drift and diffusion.
    """
    return conditioned(lambda x, t, denoiser: from_prediction(denoiser(x, t), t, sde, "velocity"), denoiser)
