"""The loss of a training step: objective, weighting and times, checked against each other and joined."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from score_sde import ddpm
from score_sde.errors import UserError, build, lookup, not_none
from score_sde.parameterization import Denoiser, show
from score_sde.randomness import fold_each, noise
from score_sde.score_matching import OBJECTIVES
from score_sde.sde import SDE, marginal
from score_sde.time_samplers import TIME_SAMPLERS, TimeSampler, check_time_sampler
from score_sde.weightings import WEIGHTINGS, Weighting

LossFn = Callable[..., jax.Array]  # (params, x0, draw, **told) -> (n,)

# Trained at the steps of a chain alone: L_simple (Ho et al. 2020), and with a learned variance (Nichol and Dhariwal
# 2021).
CHAIN_OBJECTIVES = ("ddpm", "ddpm_hybrid")
CLASSIFICATION = "classification"  # of a noise-conditional classifier


class Subject(NamedTuple):
    """What a loss is of."""

    sde: SDE
    chain: ddpm.Schedule | None  # what the SDE passes through, if it is a chain
    denoiser: Callable[..., Denoiser] | None  # (params, keys, **told) -> denoiser; None of a classifier
    network: Callable  # (params, keys, **told) -> (x, noise_level) -> all outputs
    preconditioning: str
    event_shape: tuple[int, ...]
    sigma_data: float
    truth: Denoiser | None  # the exact denoiser of the data, where it is known


def make_loss(
    subject: Subject,
    *,
    objective: str,
    objective_kwargs: Mapping[str, Any],
    weighting: str,
    weighting_kwargs: Mapping[str, Any],
    time_sampler: str,
    time_sampler_kwargs: Mapping[str, Any],
    t_min: float,
) -> LossFn:
    """Makes (params, x0, draw, **told) -> (n,) losses; what the network is told beside the noise level may be its
    `labels` and `augment`, (n,) and (n, augment_dim). `ddpm_hybrid` also takes `levels`, the number of levels of the
    data's pixels, unless objective_kwargs sets it.

    They are averaged over dimensions: the scale at which the papers clip gradients. The cross-entropy of a
    classifier is in nats, of the example.

    Args:
      subject: what it is a loss of.
      objective: a key of `OBJECTIVES`, one of `CHAIN_OBJECTIVES`, or "classification".
      weighting: a key of `WEIGHTINGS`.
      time_sampler: a key of `TIME_SAMPLERS`.
      objective_kwargs, weighting_kwargs, time_sampler_kwargs: of the functions chosen.
      t_min: times are drawn from [t_min, sde.t_max].

    Raises:
      UserError: a name or keyword is unknown, or the parts don't fit each other.
    """
    where = "--config.loss"
    known = dict.fromkeys((*OBJECTIVES, *CHAIN_OBJECTIVES, CLASSIFICATION))
    lookup("objective", known, objective, f"{where}.objective")
    if weighting == "edm":
        weighting_kwargs = {"sigma_data": subject.sigma_data} | dict(weighting_kwargs)
    weigh = build("weighting", WEIGHTINGS, weighting, weighting_kwargs, where, "weighting", "weighting_kwargs")
    sample_times = build(
        "time sampler", TIME_SAMPLERS, time_sampler, time_sampler_kwargs, where, "time_sampler", "time_sampler_kwargs"
    )
    if objective == CLASSIFICATION:
        _check_keys(objective, objective_kwargs, ())
        _check_simple(objective, weighting)
        check_time_sampler(time_sampler, subject.sde, t_min)
        return _cross_entropy(subject, sample_times, t_min)
    if objective in CHAIN_OBJECTIVES:
        _check_chain(subject, objective, weighting, time_sampler)
        losses = _CHAIN_LOSSES[objective](subject, sample_times, objective_kwargs)
    else:
        check_time_sampler(time_sampler, subject.sde, t_min)
        if objective == "explicit":
            objective_kwargs = {"truth": _truth(subject)} | dict(objective_kwargs)
        made = build("objective", OBJECTIVES, objective, objective_kwargs, where, "objective", "objective_kwargs")
        losses = _continuous_losses(subject, made, weigh, sample_times, t_min)
    dimension = np.prod(subject.event_shape)
    return lambda params, x0, draw, **told: losses(params, x0, draw, **told) / dimension


def _continuous_losses(
    subject: Subject, objective: Callable, weighting: Weighting, sample_times: TimeSampler, t_min: float
) -> LossFn:
    denoiser_of = not_none(subject.denoiser)

    def losses(params, x0, draw, **told):
        t, factor = sample_times(draw, subject.sde, t_min)
        epsilon = noise(draw.noise_keys, x0)
        keys = fold_each(draw.network_keys, 1)  # apart from dropout's
        denoiser = denoiser_of(params, draw.network_keys, **told)
        return factor * objective(denoiser, subject.sde, x0, t, epsilon, keys, weighting)

    return losses


def _cross_entropy(subject: Subject, sample_times: TimeSampler, t_min: float) -> LossFn:
    """-log p_t(y | x_t) of a noise-conditional classifier (Dhariwal and Nichol 2021, Section 4)."""

    def losses(params, x0, draw, *, labels, **told):
        t, factor = sample_times(draw, subject.sde, t_min)
        x = marginal(subject.sde, x0, noise(draw.noise_keys, x0), t)
        network = subject.network(params, draw.network_keys, **told)
        logits = show(network, subject.sde, subject.preconditioning, subject.sigma_data)(x, t)
        return factor * optax.softmax_cross_entropy_with_integer_labels(logits, labels)

    return losses


def _ddpm_losses(subject: Subject, sample_times: TimeSampler, kwargs: Mapping[str, Any]) -> LossFn:
    """`ddpm.simple_loss` at even steps."""
    _check_keys("ddpm", kwargs, ())
    chain, denoiser_of = not_none(subject.chain), not_none(subject.denoiser)

    def losses(params, x0, draw, **told):
        n = ddpm.time_to_timestep(chain, sample_times(draw, subject.sde, 0.0)[0])
        denoiser = denoiser_of(params, draw.network_keys, **told)
        epsilon = noise(draw.noise_keys, x0)
        return ddpm.simple_loss(
            lambda x, n: denoiser(x, ddpm.timestep_to_time(chain, n)).epsilon, chain, x0, n, epsilon
        )

    return losses


def _hybrid_losses(subject: Subject, sample_times: TimeSampler, kwargs: Mapping[str, Any]) -> LossFn:
    """`ddpm.hybrid_loss` at uniform timesteps."""
    _check_keys("ddpm_hybrid", kwargs, ("vlb_weight", "levels"))
    chain, denoiser_of = not_none(subject.chain), not_none(subject.denoiser)

    def losses(params, x0, draw, *, levels=None, **told):
        options = {"levels": levels} | dict(kwargs)
        n = ddpm.time_to_timestep(chain, sample_times(draw, subject.sde, 0.0)[0])
        denoiser = denoiser_of(params, draw.network_keys, **told)

        def epsilon_and_v(x, n):
            pair: Any = denoiser(x, ddpm.timestep_to_time(chain, n))  # with v, as its network has two outputs
            return pair.epsilon, pair.v

        return ddpm.hybrid_loss(epsilon_and_v, chain, x0, n, noise(draw.noise_keys, x0), **options)

    return losses


_CHAIN_LOSSES = {"ddpm": _ddpm_losses, "ddpm_hybrid": _hybrid_losses}


def _truth(subject: Subject) -> Denoiser:
    if subject.truth is None:
        raise UserError(
            "objective 'explicit' compares with the data's true score, which is known of the data set 'mixture' alone",
            "objective=denoising",
            "name=mixture",
        )
    return subject.truth


def _check_keys(objective: str, kwargs: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in kwargs:
        if key not in known:
            accepted = f"it takes {', '.join(known)}" if known else "it takes none"
            raise UserError(f"objective {objective!r} has no argument {key!r}; {accepted}")


def _check_chain(subject: Subject, objective: str, weighting: str, time_sampler: str) -> None:
    if subject.chain is None:
        raise UserError(
            f"objective {objective!r} trains at the steps of a chain, and this SDE has none (set --config.sde.name to "
            f"{' or '.join(ddpm.SCHEDULES)})"
        )
    if subject.preconditioning != "none":
        raise UserError(
            f"objective {objective!r}: a chain's network is told its index n, which preconditioning "
            f"{subject.preconditioning!r} replaces by a noise level",
            "preconditioning=none",
        )
    _check_simple(objective, weighting)
    if time_sampler not in ("uniform", "stratified"):
        raise UserError(
            f"objective {objective!r} draws the steps of the chain evenly, time sampler {time_sampler!r} doesn't (set "
            "--config.loss.time_sampler to uniform or stratified)"
        )


def _check_simple(objective: str, weighting: str) -> None:
    if weighting != "simple":
        raise UserError(
            f"objective {objective!r} has no weighting, so {weighting!r} would not be read",
            "weighting=simple",
            "objective=denoising",
        )
