"""Time samplers: the distribution of the training times.

A function of `TIME_SAMPLERS` returns a time sampler, which is called as sampler(rngs, sde, t_min). It returns times in
[t_min, sde.t_max] and the factor of each example's loss: 1, or the importance weight relative to uniform times.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr, ndtri

from score_sde.errors import UserError
from score_sde.randomness import ExampleRngs
from score_sde.sde import SDE, log_snr, t_from_log_snr

TimeSampler = Callable[[ExampleRngs, SDE, float], tuple[jax.Array, jax.Array]]


def uniform_quantiles(rngs: ExampleRngs, stratified: bool) -> jax.Array:
    """Return uniform numbers in [0, 1), (n,): independent, or stratified over the batch.

    Stratified numbers are (u + i / batch_size) mod 1 with one uniform u per batch (Kingma et al. 2021, Appendix I.1).
    They keep the mean of the loss and reduce its variance.
    """
    if not stratified:
        return jax.vmap(jax.random.uniform)(rngs.time_keys)
    return (jax.random.uniform(rngs.shared_key) + rngs.indices / rngs.batch_size) % 1.0


def uniform(stratified: bool = False) -> TimeSampler:
    """Return the sampler of uniform times."""

    def sample(rngs, sde, t_min):
        t = t_min + uniform_quantiles(rngs, stratified) * (sde.t_max - t_min)
        return t, jnp.ones_like(t)

    return sample


def stratified() -> TimeSampler:
    """Return the sampler of uniform times that are stratified over each batch."""
    return uniform(stratified=True)


def log_normal(mean: float = -1.2, std: float = 1.2, stratified: bool = False) -> TimeSampler:
    """Return the sampler log(sigma / alpha) ~ N(mean, std^2) on [t_min, t_max] (Karras et al. 2022, Table 1).

    Args:
      mean: Mean of log(sigma / alpha), P_mean of the paper.
      std: Standard deviation of log(sigma / alpha), P_std of the paper, positive.
      stratified: Stratification over the quantiles of each batch.

    Raises:
      UserError: if std is not positive.
    """
    _check_positive("log_normal", std)

    def sample(rngs, sde, t_min):
        ends = -0.5 * log_snr(sde, jnp.array([t_min, sde.t_max]))
        t = t_from_log_snr(sde, -2 * _truncated_normal(uniform_quantiles(rngs, stratified), mean, std, ends))
        return jnp.clip(t, t_min, sde.t_max), jnp.ones_like(t)  # the inverse rounds

    return sample


def logit_normal(mean: float = 0.0, std: float = 1.0, stratified: bool = False) -> TimeSampler:
    """Return the sampler logit(t / t_max) ~ N(mean, std^2), truncated at t_min (Esser et al. 2024, Section 3.1).

    Args:
      mean: Mean of the logit; a positive mean favors noisy times.
      std: Standard deviation of the logit, positive.
      stratified: Stratification over the quantiles of each batch.

    Raises:
      UserError: if std is not positive.
    """
    _check_positive("logit_normal", std)

    def sample(rngs, sde, t_min):
        ends = jnp.array([jax.scipy.special.logit(t_min / sde.t_max), jnp.inf])
        t = sde.t_max * jax.nn.sigmoid(_truncated_normal(uniform_quantiles(rngs, stratified), mean, std, ends))
        return jnp.clip(t, t_min, sde.t_max), jnp.ones_like(t)

    return sample


def importance(stratified: bool = False) -> TimeSampler:
    """Return the sampler of density proportional to g^2 / sigma^2 (Song, Durkan et al. 2021, Appendix B).

    Since g^2 / sigma^2 = -d log snr / dt, the log-SNR is uniform, and its inverse gives the times. The loss is divided
    by the density, so that its mean is that of uniform times for every weighting. For the likelihood weighting the
    factor of the eps error becomes constant.

    Args:
      stratified: Stratification over the log-SNR of each batch.
    """

    def sample(rngs, sde, t_min):
        first, last = log_snr(sde, jnp.array([t_min, sde.t_max]))
        t = t_from_log_snr(sde, first + uniform_quantiles(rngs, stratified) * (last - first))
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
    """Raise UserError unless the time range is valid and the sampler has a density on it.

    Raises:
      UserError: if t_min is outside [0, t_max), or if the range of log-SNR of `importance` is infinite.
    """
    if not 0 <= t_min < sde.t_max:
        raise UserError(f"loss: expected 0 <= t_min < {sde.t_max}, got {t_min}", "t_min")
    if name != "importance":
        return
    for t, argument in ((t_min, "t_min"), (sde.t_max, "sde")):
        if not jnp.isfinite(log_snr(sde, jnp.float32(t))):
            raise UserError(
                f"time sampler 'importance' is uniform in log-SNR, which is infinite at t = {t}; choose another "
                "sampler or another end of the time range",
                argument,
                "time_sampler",
            )


def _truncated_normal(quantile: jax.Array, mean: float, std: float, ends: jax.Array) -> jax.Array:
    """Return quantiles of N(mean, std^2) truncated to the interval `ends`, (2,)."""
    low, high = ndtr((ends - mean) / std)
    return mean + std * ndtri(low + quantile * (high - low))


def _check_positive(name: str, std: float) -> None:
    if std <= 0:
        raise UserError(f"{name}: expected std > 0, got {std}", "std")
