"""Guidance: what maps denoisers to a denoiser, so that it works under every solver, SDE and prediction.

Guidance changes the score of p_t(x). By Tweedie's formula a score changed by s moves the predicted x0 by
(sigma^2 / alpha) s, and eps follows, as the pair still makes x_t. Every scale here counts alike: 0 leaves the unguided
denoiser, 1 gives the conditional one, above 1 sharpens the condition.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from score_sde.conditioned import Conditioned, conditioned, count_evaluations
from score_sde.errors import UserError, not_none
from score_sde.parameterization import Denoiser, Prediction, move_x0
from score_sde.sde import SDE, lift, t_from_log_snr

LogProb = Callable[[jax.Array, jax.Array], jax.Array]  # (x, t) -> (batch,), differentiable in x
Interval = tuple[float, float] | None

FAINT = -14.0  # a log-SNR at which x_t tells hardly anything of x0, alpha / sigma = 1e-3


def classifier_guided(denoiser: Denoiser, log_prob_fn: LogProb, sde: SDE, scale: float | jax.Array) -> Denoiser:
    """Classifier guidance: score + scale grad log p_t(y | x) (Dhariwal and Nichol 2021, Section 4.2).

    The log-probability may be any constraint's: of an energy, -E(x, t); of x0, see `of_x0`.

    Args:
      denoiser: (x, t) -> Prediction.
      log_prob_fn: (x, t) -> (batch,) log p_t(y | x) in nats, but for a constant; each may depend on its own x alone.
      sde: the forward process.
      scale: a number or (batch,); 0 or more: p_t(y | x)^scale of a negative scale grows without bound where the
        condition fails.

    Raises:
      UserError: the scale is negative.
    """
    _check_scale("classifier guidance", scale)
    if _is(scale, 0):
        return denoiser

    def guided(x, t, denoiser, log_prob_fn, scale):
        def gradient(x, t):
            return jax.grad(lambda x: jnp.sum(log_prob_fn(x, t)))(x)

        return shift_score(denoiser(x, t), gradient, x, t, sde, scale)

    return conditioned(guided, denoiser, log_prob_fn, _per_example(scale))


def shift_score(
    pair: Prediction, term: Callable, x: jax.Array, t: ArrayLike, sde: SDE, scale: float | jax.Array = 1.0
) -> Prediction:
    """The pair at x whose score has scale times term(x, t), of the shape of x, added.

    Of an SDE with alpha = 0 at its end the shift of x0, (sigma^2 / alpha) term, is 0 / 0 there; it is continuous, and
    is taken where the data begin to be seen.
    """
    t = jnp.asarray(t, x.dtype)
    with jax.ensure_compile_time_eval():
        vanishes = float(sde.alpha(jnp.float32(sde.t_max))) == 0.0
    at = jnp.minimum(t, t_from_log_snr(sde, jnp.asarray(FAINT, x.dtype))) if vanishes else t
    shift = lift(scale * sde.sigma(at) ** 2 / sde.alpha(at), x) * term(x, at)
    return move_x0(pair, shift, t, sde)


def of_x0(denoiser: Denoiser, log_prob: Callable[[jax.Array], jax.Array]) -> LogProb:
    """log p_t(y | x) taken to be log_prob(E[x0 | x]), for constraints on clean data (Chung et al. 2023, Theorem 1).

    Args:
      denoiser: (x, t) -> Prediction.
      log_prob: x0 (batch, *event) -> (batch,), as of minus an energy.
    """
    return conditioned(lambda x, t, denoiser: log_prob(denoiser(x, t).x0), denoiser)


def class_log_prob(logits_fn: Callable, labels: jax.Array) -> LogProb:
    """log p_t(y | x) of a classifier's logits.

    Args:
      logits_fn: (x, t) -> (batch, num_classes).
      labels: (batch,) integers; -1 asks for no class, a constant.

    Raises:
      UserError: a label is outside of the classes.
    """

    def log_prob(x, t, logits_fn, labels):
        logits = logits_fn(x, t)
        check_classes(labels, logits.shape[-1])
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.maximum(labels, 0)[:, None], axis=1)[:, 0]
        return jnp.where(labels < 0, 0.0, chosen)

    return conditioned(log_prob, logits_fn, labels)


def classifier_free(
    conditional: Denoiser,
    unconditional: Denoiser,
    scale: float | jax.Array,
    interval: Interval = None,
    rescale: float = 0.0,
    sde: SDE | None = None,
) -> Denoiser:
    """Classifier-free guidance: unconditional + scale (conditional - unconditional) (Ho and Salimans 2021, eq. 6).

    Their w is scale - 1. A negative scale is allowed: it leads away from the condition.

    Args:
      conditional: (x, t) -> Prediction.
      unconditional: likewise.
      scale: a number or (batch,).
      interval: (low, high) times; for t in (low, high] the scale is as given, elsewhere it is 1, so that there the
        conditional denoiser is asked alone (Kynkäänniemi et al. 2024, of sigma). None: everywhere.
      rescale: phi in [0, 1]; x0 is brought so far to the conditional x0's standard deviation over the example (Lin et
        al. 2023, Section 3.4, where it is the network's output that is rescaled).
      sde: the forward process, which only rescaling needs.

    Raises:
      UserError: the interval is empty, rescale is out of range, or it is asked for without the SDE.
    """

    def both(x, t, conditional, unconditional):
        return conditional(x, t), unconditional(x, t)

    joined = conditioned(both, conditional, unconditional)
    return _extrapolated(joined, conditional, unconditional, scale, How(interval, rescale, sde))


def classifier_free_labelled(
    denoiser_of: Callable[[Any], Denoiser],
    labels: jax.Array,
    scale: float | jax.Array,
    interval: Interval = None,
    rescale: float = 0.0,
    sde: SDE | None = None,
) -> Denoiser:
    """`classifier_free` with one network that knows labels, asked for both in one call of twice the batch.

    Args:
      denoiser_of: labels (n,) -> denoiser of batches of n; the label -1 is none.
      labels: (batch,) integers.
      scale, interval, rescale, sde: as of `classifier_free`.

    Raises:
      UserError: as of `classifier_free`.
    """
    none = jnp.full_like(labels, -1)

    def both(x, t, labels, none):
        times = t if jnp.ndim(t) == 0 else jnp.concatenate([t, t])
        pair = denoiser_of(jnp.concatenate([labels, none]))(jnp.concatenate([x, x]), times)
        return tuple(jax.tree.map(lambda part, half=half: jnp.split(part, 2)[half], pair) for half in (0, 1))

    first, second = denoiser_of(labels), denoiser_of(none)
    joined = conditioned(
        both, labels, none, evaluations=lambda t: count_evaluations(first, t) + count_evaluations(second, t)
    )
    return _extrapolated(joined, first, second, scale, How(interval, rescale, sde))


def autoguided(
    denoiser: Denoiser,
    weaker: Denoiser,
    scale: float | jax.Array,
    interval: Interval = None,
    rescale: float = 0.0,
    sde: SDE | None = None,
) -> Denoiser:
    """Autoguidance: weaker + scale (denoiser - weaker) (Karras et al. 2024, "Guiding ... with a Bad Version").

    Their w is the scale: 1 is the denoiser itself, above 1 leads away from the faults that the weaker network, smaller
    or trained less, has more of. Other arguments as of `classifier_free`.

    Raises:
      UserError: the scale is negative, which would lead to those faults; or as of `classifier_free`.
    """
    _check_scale("autoguidance", scale)
    return classifier_free(denoiser, weaker, scale, interval, rescale, sde)


class How(NamedTuple):
    """Where and how a guided pair is kept in bounds; see `classifier_free`."""

    interval: Interval
    rescale: float
    sde: SDE | None


def _extrapolated(both: Conditioned, first: Denoiser, second: Denoiser, scale: Any, how: How) -> Denoiser:
    """Returns second + scale (first - second); `both` evaluates the two together, scales 0 and 1 only one of them."""
    _check_how(how)
    if _is(scale, 1):
        return first
    if _is(scale, 0) and how.interval is None and how.rescale == 0:
        return second

    def guided(x, t, both, scale):
        strong, weak = both(x, t)
        return mixed(x, t, strong, weak, scale)

    def mixed(x, t, strong, weak, scale):
        x0, epsilon = (b + lift(scale, x) * (a - b) for a, b in ((strong.x0, weak.x0), (strong.epsilon, weak.epsilon)))
        pair = strong._replace(x0=x0, epsilon=epsilon)
        return pair if how.rescale == 0 else _rescaled(pair, strong, t, how)

    if how.interval is None:
        return conditioned(guided, both, _per_example(scale))
    low, high = how.interval

    def within(x, t, both, first, scale):
        t = jnp.asarray(t, x.dtype)
        inside = (low < t) & (t <= high)
        if t.ndim == 0:
            return jax.lax.cond(inside, lambda x, t: guided(x, t, both, scale), first, x, t)
        strong, weak = both(x, t)
        chosen = mixed(x, t, strong, weak, scale)
        return jax.tree.map(lambda a, b: jnp.where(lift(inside, x), a, b), chosen, strong)

    def evaluations(t):
        inside = (low < np.asarray(t)) & (np.asarray(t) <= high)
        return np.where(inside, count_evaluations(both, t), count_evaluations(first, t))

    return conditioned(within, both, first, _per_example(scale), evaluations=evaluations)


def _rescaled(pair: Prediction, strong: Prediction, t: jax.Array, how: How) -> Prediction:
    """x0 with a standard deviation over each example that is nearer to the conditional one's."""
    axes = tuple(range(1, pair.x0.ndim))
    own = jnp.std(pair.x0, axis=axes)
    ratio = jnp.where(own > 0, jnp.std(strong.x0, axis=axes) / jnp.where(own > 0, own, 1.0), 1.0)
    return move_x0(pair, lift(how.rescale * (ratio - 1), pair.x0) * pair.x0, t, not_none(how.sde))


