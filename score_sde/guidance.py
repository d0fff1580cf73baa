"""Guidance: functions that map denoisers to a denoiser, for every solver, SDE and prediction.

Guidance adds a term s to the score of p_t(x). By Tweedie's formula this shifts the predicted x0 by (sigma^2 / alpha) s,
and eps changes so that the pair is consistent with x_t. All scales have the same convention: 0 is the unguided
denoiser, 1 is the conditional one, and larger scales sharpen the condition.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from score_sde.conditioned import NULL_LABEL, Conditioned, conditioned, count_evaluations
from score_sde.errors import UserError, not_none
from score_sde.parameterization import Denoiser, Prediction, shift_x0
from score_sde.sde import NO_SIGNAL, SDE, lift, log_snr, t_from_log_snr

LogProb = Callable[[jax.Array, jax.Array], jax.Array]  # (x, t) -> (batch,), differentiable in x
Interval = tuple[float, float] | None

MIN_LOG_SNR = -14.0  # log-SNR at which x_t is almost independent of x0, alpha / sigma = 1e-3


def classifier_guided(denoiser: Denoiser, log_prob_fn: LogProb, sde: SDE, scale: float | jax.Array) -> Denoiser:
    """Return the denoiser with classifier guidance, score + scale grad log p_t(y | x).

    Dhariwal and Nichol 2021, Section 4.2. The log-probability may also be minus an energy, -E(x, t), or a constraint on
    x0 (`x0_log_prob`).

    Args:
      denoiser: Unguided denoiser (x, t) -> Prediction.
      log_prob_fn: Log-probability (x, t) -> log p_t(y | x) in nats up to a constant, (batch,); entry i depends only on
        x_i.
      sde: Forward process.
      scale: Non-negative guidance scale, a number or (batch,). For a negative scale p_t(y | x)^scale is unbounded where
        the condition fails.

    Raises:
      UserError: if the scale is negative.
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
    """Return the pair at x with scale * term(x, t) added to its score.

    If alpha = 0 at t_max, the shift of x0, (sigma^2 / alpha) term, is 0 / 0 there. Since it is continuous, it is
    evaluated at `MIN_LOG_SNR` instead.

    Args:
      pair: Prediction at (x, t).
      term: Function (x, t) -> term of the score, of the shape of x.
      x: Noisy data, (batch, *event).
      t: Times, () or (batch,).
      sde: Forward process.
      scale: Factor of the term, a number or (batch,).
    """
    t = jnp.asarray(t, x.dtype)
    s = time_with_signal(sde, t)
    shift = lift(scale * sde.sigma(s) ** 2 / sde.alpha(s), x) * term(x, s)
    return shift_x0(pair, shift, t, sde)


def time_with_signal(sde: SDE, t: jax.Array) -> jax.Array:
    """Return t, or the time of `MIN_LOG_SNR` where the SDE reaches alpha = 0 after it."""
    with jax.ensure_compile_time_eval():
        vanishes = float(log_snr(sde, jnp.float32(sde.t_max))) <= NO_SIGNAL
    return jnp.minimum(t, t_from_log_snr(sde, jnp.asarray(MIN_LOG_SNR, t.dtype))) if vanishes else t


def x0_log_prob(denoiser: Denoiser, log_prob: Callable[[jax.Array], jax.Array]) -> LogProb:
    """Return the approximation log p_t(y | x) = log_prob(E[x0 | x]) of a constraint on clean data.

    Chung et al. 2023, "Diffusion Posterior Sampling", Theorem 1.

    Args:
      denoiser: Denoiser (x, t) -> Prediction.
      log_prob: Log-probability x0 (batch, *event) -> (batch,), for example minus an energy.
    """
    return conditioned(lambda x, t, denoiser: log_prob(denoiser(x, t).x0), denoiser)


