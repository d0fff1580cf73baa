"""The per-example loss of a train step: an objective at sampled times with sampled noise.

A loss is a function (params, x0, rngs, labels=None, augment=None, levels=None) -> (batch,). x0 (batch, *event) is in
[-1, 1], and rngs holds the examples' keys (`randomness.ExampleRngs`). labels (batch,) and augment (batch, augment_dim)
condition the network, and levels is the number of pixel levels of the data. Losses are means over dimensions, the scale
at which the papers clip gradients, except the cross-entropy of a classifier, which is in nats per example.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from score_sde import ddpm
from score_sde import flow_map as flow_maps
from score_sde.conditioned import NULL_LABEL
from score_sde.errors import UserError
from score_sde.guidance import classifier_free
from score_sde.model import DiffusionModel, NoisyClassifier, check_continuous_time
from score_sde.parameterization import Denoiser, Prediction
from score_sde.randomness import fold_each, noise, rademacher
from score_sde.sde import add_noise, log_snr
from score_sde.time_samplers import TimeSampler
from score_sde.training.uncertainty import weigh
from score_sde.weightings import Weighting

LossFn = Callable[..., jax.Array]

# Objectives of networks that are trained at the timesteps of a chain only: L_simple (Ho et al. 2020), and L_hybrid
# with a learned variance (Nichol and Dhariwal 2021).
CHAIN_OBJECTIVES = ("ddpm", "ddpm_hybrid")
# Objectives of flow maps, whose networks take two times: the rules of `flow_map_loss`.
FLOW_MAP_OBJECTIVES = ("eulerian", "lagrangian", "progressive")


def continuous_loss(
    model: DiffusionModel,
    objective: Callable,
    weighting: Weighting,
    sample_times: TimeSampler,
    t_min: float,
    learn_uncertainty: bool = False,
) -> LossFn:
    """Return the loss of an objective of `score_matching.OBJECTIVES` at times in [t_min, t_max].

    With `learn_uncertainty` the parameters are those of `with_uncertainty`.
    """

    def loss(params, x0, rngs, labels=None, augment=None, levels=None):
        t, factor = sample_times(rngs, model.sde, t_min)
        epsilon = noise(rngs.noise_keys, x0)
        keys = fold_each(rngs.network_keys, 1)  # independent of dropout
        denoiser = model.denoiser(params, labels=labels, augment=augment, dropout_keys=rngs.network_keys)
        losses = objective(denoiser, model.sde, x0, t, epsilon, keys, weighting) / _dimension(model)
        return factor * (weigh(losses, params, log_snr(model.sde, t)) if learn_uncertainty else losses)

    return loss


def ddpm_loss(model: DiffusionModel, schedule: ddpm.Schedule, sample_times: TimeSampler) -> LossFn:
    """Return L_simple (Ho et al. 2020, eq. 14) at uniform timesteps of a schedule."""

    def loss(params, x0, rngs, labels=None, augment=None, levels=None):
        n = ddpm.time_to_timestep(schedule, sample_times(rngs, model.sde, 0.0)[0])
        denoiser = model.denoiser(params, labels=labels, augment=augment, dropout_keys=rngs.network_keys)

        def epsilon_fn(x, n):
            return denoiser(x, ddpm.timestep_to_time(schedule, n)).epsilon

        return ddpm.simple_loss(epsilon_fn, schedule, x0, n, noise(rngs.noise_keys, x0)) / _dimension(model)

    return loss


def ddpm_hybrid_loss(
    model: DiffusionModel,
    schedule: ddpm.Schedule,
    sample_times: TimeSampler,
    vlb_weight: float = 1e-3,
    levels: int | None = None,
) -> LossFn:
    """Return L_hybrid with a learned variance (Nichol and Dhariwal 2021, Section 3.1) at uniform timesteps.

    Args:
      model: Model with a learned variance.
      schedule: Schedule of the timesteps.
      sample_times: Time sampler.
      vlb_weight: Weight of the variational bound.
      levels: Number of pixel levels of the decoder term; None for that of the data.
    """
    chosen_levels = levels

    def loss(params, x0, rngs, labels=None, augment=None, levels=None):
        n = ddpm.time_to_timestep(schedule, sample_times(rngs, model.sde, 0.0)[0])
        denoiser = model.denoiser(params, labels=labels, augment=augment, dropout_keys=rngs.network_keys)

        def epsilon_and_v(x, n):
            prediction: Any = denoiser(x, ddpm.timestep_to_time(schedule, n))
            return prediction.epsilon, prediction.v

        epsilon = noise(rngs.noise_keys, x0)
        used = levels if chosen_levels is None else chosen_levels
        losses = ddpm.hybrid_loss(epsilon_and_v, schedule, x0, n, epsilon, vlb_weight, levels=used)
        return losses / _dimension(model)

    return loss


class Teacher(NamedTuple):
    """A trained model that a flow map is distilled from."""

    model: DiffusionModel
    params: Any


def flow_map_loss(
    model: DiffusionModel,
    rule: str,
    sample_times: TimeSampler,
    t_min: float,
    teacher: Teacher | None = None,
    diagonal: float = 0.5,
    improved: bool = True,
    adaptive: float = 0.0,
    guidance_scale: float = 1.0,
) -> LossFn:
    """Return the loss of a flow map: denoising on a fraction of the examples, where r = t, and a rule on the others.

    The angle of r is uniform between those of t_min and t, or, if the network learns the mean divergence for
    likelihoods, those of t_min and t_max. Losses are errors of v in angles, see `flow_map`.

    Args:
      model: Model whose network takes two times.
      rule: "eulerian" (MeanFlow, consistency models), "lagrangian" or "progressive" (Shortcut models).
      sample_times: Sampler of t.
      t_min: Smallest time.
      teacher: Model whose velocity is learned; None for that of the data.
      diagonal: Fraction of the examples with r = t, in (0, 1].
      improved: Whether the rule "eulerian" differentiates along the predicted velocity, not along an example's. It has
        no effect with a teacher or another rule.
      adaptive: Power p by which an example's loss is divided, (loss / d + 0.001)^p; 0 for none (MeanFlow: 1).
      guidance_scale: Scale of the classifier-free guidance that is trained into the map, so that sampling needs none
        (Geng et al. 2025, Section 4.2): the target is unconditional + scale (target - unconditional).

    Raises:
      UserError: if the fraction is out of range, an option has no effect, or the network can't have guidance or a mean
        divergence.
    """
    if model.learned_divergence and rule != "progressive":
        raise UserError(f"the rule {rule!r} learns no mean divergence", "objective=progressive", "outputs=1")
    guided_by = model if teacher is None else teacher.model
    if guidance_scale != 1.0 and not (model.num_classes and guided_by.has_null_label):
        raise UserError(
            "guidance_scale requires a class-conditional network, and label dropout in the training of the teacher, or "
            "of this network if there is none",
            "guidance_scale=1",
        )
    if teacher is not None:
        check_teacher(model, teacher.model)
    elif guidance_scale <= 0:
        raise UserError(
            f"without a teacher the unconditional target is the network's own, so a guidance_scale of {guidance_scale} "
            "trains nothing",
            "guidance_scale above 0",
        )
    if not 0.0 < diagonal <= 1.0:
        raise UserError(f"expected 0 < diagonal <= 1, got {diagonal}; the rules need the diagonal", "diagonal")
    if not improved and (rule != "eulerian" or teacher is not None):
        raise UserError("improved=False has no effect with a teacher or another rule than eulerian", "improved=True")
    sde = model.sde

    def loss(params, x0, rngs, labels=None, augment=None, levels=None):
        t, factor = sample_times(rngs, sde, t_min)
        epsilon = noise(rngs.noise_keys, x0)
        x = add_noise(sde, x0, epsilon, t)
        position, chosen = (jax.vmap(jax.random.uniform)(fold_each(rngs.time_keys, n)) for n in (1, 2))
        on_diagonal = chosen < diagonal
        first = jnp.full_like(t, sde.t_max) if model.learned_divergence else t
        last = flow_maps.angle(sde, jnp.asarray(t_min, t.dtype))
        r = flow_maps.t_from_angle(sde, last + position * (flow_maps.angle(sde, first) - last))
        r = jnp.where(on_diagonal, t, jnp.clip(r, t_min, first))

        flow_map: Any = model.denoiser(params, labels=labels, augment=augment, dropout_keys=rngs.network_keys)
        denoiser: Denoiser = flow_maps.diagonal(flow_map)
        target: Any = Prediction(x0, epsilon)
        if teacher is not None:
            denoiser = teacher.model.denoiser(teacher.params, labels=labels, augment=augment)
            if guidance_scale != 1.0:
                weaker = _unlabeled(teacher.model, teacher.params, x, augment)
                denoiser = classifier_free(denoiser, weaker, guidance_scale)
            target = denoiser(x, t)
        elif guidance_scale != 1.0:
            guided = classifier_free(
                lambda x, t: Prediction(x0, epsilon), _unlabeled(model, params, x, augment), guidance_scale
            )
            target = jax.lax.stop_gradient(guided(x, t))
        if rule == "eulerian":  # at r = t this is denoising
            tangent: Any = jax.lax.stop_gradient(denoiser(x, t)) if improved and teacher is None else None
            losses = flow_maps.eulerian(flow_map, sde, x, t, r, target, tangent)
        else:
            divergence = None
            if model.learned_divergence:
                probe = rademacher(fold_each(rngs.noise_keys, 1), x)
                divergence = flow_maps.velocity_divergence(denoiser, sde, x, t, probe)
            if rule == "lagrangian":
                denoising = flow_maps.denoising(flow_map, sde, x, t, target, divergence)
                losses = flow_maps.lagrangian(flow_map, sde, x, t, r, denoiser)
            else:
                long = flow_map(x, t, r)  # evaluated once: denoising counts only where r = t

                def reused(y, s, u):
                    return long if y is x and u is r else flow_map(y, s, u)

                denoising = flow_maps.denoising(lambda *_: long, sde, x, t, target, divergence)
                losses = flow_maps.progressive(reused, sde, x, t, r)
            losses = jnp.where(on_diagonal, denoising, losses)
        losses = losses / _dimension(model)
        return factor * losses / jax.lax.stop_gradient(losses + 1e-3) ** adaptive

    return loss


def check_teacher(student: DiffusionModel, teacher: DiffusionModel) -> None:
    """Raise UserError unless a teacher gives the velocity at all times for the labels of its student."""
    check_continuous_time(teacher, "the teacher of a flow map")
    known = teacher.has_null_label or not teacher.num_classes
    if not (teacher.num_classes == student.num_classes or (student.num_classes == 0 and known)):
        raise UserError(
            f"the teacher has {teacher.num_classes} classes and this network {student.num_classes}: expected the same "
            "number, or none here and label dropout in the training of the teacher",
            "teacher",
            "num_classes",
        )


def _unlabeled(model: DiffusionModel, params: Any, x: jax.Array, augment: jax.Array | None) -> Denoiser:
    """Return the unconditional denoiser of a class-conditional model for a batch like x."""
    return model.denoiser(params, labels=jnp.full(len(x), NULL_LABEL), augment=augment)


def classification_loss(classifier: NoisyClassifier, sample_times: TimeSampler, t_min: float) -> LossFn:
    """Return -log p_t(y | x_t) of a noise-conditional classifier (Dhariwal and Nichol 2021, Section 4)."""

    def loss(params, x0, rngs, labels=None, augment=None, levels=None):
        t, factor = sample_times(rngs, classifier.sde, t_min)
        x = add_noise(classifier.sde, x0, noise(rngs.noise_keys, x0), t)
        logits = classifier.logits(params, dropout_keys=rngs.network_keys)(x, t)
        return factor * optax.softmax_cross_entropy_with_integer_labels(logits, labels)

    return loss


def _dimension(model: DiffusionModel) -> int:
    return int(np.prod(model.event_shape))
