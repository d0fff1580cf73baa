"""Log-likelihood of the test split, in bits/dim for pixels."""

import json
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from score_sde import ddpm
from score_sde.data import Dataset, load_examples, to_unit_range
from score_sde.errors import UserError
from score_sde.evaluation.options import LikelihoodOptions
from score_sde.evaluation.results import mean_of
from score_sde.flow_map import angle_grid
from score_sde.flow_map import log_likelihood as log_likelihood_in_jumps
from score_sde.likelihood import bits_per_dim, centered_range, dequantize, log_likelihood, truncation
from score_sde.model import DiffusionModel
from score_sde.parameterization import VariancePrediction
from score_sde.randomness import fold_each
from score_sde.runtime import distributed
from score_sde.runtime.periodic import announcing
from score_sde.sde import SDE, lift, prior_log_prob, t_from_log_snr, vp
from score_sde.training.metrics import progress_bar

NUM_COMPARED = 100  # test examples on which a likelihood in jumps is compared with the integral


def likelihood(
    model: DiffusionModel,
    params: Any,
    load: Callable[[str], Dataset],
    options: LikelihoodOptions,
    seed: int,
    schedule: ddpm.Schedule | None = None,
) -> dict[str, Any]:
    """Measure the likelihood of the test split.

    For a class-conditional network this is p(x | y) with each example's class, and p(x) under "unconditional" if labels
    were dropped in training.

    For pixels it is in bits/dim, a bound through uniform dequantization, with the prior, divergence, dequantization and
    truncation as its parts, which sum to it. The results also have the variational bound of a discrete-time schedule,
    and the bits/dim of a histogram per pixel of the training split. For real numbers it is the mean log-density in
    nats. With flow_map_steps it is measured by jumps of a flow map, and compared with the integral on the first
    examples.

    Args:
      model: Diffusion model.
      params: Parameters of the model.
      load: Function from a split to its data.
      options: Options of the likelihood.
      seed: Seed of dequantization and probes.
      schedule: Discrete-time schedule for the variational bound; None for one through the vp SDE.

    Raises:
      UserError: if there are too few examples, or one took too many steps.
    """
    source = load("test")
    images, labels = load_examples(source, options.num_examples)
    if len(images) < 2:
        raise UserError(
            f"likelihood: expected at least 2 test examples, for a standard error, got {len(images)}",
            "num_examples",
            "path to more data",
        )
    results: dict[str, Any] = {"num_examples": len(images), "settings": options._asdict()}
    over_batches = partial(_over_batches, params=params, images=images, options=options, seed=seed)
    if options.flow_map_steps and not model.learned_divergence:
        raise UserError(
            "flow_map_steps requires a flow map with a learned divergence, a network with two_times=True and outputs=2",
            "flow_map_steps=0",
            "outputs=2 in training",
        )
    if model.timesteps is None:
        flow_parts = over_batches(_flow_parts(model, options, source.levels), "likelihood")
        measured = _unscaled(flow_parts(labels), source)
        log_prob = measured["log_prob"]
        results |= breakdown(measured, model.event_shape, source.levels)
        if model.has_null_label:
            unlabeled = _unscaled(flow_parts(np.full_like(labels, -1)), source)
            results["unconditional"] = breakdown(unlabeled, model.event_shape, source.levels)
    if options.flow_map_steps:
        # The integral on the first examples, with the same name and hence the same dequantization and noise.
        first, no_jumps = slice(NUM_COMPARED), options._replace(flow_map_steps=0)
        integral = partial(_over_batches, params=params, images=images[first], options=no_jumps, seed=seed)
        exact = _unscaled(integral(_flow_parts(model, no_jumps, source.levels), "likelihood")(labels[first]), source)
        difference = (log_prob[first] - exact["log_prob"]) / math.prod(model.event_shape)
        difference = difference if source.levels is None else -difference / math.log(2)
        results["minus_integral_per_dim"] = mean_of(difference) | {"num_examples": len(difference)}
    if source.levels is not None:
        if options.vlb_num_steps:
            chain = schedule or chain_through_vp(options.vlb_num_steps)
            bound = over_batches(_chain_bound(model, chain, source.levels), "chain")(labels)
            results["discrete_bound_bits_per_dim"] = mean_of(bound["bits"])
        train, _ = load_examples(load("train"))
        results["histograms_bits_per_dim"] = histogram_bits(train, images, source.levels)
    return results


def _unscaled(parts: dict[str, np.ndarray], source: Dataset) -> dict[str, np.ndarray]:
    """Convert log p(z) of standardized data to log p(x), x = mean + std z: log p(x) = log p(z) - sum log std."""
    if source.scaling is None:
        return parts
    volume = np.full_like(parts["log_prob"], -np.log(source.scaling[1]).sum())
    return parts | {"log_prob": parts["log_prob"] + volume, "standardization": volume}


