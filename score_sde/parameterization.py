"""Network predictions, their conversions, preconditioning, and the denoiser of a network.

A network predicts a linear combination of x0 and eps (`LinearPrediction`). Since x_t = alpha x0 + sigma eps is another,
the two determine the pair (x0, eps), which is all that solvers and losses use.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from score_sde.conditioned import Conditioned, conditioned
from score_sde.errors import UserError, lookup
from score_sde.sde import SDE, lift, log_snr, sum_event, t_from_log_snr, time_derivative, vp


class Prediction(NamedTuple):
    """E[x0 | x_t] and E[eps | x_t], each of the shape of x_t."""

    x0: jax.Array
    epsilon: jax.Array


class VariancePrediction(NamedTuple):
    """A `Prediction` with a learned reverse variance (Nichol and Dhariwal 2021, eq. 15)."""

    x0: jax.Array
    epsilon: jax.Array
    v: jax.Array  # shape of x, see `reverse_log_variance`


class DivergencePrediction(NamedTuple):
    """The chord pair of a flow map with a learned mean divergence (`flow_map`)."""

    x0: jax.Array
    epsilon: jax.Array
    divergence: jax.Array  # (batch,)


# (x (batch, *event), t () or (batch,)) -> Prediction. A denoiser with conditioning is a `Conditioned`, which carries
# labels and other batch-first arrays and checks the batch size. Without conditioning it may be a plain function.
Denoiser = Callable[[jax.Array, ArrayLike], Prediction | VariancePrediction | DivergencePrediction]


def reverse_log_variance(v: jax.Array, smallest: jax.Array, largest: jax.Array) -> jax.Array:
    """Return the interpolated log-variance, `smallest` at v = -1 and `largest` at v = 1.

    Nichol and Dhariwal 2021, eq. 15, Sigma = exp(v log beta + (1 - v) log beta~), with their v mapped to [-1, 1].

    Args:
      v: Network output, unbounded.
      smallest: Log-variance of q(x_s | x_t, x0) (beta~), exact for a single data point.
      largest: Log-variance of q(x_t | x_s) (beta), exact for standard normal data if alpha^2 + sigma^2 = 1.
    """
    return 0.5 * (1 + v) * largest + 0.5 * (1 - v) * smallest


def shift_x0(pair: Prediction, shift: jax.Array, t: ArrayLike, sde: SDE) -> Prediction:
    """Add a shift to x0 and correct eps so that alpha x0 + sigma eps remains x_t.

    eps is corrected by a difference, so that components with zero shift remain exact at small sigma.

    Args:
      pair: Prediction at x_t.
      shift: Shift of x0, of the shape of x0.
      t: Times, () or (batch,).
      sde: Forward process.
    """
    ratio = lift(sde.alpha(t) / sde.sigma(t), shift)
    return pair._replace(x0=pair.x0 + shift, epsilon=pair.epsilon - ratio * shift)


class LinearPrediction(NamedTuple):
    """Coefficients of a prediction p: scale p = a x0 + b eps; each of the shape of t, or a constant Python 0 or 1."""

    scale: ArrayLike
    a: ArrayLike
    b: ArrayLike


PREDICTIONS: dict[str, Callable[[SDE, ArrayLike], LinearPrediction]] = {
    "x0": lambda sde, t: LinearPrediction(1, 1, 0),
    "epsilon": lambda sde, t: LinearPrediction(1, 0, 1),
    "v": lambda sde, t: LinearPrediction(1, -sde.sigma(t), sde.alpha(t)),  # Salimans and Ho 2022, Section 4
    "score": lambda sde, t: LinearPrediction(-sde.sigma(t), 0, 1),  # Tweedie's formula
    "velocity": lambda sde, t: LinearPrediction(
        1, time_derivative(sde.alpha, t), time_derivative(sde.sigma, t)
    ),  # dx/dt of the probability flow
}


def to_prediction(output: jax.Array, x: jax.Array, t: ArrayLike, sde: SDE, source: str) -> Prediction:
    """Return the pair (x0, eps) given a prediction and x_t.

    The pair is infinite where the prediction and x_t do not determine it: x0 from epsilon or score at alpha = 0, and
    eps from x0 at sigma = 0. From v it is finite everywhere, from velocity wherever alpha sigma' != sigma alpha'.

    Args:
      output: Prediction, of the shape of x.
      x: x_t, (batch, *event).
      t: Times, () or (batch,).
      sde: Forward process.
      source: Kind of the prediction, a key of `PREDICTIONS`.

    Raises:
      UserError: if source is unknown.
    """
    linear = lookup("prediction", PREDICTIONS, source, "prediction")
    return _solve(linear(sde, t), output, x, sde.alpha(t), sde.sigma(t))


def from_prediction(pair: Prediction, t: ArrayLike, sde: SDE, target: str) -> jax.Array:
    """Return the prediction `target`, a key of `PREDICTIONS`, of a pair (x0, eps); a score is infinite at sigma = 0."""
    scale, a, b = lookup("prediction", PREDICTIONS, target, "prediction")(sde, t)
    # Terms with coefficient 0 are omitted, because 0 * inf is NaN.
    terms = [lift(c, term) * term for c, term in ((a, pair.x0), (b, pair.epsilon)) if not _is(c, 0)]
    return sum(terms[1:], terms[0]) / lift(scale, pair.x0)


def convert(output: jax.Array, x: jax.Array, t: ArrayLike, sde: SDE, source: str, target: str) -> jax.Array:
    """Convert a prediction from kind `source` to kind `target`; see `to_prediction` for arguments and limits."""
    pair = to_prediction(output, x, t, sde, source)
    return output if source == target else from_prediction(pair, t, sde, target)


def _solve(linear: LinearPrediction, output, x, alpha, sigma) -> Prediction:
    """Solve scale p = a x0 + b eps, x = alpha x0 + sigma eps for (x0, eps) by Cramer's rule.

    If a or b is the constant 0, the first equation determines x0 or eps, which is exact even if the system is singular.
    """
    a, b = (coefficient if _is(coefficient, 0) else lift(coefficient, x) for coefficient in (linear.a, linear.b))
    alpha, sigma, p = lift(alpha, x), lift(sigma, x), lift(linear.scale, x) * output
    determinant = alpha * b - sigma * a
    x0 = p / a if _is(b, 0) else (b * x - sigma * p) / determinant
    epsilon = p / b if _is(a, 0) else (alpha * p - a * x) / determinant
    return Prediction(x0, epsilon)


def _is(coefficient, number: int) -> bool:
    return isinstance(coefficient, int) and coefficient == number


def score_from_epsilon(epsilon, sigma):
    """Return score = -epsilon / sigma (Tweedie's formula); singular at sigma = 0."""
    return -epsilon / lift(sigma, epsilon)


def epsilon_from_score(score, sigma):
    """Return epsilon = -sigma score; never singular."""
    return -lift(sigma, score) * score


def x0_from_epsilon(x, epsilon, alpha, sigma):
    """Return x0 = (x - sigma epsilon) / alpha (Ho et al. 2020, eq. 15); singular at alpha = 0."""
    return (x - lift(sigma, x) * epsilon) / lift(alpha, x)


def epsilon_from_x0(x, x0, alpha, sigma):
    """Return epsilon = (x - alpha x0) / sigma; singular at sigma = 0."""
    return (x - lift(alpha, x) * x0) / lift(sigma, x)


def v_from(x0, epsilon, alpha, sigma):
    """Return v = alpha epsilon - sigma x0 (Salimans and Ho 2022, Section 4); never singular."""
    return lift(alpha, x0) * epsilon - lift(sigma, x0) * x0


def x0_from_v(x, v, alpha, sigma):
    """Return x0 = (alpha x - sigma v) / (alpha^2 + sigma^2); never singular."""
    return (lift(alpha, x) * x - lift(sigma, x) * v) / lift(alpha**2 + sigma**2, x)


def epsilon_from_v(x, v, alpha, sigma):
    """Return epsilon = (sigma x + alpha v) / (alpha^2 + sigma^2); never singular."""
    return (lift(sigma, x) * x + lift(alpha, x) * v) / lift(alpha**2 + sigma**2, x)


def score_from_x0(x, x0, alpha, sigma):
    """Return score = (alpha x0 - x) / sigma^2; singular at sigma = 0."""
    return score_from_epsilon(epsilon_from_x0(x, x0, alpha, sigma), sigma)


def score_from_v(x, v, alpha, sigma):
    """Return score = -(sigma x + alpha v) / (sigma (alpha^2 + sigma^2)); singular at sigma = 0."""
    return score_from_epsilon(epsilon_from_v(x, v, alpha, sigma), sigma)


def _scaled_sigma(sde: SDE, t: ArrayLike) -> jax.Array:
    """Return sigma / alpha, the sigma of Karras et al. 2022: their x is x_t / alpha = x0 + (sigma / alpha) eps."""
    return sde.sigma(t) / sde.alpha(t)


def _marginal_std(sde: SDE, t: ArrayLike, sigma_data: float) -> jax.Array:
    """Return the standard deviation of x_t for data of standard deviation sigma_data."""
    return jnp.sqrt(sde.sigma(t) ** 2 + (sigma_data * sde.alpha(t)) ** 2)


def _timestep(t: ArrayLike) -> ArrayLike:
    """Return the timestep 999 t of a schedule of 1,000 steps; t is in [0, 1]."""
    return 999 * t


class Preconditioning(NamedTuple):
    """A column of Karras et al. 2022, Table 1: D(x; sigma) = c_skip x + c_out F(c_in x; c_noise) (their eq. 7).

    The coefficients are functions of (sde, t, sigma_data) for any alpha and sigma. Their sigma is sigma / alpha, and
    their x is x_t / alpha, so that `c_in`, which multiplies x_t, is theirs divided by alpha. D is the denoised x0.

    Solved for F, with x = x0 + sigma eps, this is a linear prediction of x0 and eps:

        c_out F = D - c_skip x = (1 - c_skip) x0 - c_skip sigma eps

    `target` is a multiple of this equation without the cancellation of 1 - c_skip at small sigma. The denoiser solves
    it together with x_t = alpha x0 + sigma eps, so it does not evaluate c_skip and c_out.
    """

    c_in: Callable  # factor of x_t, of the shape of t
    c_noise: Callable  # noise-level input of the network, of the shape of t
    c_skip: Callable | None = None  # None: decided by `prediction`, as are c_out and target
    c_out: Callable | None = None
    target: Callable | None = None  # (sde, t, sigma_data) -> F as a LinearPrediction


def _edm_target(sde: SDE, t: ArrayLike, sigma_data: float) -> LinearPrediction:
    """Return EDM's F: sigma_data F = (sigma x0 - sigma_data^2 alpha eps) / std, with std that of x_t."""
    std = _marginal_std(sde, t, sigma_data)
    return LinearPrediction(sigma_data, sde.sigma(t) / std, -(sigma_data**2) * sde.alpha(t) / std)


def _log_snr_target(sde: SDE, t: ArrayLike, sigma_data: float) -> LinearPrediction:
    """Return the v of the variance-preserving process x_t / sqrt(alpha^2 + sigma^2)."""
    return LinearPrediction(jnp.sqrt(sde.alpha(t) ** 2 + sde.sigma(t) ** 2), -sde.sigma(t), sde.alpha(t))


PRECONDITIONINGS = {
    "none": Preconditioning(  # unscaled x_t and the timestep of a schedule of 1,000 steps
        c_in=lambda sde, t, sigma_data: jnp.ones_like(t),
        c_noise=lambda sde, t, sigma_data: _timestep(t / sde.t_max),
    ),
    "log_sigma": Preconditioning(  # unscaled x_t and log sigma, as in NCSN++ for ve
        c_in=lambda sde, t, sigma_data: jnp.ones_like(t),
        c_noise=lambda sde, t, sigma_data: jnp.log(sde.sigma(t)),
    ),
    "vp": Preconditioning(  # Table 1, VP: F predicts eps
        c_skip=lambda sde, t, sigma_data: 1,
        c_out=lambda sde, t, sigma_data: -_scaled_sigma(sde, t),
        c_in=lambda sde, t, sigma_data: 1 / jnp.sqrt(sde.alpha(t) ** 2 + sde.sigma(t) ** 2),
        c_noise=lambda sde, t, sigma_data: _timestep(t_from_log_snr(vp(), log_snr(sde, t))),
        target=lambda sde, t, sigma_data: LinearPrediction(1, 0, 1),
    ),
    "ve": Preconditioning(  # Table 1, VE: F predicts -eps
        c_skip=lambda sde, t, sigma_data: 1,
        c_out=lambda sde, t, sigma_data: _scaled_sigma(sde, t),
        c_in=lambda sde, t, sigma_data: 1 / sde.alpha(t),
        c_noise=lambda sde, t, sigma_data: jnp.log(0.5 * _scaled_sigma(sde, t)),
        target=lambda sde, t, sigma_data: LinearPrediction(-1, 0, 1),
    ),
    "edm": Preconditioning(  # Table 1, "Ours"
        c_skip=lambda sde, t, sigma_data: sigma_data**2 / (_scaled_sigma(sde, t) ** 2 + sigma_data**2),
        c_out=lambda sde, t, sigma_data: (
            _scaled_sigma(sde, t) * sigma_data / jnp.sqrt(_scaled_sigma(sde, t) ** 2 + sigma_data**2)
        ),
        c_in=lambda sde, t, sigma_data: 1 / _marginal_std(sde, t, sigma_data),
        c_noise=lambda sde, t, sigma_data: 0.25 * jnp.log(_scaled_sigma(sde, t)),
        target=_edm_target,
    ),
    # The exact denoiser is a function of these two inputs: x_t scaled to a variance-preserving process, and the
    # log-SNR. The target is v of that process, which is finite at both ends of time.
    "log_snr": Preconditioning(
        c_skip=lambda sde, t, sigma_data: 1 / (1 + _scaled_sigma(sde, t) ** 2),
        c_out=lambda sde, t, sigma_data: -_scaled_sigma(sde, t) / jnp.sqrt(1 + _scaled_sigma(sde, t) ** 2),
        c_in=lambda sde, t, sigma_data: 1 / jnp.sqrt(sde.alpha(t) ** 2 + sde.sigma(t) ** 2),
        c_noise=lambda sde, t, sigma_data: log_snr(sde, t),
        target=_log_snr_target,
    ),
}

# The same at a finite noise level, 10 atan2(sigma, alpha), also where alpha or sigma is 0, and smooth in time (Lu and
# Song 2025, Section 4.1): flow maps are trained by derivatives in time.
PRECONDITIONINGS["angle"] = PRECONDITIONINGS["log_snr"]._replace(
    c_noise=lambda sde, t, sigma_data: 10 * jnp.arctan2(sde.sigma(t), sde.alpha(t))
)


def make_denoiser(
    network: Callable,
    sde: SDE,
    prediction: str = "epsilon",
    preconditioning: str = "none",
    sigma_data: float = 0.5,
    learned_variance: bool = False,
    learned_divergence: bool = False,
) -> Conditioned:
    """Return the denoiser of a network, also as a flow map if the network takes a second time.

    Args:
      network: Function (x, noise_level) -> raw output of the shape of x; noise_level is (batch,). The denoiser keeps
        its conditioning (`models.network`). A network of two times is also a function (x, noise_level, next_level).
      sde: Forward process of x_t.
      prediction: Kind of the raw output, a key of `PREDICTIONS`. It has an effect only for the preconditionings "none"
        and "log_sigma"; the others predict F of Karras et al. 2022.
      preconditioning: Scaling of the network's inputs and output, a key of `PRECONDITIONINGS`.
      sigma_data: Standard deviation of the data, for "edm".
      learned_variance: Whether the output has twice the channels of x; the second half is v of a `VariancePrediction`.
      learned_divergence: Whether the output has twice the channels of x; the mean of the second half is the divergence
        of a `DivergencePrediction`.

    Returns:
      Denoiser (x, t) -> Prediction or VariancePrediction, for x: (batch, *event) and t: () or (batch,). With a network
      of two times also (x, t, r) -> Prediction, the chord pair (`flow_map`).

    Raises:
      UserError: if prediction or preconditioning is unknown.
    """
    chosen_target = lookup("prediction", PREDICTIONS, prediction, "prediction")
    chosen = lookup("preconditioning", PRECONDITIONINGS, preconditioning, "preconditioning")

    def denoiser(x, t, *rest):
        *later, network = rest
        t = jnp.asarray(t, x.dtype)
        target = chosen.target(sde, t, sigma_data) if chosen.target else chosen_target(sde, t)
        scaled, level = _inputs(chosen, sde, x, t, sigma_data)
        next_levels = (_inputs(chosen, sde, x, jnp.asarray(r, x.dtype), sigma_data)[1] for r in later)
        output = network(scaled, level, *next_levels)
        raw, *second = jnp.split(output, 2, axis=-1) if learned_variance or learned_divergence else [output]
        pair = _solve(target, raw, x, sde.alpha(t), sde.sigma(t))
        if learned_divergence:
            return DivergencePrediction(*pair, sum_event(second[0]) / x[0].size)
        return VariancePrediction(*pair, *second) if learned_variance else pair

    return conditioned(denoiser, network)


def scaled_network(network: Callable, sde: SDE, preconditioning: str = "none", sigma_data: float = 0.5) -> Conditioned:
    """Return F(c_in x_t; c_noise) as a function of (x_t, t); see `make_denoiser` for arguments and errors."""
    chosen = lookup("preconditioning", PRECONDITIONINGS, preconditioning, "preconditioning")

    def output(x, t, network):
        return network(*_inputs(chosen, sde, x, jnp.asarray(t, x.dtype), sigma_data))

    return conditioned(output, network)


def _inputs(preconditioning: Preconditioning, sde: SDE, x: jax.Array, t: jax.Array, sigma_data: float):
    """Return the network's inputs c_in x_t and c_noise, (batch,)."""
    level = jnp.broadcast_to(preconditioning.c_noise(sde, t, sigma_data), x.shape[:1])
    return lift(preconditioning.c_in(sde, t, sigma_data), x) * x, level


def check_parameterization(sde: SDE, prediction: str, preconditioning: str) -> None:
    """Raise UserError unless prediction and preconditioning work with an SDE.

    Raises:
      UserError: if a name is unknown, if the prediction has no effect with the preconditioning, or if it does not
        determine x0 at alpha = 0.
    """
    lookup("prediction", PREDICTIONS, prediction, "prediction")
    chosen = lookup("preconditioning", PRECONDITIONINGS, preconditioning, "preconditioning")
    if chosen.target is not None and prediction != "epsilon":
        raise UserError(
            f"preconditioning {preconditioning!r} decides what the network predicts, so prediction {prediction!r} "
            "has no effect",
            "prediction=epsilon",
            "preconditioning=none",
        )
    if float(sde.alpha(sde.t_max)) > 0:
        return
    if chosen.target is not None and jnp.isfinite(chosen.c_noise(sde, jnp.float32(sde.t_max), 0.5)):
        return
    if chosen.target is not None:
        raise UserError(
            f"preconditioning {preconditioning!r} uses log(sigma / alpha), which is infinite at t = {sde.t_max}, where "
            "this SDE has alpha = 0",
            "preconditioning=none",
            "sde",
        )
    if prediction in ("epsilon", "score"):
        raise UserError(
            f"prediction {prediction!r} can't start from zero terminal SNR: alpha = 0 at t = {sde.t_max}, so x0 = "
            "(x - sigma epsilon) / alpha is infinite there",
            "prediction to v, x0 or velocity",
            "sde",
        )


def round_trip_prediction(denoiser: Denoiser, sde: SDE, prediction: str) -> Denoiser:
    """Return a denoiser whose pair is converted to `prediction` and back, which exposes its singularities."""

    def converted(x, t, denoiser):
        t = jnp.asarray(t, x.dtype)
        return to_prediction(from_prediction(denoiser(x, t), t, sde, prediction), x, t, sde, prediction)

    return conditioned(converted, denoiser)


def score_fn(denoiser: Denoiser, sde: SDE) -> Conditioned:
    """Return the score (x, t) -> grad log p_t(x) = -epsilon(x, t) / sigma(t) of a denoiser, of the shape of x."""
    return conditioned(lambda x, t, denoiser: score_from_epsilon(denoiser(x, t).epsilon, sde.sigma(t)), denoiser)


def velocity_fn(denoiser: Denoiser, sde: SDE) -> Conditioned:
    """Return the velocity (x, t) -> dx/dt = alpha'(t) x0 + sigma'(t) eps of the probability flow, of the shape of x.

    Unlike drift and diffusion it is finite at alpha = 0.
    """
    return conditioned(lambda x, t, denoiser: from_prediction(denoiser(x, t), t, sde, "velocity"), denoiser)
