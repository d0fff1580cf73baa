"""What a sampler is asked for beside its network: classes, and a guide that exists as weights."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from score_sde import models
from score_sde.errors import UserError, not_none
from score_sde.guidance import (
    autoguided,
    class_log_prob,
    classifier_free,
    classifier_free_labelled,
    classifier_guided,
)
from score_sde.models import pretrained
from score_sde.models.network import network
from score_sde.parameterization import Denoiser, make_denoiser, show
from score_sde.sde import SDE, log_snr, t_from_log_snr


class Guide(NamedTuple):
    """A classifier p_t(y | x), or a weaker network."""

    params: Any
    num_classes: int  # that a classifier tells apart, or that a network is told
    logits: Callable | None  # (params, x, t) -> (n, num_classes); None: a network
    denoiser: Callable[..., Denoiser] | None  # (params, **told) -> denoiser; None: a classifier
    objective: str = ""  # its training objective, where the weights record it


class Guidance(NamedTuple):
    """The settings of config.sampling."""

    scale: float
    interval: tuple[float, ...]  # (low, high) of sigma / alpha; none: everywhere
    rescale: float


def load_guide(
    path: str, family: str, make_sde: Callable[..., tuple[SDE, Any]], sde: SDE, event_shape: tuple[int, ...]
) -> Guide | None:
    """A guide from weights that `pretrained.adopt` reads, or from the folder of a run that has exported them.

    Args:
      path: of the weights; "" for no guide.
      family: of the weights, where they don't say it.
      make_sde: (name, kwargs) -> (SDE, chain).
      sde: what it has to be trained on.
      event_shape: of what it has to see.

    Raises:
      UserError: there are no such weights, or they are of another process or shape.
    """
    if not path:
        if family:
            raise UserError("there is no guide, so guide_family would not be read (set --config.sampling.guide)")
        return None
    try:
        found = pretrained.adopt(_exported(path), family)
    except UserError as error:  # which names the flags of a run's own weights
        words = str(error).replace("--config.model.pretrained", "--config.sampling.guide")
        raise UserError(words.replace("--config.model.family", "--config.sampling.guide_family")) from error
    target = found.target
    if found.event_shape != event_shape:
        raise UserError(
            f"the guide {path} was trained on data of the shape {found.event_shape}, these are {event_shape} (set "
            "--config.sampling.guide)"
        )
    own, _ = make_sde(target.sde, target.sde_kwargs)
    if not _same(own, sde):
        raise UserError(
            f"the guide {path} was trained on another SDE, {target.sde} {target.sde_kwargs or ''}: it knows other "
            "noise (set --config.sampling.guide to one of this process, or --config.sde)"
        )
    model = models.create(found.name, **found.kwargs)
    apply, num_classes = partial(network, model), getattr(model, "num_classes", 0)
    sigma_data = 0.5 if target.sigma_data is None else target.sigma_data
    if isinstance(model, models.Classifier):
        return Guide(
            found.params,
            num_classes,
            lambda params, x, t: show(apply(params), sde, target.preconditioning, sigma_data)(x, t),
            None,
        )

    def denoiser(params, **told):
        return make_denoiser(
            apply(params, **told),
            sde,
            target.prediction,
            target.preconditioning,
            sigma_data,
            learned_variance=getattr(model, "outputs", 1) == 2,
        )

    return Guide(found.params, num_classes, None, denoiser, found.objective)


def _exported(path: str) -> str:
    """The weights themselves: of a run's folder the newest that it exported."""
    folder = Path(path)
    if not (folder / "checkpoints").is_dir():
        return path
    exported = sorted(folder.glob("ema_*.safetensors"))
    if not exported:
        raise UserError(
            f"the run {path} has not exported its weights: launch.py --config=... --workdir={path} --mode=export "
            "writes them (set --config.sampling.guide)"
        )
    return str(exported[-1])


def _same(first: SDE, second: SDE) -> bool:
    """Whether two processes have one alpha and sigma at one time."""
    if not np.isclose(first.t_max, second.t_max):
        return False
    t = jnp.linspace(first.t_min, first.t_max, 16)
    pairs = ((first.alpha(t), second.alpha(t)), (first.sigma(t), second.sigma(t)))
    return all(np.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in pairs)


def num_classes_of(own: int, guide: Guide | None) -> int:
    """How many classes samples may be asked for.

    Raises:
      UserError: network and guide know different numbers of them.
    """
    guided = 0 if guide is None else guide.num_classes
    if own and guided and own != guided:
        raise UserError(
            f"the network knows {own} classes and the guide {guided}: they can't mean the same (set "
            "--config.sampling.guide)"
        )
    return own or guided


