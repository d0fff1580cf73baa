"""EDM's networks (Karras et al. 2022), SongUNet and DhariwalUNet, with or without one of its preconditioners."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from score_sde.models.pretrained.family import (
    Family,
    Target,
    height_and_width,
    refuse_unknown,
    require_option,
    unwrap,
)
from score_sde.models.pretrained.layouts import (
    CONV,
    DENSE,
    NORM,
    WeightMapping,
    fused_attention,
    layer,
    linear_as_convolution,
    nested,
    same,
    transposed,
    weight_mappings,
)

HEAD_CHANNELS = 64  # channels per attention head in DhariwalUNet
DEFAULTS = {
    "SongUNet": {
        "model_channels": 128,
        "channel_mult": [1, 2, 2, 2],
        "num_blocks": 4,
        "attn_resolutions": [16],
        "dropout": 0.1,
        "label_dropout": 0,
        "augment_dim": 0,
        "label_dim": 0,
        "embedding_type": "positional",
        "channel_mult_noise": 1,
        "encoder_type": "standard",
        "decoder_type": "standard",
        "resample_filter": [1, 1],
    },
    "DhariwalUNet": {
        "model_channels": 192,
        "channel_mult": [1, 2, 3, 4],
        "num_blocks": 3,
        "attn_resolutions": [32, 16, 8],
        "dropout": 0.1,
        "label_dropout": 0,
        "augment_dim": 0,
        "label_dim": 0,
    },
}
# Options of each preconditioner.
PRECONDITIONERS = {
    "EDMPrecond": ("sigma_min", "sigma_max", "sigma_data"),
    "VPPrecond": ("beta_d", "beta_min", "M", "epsilon_t"),
    "VEPrecond": ("sigma_min", "sigma_max"),
}
OTHER_OPTIONS = (
    *("network", "preconditioning", "img_resolution", "img_channels", "channel_mult_emb"),
    *("model_type", "class_name", "in_channels", "out_channels"),  # repeat the options above
    "use_fp16",  # not used: dtype of the computation
)
RESIDUAL = nested(
    {
        "norm_0": ("norm0", NORM),
        "conv_0": ("conv0", CONV),
        "embedding": ("affine", DENSE),
        "norm_1": ("norm1", NORM),
        "conv_1": ("conv1", CONV),
    }
)


def _options(config: Mapping[str, Any]) -> dict[str, Any]:
    require_option("edm", config, network=tuple(DEFAULTS))
    return DEFAULTS[config["network"]] | dict(config)


def model(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the network's name and options in this project, given its keyword arguments in EDM."""
    options = _options(config)
    network, channels = options["network"], config["img_channels"]
    require_option("edm", options, preconditioning=tuple(PRECONDITIONERS))
    preconditioning = options.get("preconditioning", "EDMPrecond")
    refuse_unknown("edm", config, (*DEFAULTS[network], *PRECONDITIONERS[preconditioning], *OTHER_OPTIONS))
    require_option(
        "edm",
        options,
        channel_mult_emb=(4,),
        model_type=(network,),
        class_name=(f"training.networks.{preconditioning}",),
        in_channels=(channels,),
        out_channels=(channels,),
    )
    image_size(config)
    kwargs = {
        "channels": options["model_channels"],
        "multipliers": tuple(options["channel_mult"]),
        "num_res_blocks": options["num_blocks"],
        "attention_resolutions": tuple(options["attn_resolutions"]),
        "dropout": options["dropout"],
        "num_classes": options["label_dim"],
        "label_dropout": options["label_dropout"],
        "augment_dim": options["augment_dim"],
    }
    if options["network"] == "DhariwalUNet":
        widths = [options["model_channels"] * multiplier for multiplier in options["channel_mult"]]
        heads = {options["img_resolution"] >> level: width // HEAD_CHANNELS for level, width in enumerate(widths)}
        attended = tuple(n for n in options["attn_resolutions"] if heads.get(n))  # fewer than 64 channels give no heads
        middle = bool(widths[-1] // HEAD_CHANNELS)
        return "adm", kwargs | {"attention_resolutions": attended, "attend_middle": middle, "groups": None}
    fourier = options["embedding_type"] == "fourier"
    encoders = {"standard": "none", "skip": "input_skip", "residual": "residual"}
    decoders = {"standard": "none", "skip": "output_skip"}
    require_option(
        "edm",
        options,
        channel_mult_noise=(2 if fourier else 1,),
        embedding_type=("positional", "fourier"),
        encoder_type=tuple(encoders),
        decoder_type=tuple(decoders),
    )
    return "ncsnpp", kwargs | {
        "taps": tuple(options["resample_filter"]),
        "embedding": options["embedding_type"],
        "labels_enter": "before",
        "progressive_input": encoders[options["encoder_type"]],
        "progressive_output": decoders[options["decoder_type"]],
        "scale_by_sigma": False,
    }


def _layers(config, names) -> Iterator[tuple[str, str, Mapping]]:
    """Yield (ours, theirs, parameters) of each layer; EDM names layers by their resolution."""
    options = _options(config)
    dhariwal = options["network"] == "DhariwalUNet"
    sizes = [options["img_resolution"] >> level for level in range(len(options["channel_mult"]))]
    bottom = len(sizes) - 1

    def has(name):
        return f"{name}.weight" in names

    def block(ours, theirs, attention=None):
        yield ours, theirs, RESIDUAL
        if has(f"{theirs}.skip"):
            yield f"{ours}/shortcut", f"{theirs}.skip", layer(linear_as_convolution)
        if has(f"{theirs}.qkv"):
            channels = names[f"{theirs}.qkv.weight"].shape[0] // 3
            heads = channels // HEAD_CHANNELS if dhariwal else 1
            yield attention or f"{ours}_attention", theirs, fused_attention(f"{theirs}.qkv", heads)
            yield f"{attention or f'{ours}_attention'}/norm", f"{theirs}.norm2", NORM
            yield f"{attention or f'{ours}_attention'}/out", f"{theirs}.proj", layer(linear_as_convolution)

    yield from _conditioning(options, names)
    yield "conv_in", f"enc.{sizes[0]}x{sizes[0]}_conv", CONV
    for level, size in enumerate(sizes):
        at = f"enc.{size}x{size}"
        if level > 0:
            yield from block(f"down_{level - 1}_resample", f"{at}_down")
        for kind in ("aux_skip", "aux_residual"):
            if has(f"{at}_{kind}"):
                yield f"input_{level - 1}" + ("/conv" if kind == "aux_residual" else ""), f"{at}_{kind}", CONV
        for i in range(options["num_blocks"]):
            yield from block(f"down_{level}_{i}", f"{at}_block{i}")
    for level in range(bottom, -1, -1):
        at = f"dec.{sizes[level]}x{sizes[level]}"
        if level == bottom:
            yield from block("middle_0", f"{at}_in0", "middle_attention")
            yield from block("middle_1", f"{at}_in1")
        else:
            yield from block(f"up_{level + 1}_resample", f"{at}_up")
        for i in range(options["num_blocks"] + 1):
            last = None if dhariwal else f"up_{level}_attention"
            yield from block(f"up_{level}_{i}", f"{at}_block{i}", last)
        if has(f"{at}_aux_conv"):
            suffix = f"out_{level}" if options.get("decoder_type") == "skip" else "out"
            yield f"norm_{suffix}", f"{at}_aux_norm", NORM
            yield f"conv_{suffix}", f"{at}_aux_conv", CONV
    if dhariwal:
        yield "norm_out", "out_norm", NORM
        yield "conv_out", "out_conv", CONV


def _conditioning(options, names) -> Iterator[tuple[str, str, Mapping]]:
    """Yield the layers of the embedding of noise level, class and augmentation."""
    if "map_noise.freqs" in names:
        yield "noise/fourier", "map_noise", {("frequencies",): ("freqs", same)}
    yield "noise/dense_0", "map_layer0", DENSE
    yield "noise/dense_1", "map_layer1", DENSE
    if options["augment_dim"]:
        yield "noise/augment", "map_augment", layer(transposed, bias=None)
    if not options["label_dim"]:
        return
    if options["network"] == "SongUNet":  # its dense layer takes one-hot labels times the square root of their length
        mapping = WeightMapping(("map_label.weight", "map_label.bias"), _embedding_rows)
    else:
        mapping = WeightMapping(("map_label.weight",), lambda weight: np.concatenate([weight.T, 0 * weight.T[:1]]))
    yield "noise/label/rows", "map_label", {("embedding",): mapping}


def _embedding_rows(weight, bias):
    """Return the embedding of each class, and of the null label, by a dense layer of scaled one-hot labels."""
    rows = weight.T * np.sqrt(weight.shape[1]).astype(weight.dtype) + bias
    return np.concatenate([rows, bias[None]])


def target(config: Mapping[str, Any]) -> Target:
    """Return the training setup of one of EDM's preconditioners.

    The parameters of VPPrecond must have EDM's defaults. The SDE is the one that EDM's sampler uses, within the noise
    levels that the network supports.
    """
    known = dict(zip(PRECONDITIONERS, ("edm", "vp", "ve"), strict=True))
    require_option("edm", config, preconditioning=tuple(known))
    kind = known[config["preconditioning"]]
    limits = {name: config[name] for name in ("sigma_min", "sigma_max") if name in config}
    if kind == "vp":
        require_option("edm", config, beta_d=(19.9,), beta_min=(0.1,), M=(1000,), epsilon_t=(1e-5,))
    if kind == "ve":
        sde, kwargs = "ve", {"sigma_min": 0.02, "sigma_max": 100.0} | limits
    else:
        sde, kwargs = "edm", {name: limit for name, limit in limits.items() if 0.002 < limit < 80}
    return Target(sde, kwargs, "epsilon", kind, {}, config.get("sigma_data", 0.5))


def image_size(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return (height, width) of the images, which EDM's networks take to be equal."""
    return height_and_width("edm", "img_resolution", config["img_resolution"], square=True)


def arrays(weights: Any) -> dict[str, np.ndarray]:
    """Return the parameters, named without the preconditioner's prefix."""
    return {name.removeprefix("model."): array for name, array in unwrap("edm", weights).items()}


FAMILY = Family(
    model=model,
    mappings=lambda config, names: weight_mappings(_layers(config, names)),
    target=target,
    arrays=arrays,
    unused=lambda name: name.endswith("resample_filter"),
    image_size=image_size,
    channels=lambda config, arrays: config["img_channels"],
)