def class_log_prob(logits_fn: Callable, labels: jax.Array) -> LogProb:
    """Return log p_t(y | x) of a classifier.

    Args:
      logits_fn: Classifier (x, t) -> logits (batch, num_classes).
      labels: Integer class labels, (batch,). `NULL_LABEL` gives log-probability 0.

    Raises:
      UserError: if a label is not a class.
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
    """Return the denoiser with classifier-free guidance: unconditional + scale (conditional - unconditional).

    Ho and Salimans 2021, eq. 6, (1 + w) conditional - w unconditional with w = scale - 1. A negative scale steers away
    from the condition.

    Args:
      conditional: Conditional denoiser (x, t) -> Prediction.
      unconditional: Unconditional denoiser (x, t) -> Prediction.
      scale: Guidance scale, a number or (batch,).
      interval: Times (low, high) of guidance. Outside of low < t <= high only the conditional denoiser is evaluated
        (Kynkäänniemi et al. 2024, whose interval is of sigma). None guides at all times.
      rescale: Fraction phi in [0, 1] by which the standard deviation of x0 over each example is moved to that of the
        conditional x0 (Lin et al. 2023, Section 3.4, who rescale the network's output).
      sde: Forward process, required only for rescale > 0.

    Raises:
      UserError: if the interval is empty, rescale is out of range, or sde is missing.
    """
    both = together(conditional, unconditional)
    return _extrapolated(both, conditional, unconditional, scale, GuidanceOptions(interval, rescale, sde))


def classifier_free_labeled(
    denoiser_of: Callable[[Any], Denoiser],
    labels: jax.Array,
    scale: float | jax.Array,
    interval: Interval = None,
    rescale: float = 0.0,
    sde: SDE | None = None,
) -> Denoiser:
    """Return the denoiser with classifier-free guidance by a single conditional network.

    Both predictions share one forward pass of twice the batch size.

    Args:
      denoiser_of: Function labels (n,) -> denoiser for batches of n. `NULL_LABEL` is the unconditional label.
      labels: Integer class labels, (batch,).
      scale: Guidance scale, see `classifier_free`.
      interval: Times of guidance, see `classifier_free`.
      rescale: Fraction of rescaling, see `classifier_free`.
      sde: Forward process, see `classifier_free`.

    Raises:
      UserError: see `classifier_free`.
    """
    first, second = denoiser_of(labels), denoiser_of(jnp.full_like(labels, NULL_LABEL))
    both = together_labeled(denoiser_of, labels)
    return _extrapolated(both, first, second, scale, GuidanceOptions(interval, rescale, sde))


def together(*denoisers: Denoiser) -> Conditioned:
    """Return the function (x, t) -> tuple of the pairs of several denoisers."""
    return conditioned(lambda x, t, *denoisers: tuple(denoiser(x, t) for denoiser in denoisers), *denoisers)


def together_labeled(denoiser_of: Callable[[Any], Denoiser], labels: jax.Array) -> Conditioned:
    """Return the function (x, t) -> (conditional, unconditional) of one network, in one pass of twice the batch."""
    null_labels = jnp.full_like(labels, NULL_LABEL)

    def both(x, t, labels, null_labels):
        times = t if jnp.ndim(t) == 0 else jnp.concatenate([t, t])
        pair = denoiser_of(jnp.concatenate([labels, null_labels]))(jnp.concatenate([x, x]), times)
        return tuple(jax.tree.map(lambda leaf, half=half: jnp.split(leaf, 2)[half], pair) for half in (0, 1))

    halves = [denoiser_of(labels), denoiser_of(null_labels)]
    return conditioned(
        both, labels, null_labels, evaluations=lambda t: sum(count_evaluations(half, t) for half in halves)
    )


def autoguided(
    denoiser: Denoiser,
    weaker: Denoiser,
    scale: float | jax.Array,
    interval: Interval = None,
    rescale: float = 0.0,
    sde: SDE | None = None,
) -> Denoiser:
    """Return the denoiser with autoguidance, weaker + scale (denoiser - weaker).

    Karras et al. 2024, "Guiding a Diffusion Model with a Bad Version of Itself", whose w is the scale.

    Args:
      denoiser: Denoiser to guide.
      weaker: Denoiser of a smaller or less trained network, which makes the same errors more strongly.
      scale: Guidance scale. 1 is the denoiser itself, larger scales steer away from the errors of the weaker one.
      interval: Times of guidance, see `classifier_free`.
      rescale: Fraction of rescaling, see `classifier_free`.
      sde: Forward process, see `classifier_free`.

    Raises:
      UserError: if the scale is negative, which would amplify the errors; see also `classifier_free`.
    """
    _check_scale("autoguidance", scale)
    return classifier_free(denoiser, weaker, scale, interval, rescale, sde)


class GuidanceOptions(NamedTuple):
    """Interval and rescaling of guidance; see `classifier_free`."""

    interval: Interval
    rescale: float
    sde: SDE | None


def _extrapolated(
    both: Conditioned, first: Denoiser, second: Denoiser, scale: Any, options: GuidanceOptions
) -> Denoiser:
    """Return second + scale (first - second); `both` evaluates the two together, scales 0 and 1 only one of them."""
    _check_options(options)
    if _is(scale, 1):
        return first
    if _is(scale, 0) and options.interval is None and options.rescale == 0:
        return second

    def guided(x, t, both, scale):
        strong, weak = both(x, t)
        return mixed(x, t, strong, weak, scale)

    def mixed(x, t, strong, weak, scale):
        x0, epsilon = (b + lift(scale, x) * (a - b) for a, b in ((strong.x0, weak.x0), (strong.epsilon, weak.epsilon)))
        pair = strong._replace(x0=x0, epsilon=epsilon)
        return pair if options.rescale == 0 else _rescaled(pair, strong, t, options)

    if options.interval is None:
        return conditioned(guided, both, _per_example(scale))
    low, high = options.interval

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


def _rescaled(pair: Prediction, strong: Prediction, t: jax.Array, options: GuidanceOptions) -> Prediction:
    """Return the pair with the standard deviation of x0 moved towards that of the conditional x0."""
    axes = tuple(range(1, pair.x0.ndim))
    std = jnp.std(pair.x0, axis=axes)
    ratio = jnp.where(std > 0, jnp.std(strong.x0, axis=axes) / jnp.where(std > 0, std, 1.0), 1.0)
    return shift_x0(pair, lift(options.rescale * (ratio - 1), pair.x0) * pair.x0, t, not_none(options.sde))


def _check_options(options: GuidanceOptions) -> None:
    if not 0 <= options.rescale <= 1:
        raise UserError(f"guidance: expected 0 <= rescale <= 1, got {options.rescale}", "guidance_rescale")
    if options.rescale and options.sde is None:
        raise UserError("guidance: rescaling requires the SDE, got sde=None", "sde")
    if options.interval is not None and not 0 <= options.interval[0] < options.interval[1]:
        raise UserError(
            f"guidance: expected an interval (low, high) with 0 <= low < high, got {options.interval}",
            "guidance_interval",
        )


def check_classes(labels: jax.Array, num_classes: int) -> None:
    """Raise UserError unless all labels are classes or `NULL_LABEL`; traced labels are not checked."""
    if isinstance(labels, jax.core.Tracer):
        return
    wrong = np.unique(np.asarray(labels)[(np.asarray(labels) < NULL_LABEL) | (np.asarray(labels) >= num_classes)])
    if len(wrong):
        raise UserError(
            f"labels: expected 0 to {num_classes - 1}, or {NULL_LABEL} for no class, got {', '.join(map(str, wrong))}"
        )


def _check_scale(name: str, scale: Any) -> None:
    if not isinstance(scale, jax.core.Tracer) and np.min(scale) < 0:
        raise UserError(
            f"{name}: need scale >= 0, got {scale}; only classifier-free guidance accepts a negative one",
            "guidance_scale",
        )


def _per_example(scale: Any) -> Any:
    """Return a number unchanged, and a list or an array of scales as an array, (batch,)."""
    return scale if np.ndim(scale) == 0 else jnp.asarray(scale)


def _is(scale: Any, number: int) -> bool:
    return isinstance(scale, int | float) and scale == number