def make_guided(
    denoiser: Callable[..., Denoiser],
    own_classes: int,
    hidden_labels: bool,
    guide: Guide | None,
    sde: SDE,
    how: Guidance,
    label_of: Callable[[jax.Array], jax.Array | None],
) -> Callable[[Any, Any, jax.Array], Denoiser]:
    """Makes (params, the guide's params, indices of samples) -> denoiser.

    Args:
      denoiser: (params, labels=None) -> the network's denoiser.
      own_classes: that the network is told; 0: none.
      hidden_labels: whether its labels were hidden from it at times in training, so that it knows the null label.
      guide: a classifier, a weaker network or None.
      sde: the forward process.
      how: scale, interval and rescaling.
      label_of: indices of samples -> their classes.

    Raises:
      UserError: a scale other than 1, and nothing to guide by; or options that the guidance at hand doesn't read.
    """
    bounds = _bounds(how, sde)
    _check_guidance(own_classes, hidden_labels, guide, how, label_of)

    def told(indices):
        return label_of(indices) if own_classes else None

    if guide is None and not own_classes:
        return lambda params, beside, indices: denoiser(params)
    if guide is None:
        classifier_free(_nothing, _nothing, how.scale, **bounds)  # refuses now what it would refuse while sampling
        return lambda params, beside, indices: classifier_free_labelled(
            lambda labels: denoiser(params, labels=labels), told(indices), how.scale, **bounds
        )
    logits = guide.logits
    if logits is not None:
        classifier_guided(_nothing, _nothing, sde, how.scale)
        return lambda params, beside, indices: classifier_guided(
            denoiser(params, labels=told(indices)),
            class_log_prob(partial(logits, beside), not_none(label_of(indices))),
            sde,
            how.scale,
        )
    weaker = not_none(guide.denoiser)
    autoguided(_nothing, _nothing, how.scale, **bounds)
    return lambda params, beside, indices: autoguided(
        denoiser(params, labels=told(indices)),
        weaker(beside, labels=label_of(indices) if guide.num_classes else None),
        how.scale,
        **bounds,
    )


def _check_guidance(
    own_classes: int, hidden_labels: bool, guide: Guide | None, how: Guidance, label_of: Callable
) -> None:
    """Refuses what the guidance at hand can't do, or wouldn't read."""
    some = label_of(np.zeros(1, int))
    unnamed = some is not None and int(some[0]) < 0
    by_classifier = guide is not None and guide.logits is not None
    if guide is None and not own_classes and how != Guidance(1.0, (), 0.0):
        raise UserError(
            f"there is nothing to guide by, so guidance_scale={how.scale}, guidance_interval={how.interval} and "
            f"guidance_rescale={how.rescale} would not be read: the network knows no classes (set "
            "--config.model.kwargs.num_classes and label_dropout in training, or --config.sampling.guide)"
        )
    unlabelled = unnamed or (guide is None and how.scale != 1)
    if own_classes and unlabelled and not hidden_labels:
        asked = "a task without --config.sampling.label" if unnamed else f"guidance_scale={how.scale}"
        raise UserError(
            f"{asked} asks the network without a label, which it was never trained for (train with "
            "--config.model.kwargs.label_dropout=0.1)"
        )
    if unnamed and (by_classifier or (guide is None and how.scale != 1)):
        raise UserError("a task without a class has nothing to guide to (set --config.sampling.label)")
    if how.scale == 1 and not by_classifier and (how.interval or how.rescale or guide is not None):
        raise UserError(
            "guidance_scale=1 asks the network alone, so guidance_interval, guidance_rescale and a weaker network "
            "would not be read (set --config.sampling.guidance_scale)"
        )
    if by_classifier and (how.interval or how.rescale):
        raise UserError(
            "guidance_interval and guidance_rescale are of classifier-free guidance and autoguidance; by a classifier "
            "they would not be read (set --config.sampling.guidance_scale alone)"
        )


def _nothing(x, t):
    """In place of a denoiser where only arguments are checked."""
    raise AssertionError("no network is asked for a check")


def _bounds(how: Guidance, sde: SDE) -> dict[str, Any]:
    """The keyword arguments of a combinator; an interval is given in sigma / alpha, and there in t."""
    if not how.interval:
        return {"interval": None, "rescale": how.rescale, "sde": sde}
    if len(how.interval) != 2 or not 0 <= how.interval[0] < how.interval[1]:
        raise UserError(
            f"guidance_interval is (low, high) of sigma / alpha with 0 <= low < high, got {how.interval} (set "
            "--config.sampling.guidance_interval)"
        )
    ends = []
    for level in how.interval:
        snr = float("inf") if level == 0 else -2 * np.log(level)
        first, last = float(log_snr(sde, sde.t_min)), float(log_snr(sde, sde.t_max))
        beyond = 0.0 if snr >= first else sde.t_max if snr <= last else None
        ends.append(float(t_from_log_snr(sde, jnp.float32(snr))) if beyond is None else beyond)
    if ends[0] >= ends[1]:
        raise UserError(
            f"guidance_interval {how.interval} is outside of this process, whose sigma / alpha goes from "
            f"{np.exp(-0.5 * first):.3g} to {np.exp(-0.5 * last):.3g} (set --config.sampling.guidance_interval)"
        )
    return {"interval": tuple(ends), "rescale": how.rescale, "sde": sde}
