"""The times of a training batch.

A time sampler is made by a function of `TIME_SAMPLERS` and called as sampler(draw, sde, t_min). It returns times in
[t_min, sde.t_max] and the factor of each example's loss: 1, or what makes the mean that of uniform times.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr, ndtri

from score_sde.errors import UserError
from score_sde.randomness import Draw
from score_sde.sde import SDE, log_snr, t_from_log_snr

TimeSampler = Callable[[Draw, SDE, float], tuple[jax.Array, jax.Array]]


def fractions(draw: Draw, stratified: bool) -> jax.Array:
    """(n,) fractions in [0, 1), each uniform: independent, or one in each of batch_size equal parts.

    Stratified they are (u + i / batch_size) mod 1 with one uniform u for the batch (Kingma et al. 2021, Appendix I.1):
    the mean of the loss stays, its variance falls.
    """
    if not stratified:
        return jax.vmap(jax.random.uniform)(draw.time_keys)
    return (jax.random.uniform(draw.shared_key) + draw.indices / draw.batch_size) % 1.0


def uniform(stratified: bool = False) -> TimeSampler:
    """Uniform times."""

    def sample(draw, sde, t_min):
        t = t_min + fractions(draw, stratified) * (sde.t_max - t_min)
        return t, jnp.ones_like(t)

    return sample


def stratified() -> TimeSampler:
    """Uniform times, spread evenly over each batch."""
    return uniform(stratified=True)


def log_normal(mean: float = -1.2, std: float = 1.2, stratified: bool = False) -> TimeSampler:
    """log(sigma / alpha) ~ N(mean, std^2), cut off at the ends of time (Karras et al. 2022, Table 1).

    Args:
      mean, std: of the logarithm of Karras' sigma.
      stratified: spread each batch evenly over the quantiles.
    """
    _check_positive("log_normal", std)

    def sample(draw, sde, t_min):
        ends = -0.5 * log_snr(sde, jnp.array([t_min, sde.t_max]))
        t = t_from_log_snr(sde, -2 * _cut_normal(fractions(draw, stratified), mean, std, ends))
        return jnp.clip(t, t_min, sde.t_max), jnp.ones_like(t)  # clipped: the inverse rounds

    return sample


def logit_normal(mean: float = 0.0, std: float = 1.0, stratified: bool = False) -> TimeSampler:
    """logit(t / t_max) ~ N(mean, std^2), cut off at t_min (Esser et al. 2024, "Scaling Rectified Flow Transformers").

    Args:
      mean, std: of the logit; a positive mean draws later times.
      stratified: spread each batch evenly over the quantiles.
    """
    _check_positive("logit_normal", std)

    def sample(draw, sde, t_min):
        ends = jnp.array([jax.scipy.special.logit(t_min / sde.t_max), jnp.inf])
        t = sde.t_max * jax.nn.sigmoid(_cut_normal(fractions(draw, stratified), mean, std, ends))
        return jnp.clip(t, t_min, sde.t_max), jnp.ones_like(t)

    return sample


def importance(stratified: bool = False) -> TimeSampler:
    """Times of density proportional to g^2 / sigma^2, that is, uniform log-SNR (Song, Durkan et al. 2021, Appendix B).

    Since g^2 / sigma^2 = -d log snr / dt, the inverse distribution function is that of the log-SNR, in closed form for
    the named SDEs. The loss is divided by the density: the mean is that of uniform times for every weighting, and for
    the likelihood weighting the eps error is left with a constant factor.

    Args:
      stratified: spread each batch evenly over the log-SNR.
    """

    def sample(draw, sde, t_min):
        first, last = log_snr(sde, jnp.array([t_min, sde.t_max]))
        t = t_from_log_snr(sde, first + fractions(draw, stratified) * (last - first))
        t = jnp.clip(t, t_min, sde.t_max)
        density = (sde.diffusion(t) / sde.sigma(t)) ** 2 / (first - last)
        return t, 1 / ((sde.t_max - t_min) * density)

    return sample


TIME_SAMPLERS: dict[str, Callable[..., TimeSampler]] = {
    "uniform": uniform,
    "stratified": stratified,
    "log_normal": log_normal,
    "logit_normal": logit_normal,
    "importance": importance,
}


def check_time_sampler(name: str, sde: SDE, t_min: float) -> None:
    """Refuses a range of times, or a sampler that has no density on it.

    Raises:
      UserError: t_min is outside [0, t_max), or `importance` would have to spread over an infinite range of log-SNR.
    """
    if not 0 <= t_min < sde.t_max:
        raise UserError(f"loss: need 0 <= t_min < {sde.t_max}, got {t_min}", "t_min")
    if name != "importance":
        return
    for t, key in ((t_min, "--config.loss.t_min"), (sde.t_max, "--config.sde.name")):
        if not jnp.isfinite(log_snr(sde, jnp.float32(t))):
            raise UserError(
                f"time sampler 'importance' is uniform in log-SNR, which is infinite at t = {t} (set {key}, or another "
                "--config.loss.time_sampler)"
            )


def _cut_normal(fraction: jax.Array, mean: float, std: float, ends: jax.Array) -> jax.Array:
    """The quantiles of N(mean, std^2) cut off outside `ends` (2,)."""
    low, high = ndtr((ends - mean) / std)
    return mean + std * ndtri(low + fraction * (high - low))


def _check_positive(name: str, std: float) -> None:
    if std <= 0:
        raise UserError(f"{name}: need std > 0, got {std}", "std")