def _flow_parts(model: DiffusionModel, options: LikelihoodOptions, levels: int | None) -> Callable:
    """Return (params, images (n, *event), labels (n,), keys (n,)) -> parts of log p per example, (n,) each, in nats."""
    sde = model.sde._replace(t_min=options.t_min) if options.t_min else model.sde
    flow_parts = _by_jumps(sde, options.flow_map_steps) if options.flow_map_steps else _by_integral(sde, options)

    def once(denoiser, images, keys):
        first, second, third = (fold_each(keys, n) for n in range(3))
        x0 = images if levels is None else dequantize(first, images, levels, centered_range(levels))
        x, term = truncation(sde, denoiser, x0, second)
        parts = flow_parts(denoiser, x, third)
        return parts | {"log_prob": parts["prior"] + parts["divergence"] + term, "truncation": term}

    def measure(params, images, labels, keys):
        denoiser = model.denoiser(params, labels=labels if model.num_classes else None)
        repeats = jax.lax.map(
            lambda n: once(denoiser, images, fold_each(keys, n)), jnp.arange(options.num_dequantizations)
        )
        parts = {name: jnp.mean(values, axis=0) for name, values in repeats.items()}
        parts["probes_standard_error"] /= math.sqrt(options.num_dequantizations)  # the parts are means over the repeats
        if options.importance_weighted:
            tighter = jax.nn.logsumexp(repeats["log_prob"], axis=0) - math.log(options.num_dequantizations)
            parts |= {"importance": tighter - parts["log_prob"], "log_prob": tighter}
        return parts

    return measure


def _by_integral(sde: SDE, options: LikelihoodOptions) -> Callable:
    """Return (denoiser, x, keys) -> parts of log p(x) by the integral of the divergence."""
    names = ("divergence", "num_probes", "rtol", "atol", "method", "max_steps")
    integration = {name: getattr(options, name) for name in names}

    def parts(denoiser, x, keys):
        flow = log_likelihood(sde, denoiser, x, keys, **integration)
        return {
            "prior": flow.prior,
            "divergence": flow.divergence,
            "probes_standard_error": flow.standard_error,
        } | ({} if flow.nfe is None else {"nfe": flow.nfe})  # an implicit method doesn't count its evaluations

    return parts


def _by_jumps(sde: SDE, num_steps: int) -> Callable:
    """Return (flow map, x, keys) -> parts of log p(x) by jumps of a flow map, without probes."""
    times = angle_grid(sde, num_steps)

    def parts(flow_map, x, keys):
        log_prob, latent = log_likelihood_in_jumps(flow_map, sde, x, times)
        prior = prior_log_prob(sde, latent)
        zeros = jnp.zeros_like(prior)
        return {
            "prior": prior,
            "divergence": log_prob - prior,
            "probes_standard_error": zeros,
            "nfe": zeros + num_steps,
        }

    return parts


def _chain_bound(model: DiffusionModel, chain: ddpm.Schedule, levels: int) -> Callable:
    """Return (params, images, labels, keys) -> {"bits": (n,)}, the variational bound of the denoiser on a schedule."""

    def measure(params, images, labels, keys):
        denoiser = model.denoiser(params, labels=labels if model.num_classes else None)
        epsilon_fn = chain_epsilon(denoiser, model.sde, chain)
        x0 = to_unit_range(images, levels)
        return {"bits": ddpm.variational_bound(epsilon_fn, chain, x0, keys, bits_per_dim=True, levels=levels).total}

    return measure


def chain_through_vp(num_steps: int) -> ddpm.Schedule:
    """Return the discrete-time schedule of num_steps steps on the vp SDE, close to Ho et al. 2020's for 1,000 steps.

    It is computed in float64, since each beta is the difference between 1 and a number close to 1.
    """
    with jax.enable_x64(True):
        log_alpha = np.log(vp().alpha(jnp.arange(num_steps + 1) / num_steps))
    return ddpm.make_schedule(-np.expm1(2 * np.diff(log_alpha)))


def chain_epsilon(denoiser, sde: SDE, chain: ddpm.Schedule) -> Callable:
    """Return (x_n, n) -> eps, or (eps, v), for a schedule, from a denoiser of any SDE at the same log-SNR."""
    c = ddpm.coefficients(chain)  # c.noise is more precise than 1 - alphas_cumprod

    def epsilon_fn(x, n):
        signal = c.signal[n]
        level = 2 * (jnp.log(signal) - jnp.log(c.noise[n]))
        t = jnp.clip(t_from_log_snr(sde, level), 0.0, sde.t_max)
        pair = denoiser(lift(sde.alpha(t) / signal, x) * x, t)
        return (pair.epsilon, pair.v) if isinstance(pair, VariancePrediction) else pair.epsilon

    return epsilon_fn


def histogram_bits(train: np.ndarray, test: np.ndarray, levels: int) -> float:
    """Return the bits/dim of a test split under independent histograms per pixel, with a pseudocount of one per level.

    Args:
      train: (n, *event) integer pixels of the training split, 0 .. levels - 1, which the histograms count.
      test: (m, *event) integer pixels of the test split.
      levels: Number of pixel levels.
    """
    train, test = (images.reshape(len(images), -1).astype(int) for images in (train, test))
    counts = np.ones((train.shape[1], levels))
    np.add.at(counts, (np.arange(train.shape[1])[None], train), 1.0)
    probability = counts / counts.sum(1, keepdims=True)
    return float(-np.log2(probability[np.arange(test.shape[1])[None], test]).mean())


