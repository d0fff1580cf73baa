"""`--mode=likelihood`: log p of the test split with its account, in bits a dimension where the data are pixels."""

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from score_sde import ddpm
from score_sde.data import images_of, to_unit_range
from score_sde.errors import UserError, not_none
from score_sde.evaluation.provenance import provenance
from score_sde.evaluation.results import check_figures, mean_of, write_figures
from score_sde.experiment import Experiment
from score_sde.likelihood import bits_per_dim, centred_range, dequantize, log_likelihood, truncation
from score_sde.parameterization import VariancePrediction
from score_sde.randomness import fold_each
from score_sde.runtime import distributed
from score_sde.sde import SDE, lift, t_from_log_snr, vp
from score_sde.training.load import trained
from score_sde.training.metrics import progress_bar


def likelihood(experiment: Experiment, workdir: Path) -> str:
    """Measures the test split and writes the figures to evaluation.json, under "likelihood".

    For a class-conditional network this is p(x | y) with each example's class, and p(x) under "unconditional" if labels
    were dropped in training.
    Of pixels: bits/dim, a bound through uniform dequantization, with prior, divergence, dequantization and truncation
    as its parts, which sum to it; beside it the variational bound of a discrete chain, and what a histogram of each
    pixel (of the training split) needs. Of real numbers: mean log density in nats.

    Returns:
      The figures as a short text.

    Raises:
      UserError: the folder has no checkpoint, the data set is missing, or an example took too many steps.
    """
    check_figures(workdir)
    how, source = experiment.likelihood, experiment.source("test")
    params, step = trained(experiment, workdir)
    images, labels = images_of(source, how["num_examples"])
    if len(images) < 2:
        raise UserError(
            f"likelihood: expected at least 2 test examples, for a standard error, got {len(images)} (set "
            "--config.likelihood.num_examples, or --config.data.path to more data)"
        )
    measure = partial(_over_batches, experiment=experiment, params=params, images=images, labels=labels)
    figures = provenance(experiment, step) | {"num_examples": len(images), "settings": how}
    if not experiment.knows_the_chain_alone:
        flow_parts = _flow_parts(experiment, source.levels)
        figures |= account(measure(flow_parts, name="likelihood"), experiment.event_shape, source.levels)
        if experiment.num_classes and experiment.config["model"]["kwargs"].get("label_dropout", 0.0) > 0:
            parts = measure(flow_parts, name="likelihood", labels=np.full_like(labels, -1))
            figures["unconditional"] = account(parts, experiment.event_shape, source.levels)
    if source.levels is not None:
        if how["chain_steps"]:
            bound = measure(_chain_bound(experiment, source.levels), name="chain")
            figures["discrete_bound_bits_per_dim"] = mean_of(bound["bits"])
        seen, _ = images_of(experiment.source("train"))
        figures["histograms_bits_per_dim"] = histogram_bits(seen, images, source.levels)
    write_figures(workdir, {"likelihood": figures})
    return _text(figures)


def _flow_parts(experiment: Experiment, levels: int | None) -> Callable:
    """(params, images (n, *event), labels (n,), keys (n,)) -> per-example parts, (n,) each, in nats."""
    how = experiment.likelihood
    sde = experiment.sde._replace(t_min=how["t_min"]) if how["t_min"] else experiment.sde
    options = {name: how[name] for name in ("divergence", "num_probes", "rtol", "atol", "method", "max_steps")}

    def once(denoiser, images, keys):
        first, second, third = (fold_each(keys, n) for n in range(3))
        x0 = images if levels is None else dequantize(first, images, levels, centred_range(levels))
        x, term = truncation(sde, denoiser, x0, second)
        flow = log_likelihood(sde, denoiser, x, third, **options)
        return {
            "log_prob": flow.log_prob + term,
            "prior": flow.prior,
            "divergence": flow.divergence,
            "truncation": term,
            "probes_standard_error": flow.standard_error,
        } | ({} if flow.nfe is None else {"nfe": flow.nfe})  # an implicit method's is not known

    denoiser_of = not_none(experiment.denoiser)

    def measure(params, images, labels, keys):
        denoiser = denoiser_of(params, labels=labels if experiment.num_classes else None)
        draws = jax.lax.map(lambda n: once(denoiser, images, fold_each(keys, n)), jnp.arange(how["num_draws"]))
        parts = {name: jnp.mean(values, axis=0) for name, values in draws.items()}
        parts["probes_standard_error"] /= math.sqrt(how["num_draws"])  # of a mean over the draws
        if how["importance"]:
            tighter = jax.nn.logsumexp(draws["log_prob"], axis=0) - math.log(how["num_draws"])
            parts |= {"importance": tighter - parts["log_prob"], "log_prob": tighter}
        return parts

    return measure


def _chain_bound(experiment: Experiment, levels: int) -> Callable:
    """(params, images, labels, keys) -> {"bits": (n,)}: the variational bound of a chain that asks our denoiser."""
    chain = experiment.chain or chain_through_vp(experiment.likelihood["chain_steps"])
    denoiser_of = not_none(experiment.denoiser)

    def measure(params, images, labels, keys):
        denoiser = denoiser_of(params, labels=labels if experiment.num_classes else None)
        epsilon_fn = chain_epsilon(denoiser, experiment.sde, chain)  # with its variance, if that was learned
        x0 = to_unit_range(images, levels)
        return {"bits": ddpm.variational_bound(epsilon_fn, chain, x0, keys, bits_per_dim=True, levels=levels).total}

    return measure


def chain_through_vp(num_steps: int) -> ddpm.Schedule:
    """The discrete chain of num_steps steps that passes through the vp SDE; for 1,000 it is nearly Ho et al.'s.

    In float64, since a beta is the difference from 1 of a number very near 1.
    """
    with jax.enable_x64(True):
        log_alpha = np.log(vp().alpha(jnp.arange(num_steps + 1) / num_steps))
    return ddpm.make_schedule(-np.expm1(2 * np.diff(log_alpha)))


