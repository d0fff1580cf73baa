"""PyTorch networks of score_sde (Song et al. 2021): DDPM, DDPM++ and NCSN++, whose layers are numbered in order."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from score_sde.errors import UserError
from score_sde.models.pretrained.family import (
    Family,
    Target,
    height_and_width,
    refuse_unknown,
    require_option,
    unwrap,
)
from score_sde.models.pretrained.layouts import CONV, DENSE, NORM, layer, nested, pointwise, same, weight_mappings

MODEL_OPTIONS = (
    *("name", "nf", "ch_mult", "num_res_blocks", "attn_resolutions", "dropout", "resamp_with_conv", "conditional"),
    *("nonlinearity", "fir", "fir_kernel", "skip_rescale", "resblock_type", "attention_type", "progressive"),
    *("progressive_input", "progressive_combine", "embedding_type", "scale_by_sigma", "sigma_min", "sigma_max"),
    *("beta_min", "beta_max", "num_scales"),
    *("init_scale", "fourier_scale", "ema_rate"),  # not used: the weights are trained
    *("normalization", "conv_size"),  # not used: these networks of score_sde ignore them
)
DATA_OPTIONS = (
    *("image_size", "num_channels", "centered"),
    *("dataset", "category", "tfrecords_path", "random_flip", "uniform_dequantization"),  # not used: images of training
)
TRAINING_OPTIONS = (
    *("sde", "continuous"),
    *("batch_size", "n_iters", "n_jitted_steps", "reduce_mean", "likelihood_weighting"),  # not used: optimization
    *("log_freq", "eval_freq", "snapshot_freq", "snapshot_freq_for_preemption", "snapshot_sampling"),  # not used: files
)
# Outside the groups: replacements for settings of the groups, and whole groups that the network doesn't depend on.
OTHER_OPTIONS = (
    *("image_size", "channels", "centered", "sde", "continuous"),
    *("sampling", "eval", "optim", "seed", "device"),
)
NIN = layer(pointwise, "W", "b")
ATTENTION = nested(
    {"norm": ("GroupNorm_0", NORM)}
    | {name: (f"NIN_{i}", NIN) for i, name in enumerate(("query", "key", "value", "out"))}
)
RESIDUAL = nested(
    {
        "norm_0": ("GroupNorm_0", NORM),
        "conv_0": ("Conv_0", CONV),
        "embedding": ("Dense_0", DENSE),
        "norm_1": ("GroupNorm_1", NORM),
        "conv_1": ("Conv_1", CONV),
    }
)


def _options(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return config.get("model", config)


def model(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the network's name and options in this project, given a config of score_sde or its model group."""
    options = _options(config)
    groups = {"model": MODEL_OPTIONS, "data": DATA_OPTIONS, "training": TRAINING_OPTIONS}
    refuse_unknown("score_sde", config, (*groups, *OTHER_OPTIONS, *(() if "model" in config else MODEL_OPTIONS)))
    for group, known in groups.items():
        refuse_unknown("score_sde", config.get(group, {}), known)
    require_option("score_sde", options, name=("ddpm", "ncsnpp"), nonlinearity=("swish",), conditional=(True,))
    kwargs = {
        "channels": options["nf"],
        "multipliers": tuple(options["ch_mult"]),
        "num_res_blocks": options["num_res_blocks"],
        "attention_resolutions": tuple(options["attn_resolutions"]),
        "dropout": options["dropout"],
    }
    if options["name"] == "ddpm":
        require_option("score_sde", options, resamp_with_conv=(True,), scale_by_sigma=(False,))
        return "ddpm", kwargs | {"groups": 32, "attend_up": "last"}
    require_option(
        "score_sde",
        options,
        attention_type=("ddpm",),
        resblock_type=("biggan", "ddpm"),
        embedding_type=("positional", "fourier"),
        resamp_with_conv=(True,),
    )
    if options["embedding_type"] == "positional":  # otherwise the network looks sigma up in a table
        require_option("score_sde", options, scale_by_sigma=(False,))
    return "ncsnpp", kwargs | {
        "rescale": options["skip_rescale"],
        "taps": tuple(options["fir_kernel"]) if options["fir"] else (),
        "resampling": "block" if options["resblock_type"] == "biggan" else "conv",
        "embedding": options["embedding_type"],
        "progressive_input": options["progressive_input"],
        "progressive_output": options["progressive"],
        "combine": options["progressive_combine"],
        "scale_by_sigma": options["scale_by_sigma"],
    }