def _over_batches(
    measure: Callable, name: str, *, params: Any, images: np.ndarray, options: LikelihoodOptions, seed: int
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Return the function from labels to the measurements of all images, computed on all devices.

    Example i has the key fold_in(key, i) in any batch. A second call compiles nothing.
    """
    devices = jax.local_devices()  # each process measures its rows, and all processes get the whole result
    num_devices = len(devices) * jax.process_count()
    per_device = math.ceil(options.batch_size / num_devices)
    batch = per_device * num_devices
    local = distributed.local_slice(batch)
    key = jax.random.fold_in(jax.random.key(seed), len(name))
    keys_of = jax.jit(jax.vmap(partial(jax.random.fold_in, key)))
    compiled = announcing(jax.pmap(measure, in_axes=(None, 0, 0, 0), devices=devices), f"compiling the {name}")

    def over_batches(labels):
        parts = []
        with progress_bar(len(images), 0, "image", name) as bar:
            for first in range(0, len(images), batch):
                indices = np.minimum(np.arange(first, first + batch), len(images) - 1)[local]  # pads the last batch
                rows = (part[indices].reshape(len(devices), per_device, *part.shape[1:]) for part in (images, labels))
                measured = compiled(params, *rows, keys_of(indices).reshape(len(devices), per_device))
                count = min(batch, len(images) - first)
                flat = {name: np.asarray(values).reshape(-1) for name, values in measured.items()}
                gathered = distributed.all_gather(flat)
                if not np.isfinite(gathered.get("log_prob", 0.0)).all():
                    if options.flow_map_steps:
                        raise UserError("likelihood: the network gave NaN or infinity", "flow_map_steps")
                    raise UserError(
                        f"likelihood: an example took more than {options.max_steps} steps", "max_steps", "rtol", "atol"
                    )
                parts.append({name: values[:count] for name, values in gathered.items()})
                bar.update(count)
        return {name: np.concatenate([part[name] for part in parts]).astype(np.float64) for name in parts[0]}

    return over_batches


def breakdown(parts: dict[str, np.ndarray], event_shape: tuple[int, ...], levels: int | None) -> dict[str, Any]:
    """Return the means of the parts over examples, in nats or for pixels in bits/dim; the parts sum to the total."""
    metrics: dict[str, Any] = {"nfe": mean_of(parts.pop("nfe")) if "nfe" in parts else None}
    probes = parts.pop("probes_standard_error")
    metrics["log_prob_nats"] = mean_of(parts["log_prob"])
    if np.isfinite(probes).all():  # the spread of a single probe is unknown
        metrics["log_prob_nats"]["standard_error_of_probes"] = float(np.sqrt(np.mean(probes**2) / len(probes)))
    if levels is None:
        return metrics | {f"{name}_nats": mean_of(values) for name, values in parts.items() if name != "log_prob"}
    to_bits = partial(bits_per_dim, event_shape=event_shape, levels=levels, data_range=centered_range(levels))
    metrics["bits_per_dim"] = mean_of(to_bits(parts["log_prob"]))
    volume = float(to_bits(np.zeros(())))  # bits/dim of uniform dequantization
    metrics["bits_per_dim_account"] = {"dequantization": {"mean": volume, "standard_error": 0.0}} | {
        name: mean_of(to_bits(values) - volume) for name, values in parts.items() if name != "log_prob"
    }
    return metrics


def text(results: dict[str, Any]) -> str:
    """Return the results as JSON, and a sentence on each likelihood."""
    lines = [json.dumps({key: value for key, value in results.items() if key != "settings"}, indent=2)]
    if "bits_per_dim" in results:
        bits = results["bits_per_dim"]
        evaluations = f"{results['nfe']['mean']:.0f}" if results["nfe"] else "an unknown number of"
        lines.append(
            f"{bits['mean']:.3f} ± {bits['standard_error']:.3f} bits/dim on {results['num_examples']} test images, "
            f"{evaluations} evaluations each; histograms need {results['histograms_bits_per_dim']:.3f}"
        )
    if "bits_per_dim" in results.get("unconditional", {}):
        bits = results["unconditional"]["bits_per_dim"]
        lines.append(f"that is p(x | y); p(x) has {bits['mean']:.3f} ± {bits['standard_error']:.3f} bits/dim")
    if "minus_integral_per_dim" in results:
        difference = results["minus_integral_per_dim"]
        mean, error = difference["mean"], difference["standard_error"]
        unit = "bits/dim" if "bits_per_dim" in results else "nats per dimension"
        verdict = (
            "within twice its standard error"
            if abs(mean) <= 2 * error
            else "more than twice its standard error, so the learned divergence is inaccurate"
        )
        lines.append(
            f"minus the integral on {difference['num_examples']} examples: {mean:+.4f} ± {error:.4f} {unit}, {verdict}"
        )
    return "\n".join(lines)