def chain_epsilon(denoiser, sde: SDE, chain: ddpm.Schedule) -> Callable:
    """Returns (x_n, n) -> eps, or (eps, v), of a chain's step from a denoiser of any SDE, at the same log-SNR."""

    c = ddpm.coefficients(chain)  # whose noise keeps the digits that 1 - alphas_cumprod has lost

    def epsilon_fn(x, n):
        signal = c.signal[n]
        level = 2 * (jnp.log(signal) - jnp.log(c.noise[n]))
        t = jnp.clip(t_from_log_snr(sde, level), 0.0, sde.t_max)
        pair = denoiser(lift(sde.alpha(t) / signal, x) * x, t)
        return (pair.epsilon, pair.v) if isinstance(pair, VariancePrediction) else pair.epsilon

    return epsilon_fn


def histogram_bits(train: np.ndarray, test: np.ndarray, levels: int) -> float:
    """bits/dim of a test split under independent histograms, one a pixel, of a training split with one added to each.

    Args:
      train: (n, *event) integers 0 .. levels - 1.
      test: (m, *event).
    """
    train, test = (images.reshape(len(images), -1).astype(int) for images in (train, test))
    counts = np.ones((train.shape[1], levels))
    np.add.at(counts, (np.arange(train.shape[1])[None], train), 1.0)
    probability = counts / counts.sum(1, keepdims=True)
    return float(-np.log2(probability[np.arange(test.shape[1])[None], test]).mean())


def _over_batches(
    measure: Callable, experiment: Experiment, params: Any, images: np.ndarray, labels: np.ndarray, name: str
) -> dict[str, np.ndarray]:
    """Measures all images on all devices; example i draws with fold_in(key, i), whatever the batch."""
    devices = jax.local_devices()  # of several processes each measures its part, and all get the whole
    everywhere = len(devices) * jax.process_count()
    each = math.ceil(experiment.likelihood["batch_size"] / everywhere)
    batch, mine = each * everywhere, distributed.local_slice(each * everywhere)
    key = jax.random.fold_in(jax.random.key(experiment.config["seed"]), len(name))
    keys_of = jax.jit(jax.vmap(partial(jax.random.fold_in, key)))
    compiled = jax.pmap(measure, in_axes=(None, 0, 0, 0), devices=devices)
    parts = []
    with progress_bar(len(images), 0, "image", name) as bar:
        for first in range(0, len(images), batch):
            indices = np.minimum(np.arange(first, first + batch), len(images) - 1)[mine]  # the last batch is filled up
            shown, told = (part[indices].reshape(len(devices), each, *part.shape[1:]) for part in (images, labels))
            measured = compiled(params, shown, told, keys_of(indices).reshape(len(devices), each))
            kept = min(batch, len(images) - first)
            whole = distributed.all_gather({name: np.asarray(values).reshape(-1) for name, values in measured.items()})
            if not np.isfinite(whole.get("log_prob", 0.0)).all():
                raise UserError(
                    f"likelihood: an example took more than {experiment.likelihood['max_steps']} steps (set "
                    "--config.likelihood.max_steps, or larger --config.likelihood.rtol and atol)"
                )
            parts.append({name: values[:kept] for name, values in whole.items()})
            bar.update(kept)
    return {name: np.concatenate([part[name] for part in parts]).astype(np.float64) for name in parts[0]}


def account(parts: dict[str, np.ndarray], event_shape: tuple[int, ...], levels: int | None) -> dict[str, Any]:
    """The parts' means over examples: in nats, and of pixels in bits/dim, where they sum to the whole."""
    figures: dict[str, Any] = {"nfe": mean_of(parts.pop("nfe")) if "nfe" in parts else None}
    probes = parts.pop("probes_standard_error")
    figures["log_prob_nats"] = mean_of(parts["log_prob"])
    if np.isfinite(probes).all():  # one probe shows no spread
        figures["log_prob_nats"]["standard_error_of_probes"] = float(np.sqrt(np.mean(probes**2) / len(probes)))
    if levels is None:
        return figures | {f"{name}_nats": mean_of(values) for name, values in parts.items() if name != "log_prob"}
    to_bits = partial(bits_per_dim, event_shape=event_shape, levels=levels, data_range=centred_range(levels))
    figures["bits_per_dim"] = mean_of(to_bits(parts["log_prob"]))
    volume = float(to_bits(np.zeros(())))  # the density of an even spread over a level
    figures["bits_per_dim_account"] = {"dequantization": {"mean": volume, "standard_error": 0.0}} | {
        name: mean_of(to_bits(values) - volume) for name, values in parts.items() if name != "log_prob"
    }
    return figures


def _text(figures: dict[str, Any]) -> str:
    lines = [json.dumps({key: value for key, value in figures.items() if key != "settings"}, indent=2)]
    if "bits_per_dim" in figures:
        bits = figures["bits_per_dim"]
        evaluations = f"{figures['nfe']['mean']:.0f}" if figures["nfe"] else "an unknown number of"
        lines.append(
            f"{bits['mean']:.3f} ± {bits['standard_error']:.3f} bits/dim on {figures['num_examples']} test images, "
            f"{evaluations} evaluations each; histograms need {figures['histograms_bits_per_dim']:.3f}"
        )
    if "bits_per_dim" in figures.get("unconditional", {}):
        bits = figures["unconditional"]["bits_per_dim"]
        lines.append(f"that is p(x | y); p(x) has {bits['mean']:.3f} ± {bits['standard_error']:.3f} bits/dim")
    return "\n".join(lines)