def _layers(config, names) -> Iterator[tuple[str, str, Mapping]]:
    """Yield (ours, theirs, parameters) of each layer, in the order in which score_sde numbers its modules."""
    options, (_, kwargs) = _options(config), model(config)
    numbers = iter(range(len(names)))

    def next_module():
        return f"all_modules.{next(numbers)}"

    def residual(ours):
        theirs = next_module()
        yield ours, theirs, RESIDUAL
        for name, parameters in (("Conv_2", CONV), ("NIN_0", NIN)):
            if any(key.startswith(f"{theirs}.{name}.") for key in names):
                yield f"{ours}/shortcut", f"{theirs}.{name}", parameters

    def resampled(ours):
        if kwargs.get("resampling") == "block":
            yield from residual(ours)
        else:
            yield from convolved(ours)

    def convolved(ours):
        theirs = next_module()
        inner = "Conv2d_0" if any(key.startswith(f"{theirs}.Conv2d_0.") for key in names) else "Conv_0"
        yield f"{ours}/conv", f"{theirs}.{inner}", CONV

    def attention(ours, level):
        if image_size(config)[0] >> level in kwargs["attention_resolutions"]:
            yield ours, next_module(), ATTENTION

    def to_image(suffix):
        yield f"norm_{suffix}", next_module(), NORM
        yield f"conv_{suffix}", next_module(), CONV

    if kwargs.get("embedding") == "fourier":
        yield "noise/fourier", next_module(), {("frequencies",): ("W", same)}
    yield "noise/dense_0", next_module(), DENSE
    yield "noise/dense_1", next_module(), DENSE
    yield "conv_in", next_module(), CONV
    bottom = len(kwargs["multipliers"]) - 1
    for level in range(bottom + 1):
        for i in range(kwargs["num_res_blocks"]):
            yield from residual(f"down_{level}_{i}")
            yield from attention(f"down_{level}_{i}_attention", level)
        if level != bottom:
            yield from resampled(f"down_{level}_resample")
            if kwargs.get("progressive_input") == "input_skip":
                yield f"input_{level}", f"{next_module()}.Conv_0", CONV
            elif kwargs.get("progressive_input") == "residual":
                yield from convolved(f"input_{level}")
    yield from residual("middle_0")
    yield "middle_attention", next_module(), ATTENTION
    yield from residual("middle_1")
    progressive = options.get("progressive", "none")
    for level in range(bottom, -1, -1):
        for i in range(kwargs["num_res_blocks"] + 1):
            yield from residual(f"up_{level}_{i}")
        yield from attention(f"up_{level}_attention", level)
        if progressive == "output_skip" or (progressive == "residual" and level == bottom):
            yield from to_image(f"out_{level}")
        elif progressive == "residual":
            yield from convolved(f"output_{level}")
        if level != 0:
            yield from resampled(f"up_{level}_resample")
    if progressive != "output_skip":
        yield from to_image("out")


def _setting(config: Mapping[str, Any], group: str, name: str, default: Any) -> Any:
    """Return a setting of a group of the config, or of the model group itself if that is the whole config."""
    return config.get(name, config.get(group, {}).get(name, default))


def image_size(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return (height, width) of the images, which score_sde's networks take to be equal."""
    size = _setting(config, "data", "image_size", None)
    if size is None:
        raise UserError("score_sde: the config has no image_size, which determines the levels with attention")
    return height_and_width("score_sde", "image_size", size, square=True)


def target(config: Mapping[str, Any]) -> Target:
    """Return the training setup: vp, its discrete-time schedule or sub_vp with prediction "epsilon", or ve.

    A network with scale_by_sigma takes sigma as input and predicts the score. If its data are not centered, it maps
    images from [0, 1] to [-1, 1] itself. In [-1, 1] sigma is twice as large, and the noise level is log(sigma / 2).
    """
    options = dict(_options(config))
    if options.get("name") == "ddpm":
        options["embedding_type"] = "positional"  # whatever the config says, which inherits "fourier" from a default
    fourier = options.get("embedding_type") == "fourier"
    training = {
        "sde": _setting(config, "training", "sde", "vesde" if fourier else "vpsde"),
        "continuous": _setting(config, "training", "continuous", True),
    }
    require_option("score_sde", training, sde=("vesde", "vpsde", "subvpsde"))
    if training["sde"] == "vesde":
        require_option("score_sde", training, continuous=(True,))
        require_option("score_sde", options, embedding_type=("fourier",), scale_by_sigma=(True,))
        scale = 1 if _setting(config, "data", "centered", False) else 2
        kwargs = {"sigma_min": scale * options["sigma_min"], "sigma_max": scale * options["sigma_max"]}
        if scale == 2:  # F = -epsilon, before the division by sigma
            return Target("ve", kwargs, "epsilon", "ve", {"scale_by_sigma": False})
        return Target("ve", kwargs, "score", "log_sigma", {})
    require_option("score_sde", options, embedding_type=("positional",), scale_by_sigma=(False,), num_scales=(1000,))
    require_option("score_sde", {"centered": _setting(config, "data", "centered", True)}, centered=(True,))
    kwargs = {"beta_min": options["beta_min"], "beta_max": options["beta_max"]}
    if training["sde"] == "subvpsde":
        return Target("sub_vp", kwargs, "epsilon", "none", {})
    if training["continuous"]:
        return Target("vp", kwargs, "epsilon", "none", {})
    schedule = {"num_steps": 1000, "beta_start": kwargs["beta_min"] / 1000, "beta_end": kwargs["beta_max"] / 1000}
    return Target("ddpm_linear", schedule, "epsilon", "none", {})


def arrays(weights: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return a checkpoint's EMA parameters, or its parameters if it has no EMA."""
    state = weights.get("model", weights)
    if not isinstance(state, Mapping):
        raise UserError("score_sde: expected weights as a state dict, or as a checkpoint with 'model' and 'ema'")
    state = unwrap("score_sde", state)
    if "ema" in weights:  # a list, in the order of the trained parameters
        fixed = {"sigmas"} | {name for name in state if name == "all_modules.0.W"}
        names = [name for name in state if name not in fixed]
        ema = weights["ema"].get("shadow_params") if isinstance(weights["ema"], Mapping) else None
        if not isinstance(ema, list) or len(ema) != len(names):
            raise UserError(f"score_sde: the checkpoint's 'ema' is not a list of {len(names)} 'shadow_params'")
        state |= dict(zip(names, ema, strict=True))
    return state


FAMILY = Family(
    model=model,
    mappings=lambda config, names: weight_mappings(_layers(config, names)),
    target=target,
    arrays=arrays,
    unused=lambda name: name == "sigmas",
    image_size=image_size,
    channels=lambda config, arrays: config.get("channels") or config.get("data", {}).get("num_channels", 3),
)