def _check_how(how: How) -> None:
    if not 0 <= how.rescale <= 1:
        raise UserError(f"guidance: need 0 <= rescale <= 1, got {how.rescale}", "guidance_rescale")
    if how.rescale and how.sde is None:
        raise UserError("guidance: to rescale x0, so that eps follows, the SDE is needed: give sde")
    if how.interval is not None and not 0 <= how.interval[0] < how.interval[1]:
        raise UserError(
            f"guidance: an interval is (low, high) with 0 <= low < high, got {how.interval}", "guidance_interval"
        )


def check_classes(labels: jax.Array, num_classes: int) -> None:
    """Refuses labels, if they are known now, that are no class and not -1 for none.

    Raises:
      UserError: with the labels.
    """
    if isinstance(labels, jax.core.Tracer):
        return
    wrong = np.unique(np.asarray(labels)[(np.asarray(labels) < -1) | (np.asarray(labels) >= num_classes)])
    if len(wrong):
        raise UserError(f"no class {', '.join(map(str, wrong))}: the classes are 0 to {num_classes - 1}, -1 is none")


def _check_scale(name: str, scale: Any) -> None:
    if not isinstance(scale, jax.core.Tracer) and np.min(scale) < 0:
        raise UserError(
            f"{name}: need scale >= 0, got {scale}; classifier-free guidance alone takes a negative one",
            "guidance_scale",
        )


def _per_example(scale: Any) -> Any:
    """Returns a number as it is, and a list or an array of scales as an array, (batch,)."""
    return scale if np.ndim(scale) == 0 else jnp.asarray(scale)


def _is(scale: Any, number: int) -> bool:
    return isinstance(scale, int | float) and scale == number
