"""UNet2DModel of diffusers with plain, attention and residual-resampling blocks, as in the google/ddpm-* models."""

from collections.abc import Iterator, Mapping
from functools import partial
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
from score_sde.models.pretrained.layouts import (
    CONV,
    DENSE,
    NORM,
    WeightMapping,
    layer,
    linear_as_convolution,
    nested,
    weight_mappings,
)

RESIDUAL = nested(
    {
        "norm_0": ("norm1", NORM),
        "conv_0": ("conv1", CONV),
        "embedding": ("time_emb_proj", DENSE),
        "norm_1": ("norm2", NORM),
        "conv_1": ("conv2", CONV),
    }
)
POINTWISE = layer(linear_as_convolution)
# Files before and after 2023 differ in the names of attention layers; both are supported.
ATTENTION = {
    "query": ("to_q", "query"),
    "key": ("to_k", "key"),
    "value": ("to_v", "value"),
    "out": ("to_out.0", "proj_attn"),
}
SCHEDULERS = tuple(  # samplers of networks trained with the discrete-time schedule of Ho et al. 2020
    f"{name}Scheduler"
    for name in (
        "DDPM",
        "DDIM",
        "DDIMParallel",
        "DDPMParallel",
        "PNDM",
        "DPMSolverMultistep",
        "DPMSolverSinglestep",
        "DPMSolverSDE",
        "UniPCMultistep",
        "DEISMultistep",
        "SASolver",
        "EulerDiscrete",
        "EulerAncestralDiscrete",
        "HeunDiscrete",
        "KDPM2Discrete",
        "KDPM2AncestralDiscrete",
        "LMSDiscrete",
    )
)
# These default to the betas of Stable Diffusion, 0.00085 and 0.012, if the config has none.
STABLE_DIFFUSION_BETAS = tuple(
    f"{name}Scheduler" for name in ("DPMSolverSDE", "HeunDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete")
)
DEFAULTS = {  # arguments of UNet2DModel
    "sample_size": None,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ("DownBlock2D", *["AttnDownBlock2D"] * 3),
    "up_block_types": (*["AttnUpBlock2D"] * 3, "UpBlock2D"),
    "mid_block_type": "UNetMidBlock2D",
    "block_out_channels": (224, 448, 672, 896),
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
}
OTHER_OPTIONS = (
    *("_class_name", "in_channels", "out_channels", "time_embedding_dim", "scheduler"),
    *("_diffusers_version", "_name_or_path", "_use_default_values"),  # not used: origin of the file
    "num_train_timesteps",  # not used: size of a learned time embedding, which isn't supported
    # not used: state of the EMA that the weights are from
    *("decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup", "inv_gamma", "power"),
)
SCHEDULER_OPTIONS = (
    *("_class_name", "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas"),
    *("rescale_betas_zero_snr", "prediction_type", "predict_epsilon", "variance_type"),
    *("use_flow_sigmas", "timestep_type"),
    *("_diffusers_version", "_name_or_path", "_use_default_values", "tensor_format"),  # not used: origin of the file
    # not used: options of sampling
    *("clip_sample", "clip_sample_range", "thresholding", "dynamic_thresholding_ratio", "sample_max_value"),
    *("timestep_spacing", "steps_offset", "set_alpha_to_one", "skip_prk_steps", "interpolation_type"),
    *("algorithm_type", "solver_order", "solver_type", "solver_p", "predictor_order", "corrector_order", "predict_x0"),
    *("disable_corrector", "lower_order_final", "euler_at_final", "final_sigmas_type", "lambda_min_clipped"),
    *("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "sigma_min", "sigma_max"),
    *("tau_func", "noise_sampler_seed"),
    *("eta", "original_inference_steps", "timestep_scaling"),  # kept by `from_config` of another scheduler
    *("flow_shift", "use_dynamic_shifting", "time_shift_type", "shift_terminal"),  # only with use_flow_sigmas
)


def _options(config: Mapping[str, Any]) -> dict[str, Any]:
    return DEFAULTS | dict(config)


def image_size(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return (height, width) of the images."""
    size = _options(config)["sample_size"]
    if size is None:
        raise UserError("diffusers: the config has no sample_size, which determines the levels with attention")
    return height_and_width("diffusers", "sample_size", size)


def model(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the network's name and options in this project, given a UNet2DModel's config.json."""
    options = _options(config)
    downs, ups, channels = options["down_block_types"], options["up_block_types"], options["block_out_channels"]
    refuse_unknown("diffusers", config, (*DEFAULTS, *OTHER_OPTIONS))
    attended = ["Attn" in kind for kind in downs]
    require_option(
        "diffusers",
        options,
        _class_name=("UNet2DModel",),
        out_channels=(options.get("in_channels", 3),),
        center_input_sample=(False,),
        time_embedding_type=("positional",),
        time_embedding_dim=(None, 4 * channels[0]),
        freq_shift=(0, 1),
        mid_block_type=("UNetMidBlock2D",),
        mid_block_scale_factor=(1,),
        act_fn=("silu", "swish"),
        attn_norm_num_groups=(None, options["norm_num_groups"]),
        resnet_time_scale_shift=("default", "scale_shift"),
        class_embed_type=(None,),
        downsample_type=("conv", "resnet"),
        upsample_type=(options["downsample_type"],),
        downsample_padding=(0, 1),
    )
    if options["resnet_time_scale_shift"] != "default" and options["add_attention"]:
        require_option(
            "diffusers", options, attn_norm_num_groups=(options["norm_num_groups"],)
        )  # None: no normalization
    plain = ("DownBlock2D", "AttnDownBlock2D", "UpBlock2D", "AttnUpBlock2D")
    supported = (*plain, "ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
    for kind in (*downs, *ups):
        if kind not in supported:
            raise UserError(f"diffusers: the block {kind!r} is not covered, only {', '.join(supported)}")
    if not len(downs) == len(ups) == len(channels):
        raise UserError(
            f"diffusers: expected as many down and up blocks as channels, got {downs}, {ups} and {channels}"
        )
    if attended != ["Attn" in kind for kind in reversed(ups)]:
        raise UserError(
            f"diffusers: expected attention at the same levels on the way down and up, got {downs} and {ups}"
        )
    resampling = {_resampling(kind, options) for kind in (*downs[:-1], *ups[:-1])} or {"conv"}
    if len(resampling) > 1:
        raise UserError(
            f"diffusers: expected all levels to resample by layers or all inside blocks, got {downs} and {ups}"
        )
    kwargs = {
        "channels": channels[0],
        "multipliers": tuple(width / channels[0] for width in channels),
        "num_res_blocks": options["layers_per_block"],
        "attention_resolutions": tuple(image_size(config)[0] >> i for i, has in enumerate(attended) if has),
        "attend_up": "each",
        "attend_middle": options["add_attention"],
        "dropout": options["dropout"],
        "num_classes": options["num_class_embeds"] or 0,
        "endpoint": bool(options["freq_shift"]),
        "cosine_first": options["flip_sin_to_cos"],
        "scale_shift": options["resnet_time_scale_shift"] == "scale_shift",
        "groups": options["norm_num_groups"],
        "epsilon": options["norm_eps"],
        "head_channels": options["attention_head_dim"],
        "resampling": resampling.pop(),
        "conv_padding": (options["downsample_padding"], 1),
        "outputs": 1,
    }
    if any(multiplier != int(multiplier) for multiplier in kwargs["multipliers"]):
        raise UserError(f"diffusers: expected block_out_channels that are multiples of the first, got {channels}")
    return "ddpm", kwargs | {"multipliers": tuple(map(int, kwargs["multipliers"]))}


def _resampling(kind: str, options: Mapping[str, Any]) -> str:
    inside_blocks = kind.startswith("Resnet") or ("Attn" in kind and options["downsample_type"] == "resnet")
    return "block" if inside_blocks else "conv"


def _layers(config, names) -> Iterator[tuple[str, str, Mapping]]:
    """Yield (ours, theirs, parameters) of each layer."""
    options = _options(config)

    def residual(ours, theirs):
        yield ours, theirs, RESIDUAL
        if f"{theirs}.conv_shortcut.weight" in names:
            yield f"{ours}/shortcut", f"{theirs}.conv_shortcut", CONV

    def attention(ours, theirs):
        if not any(name.startswith(f"{theirs}.") for name in names):
            return
        yield f"{ours}/norm", f"{theirs}.group_norm", NORM
        for name, (new, old) in ATTENTION.items():
            yield f"{ours}/{name}", f"{theirs}.{old if f'{theirs}.{old}.weight' in names else new}", POINTWISE

    def resampled(ours, theirs):
        if f"{theirs}.conv.weight" in names:
            yield f"{ours}/conv", f"{theirs}.conv", CONV
        else:
            yield from residual(ours, theirs)

    yield "noise/dense_0", "time_embedding.linear_1", DENSE
    yield "noise/dense_1", "time_embedding.linear_2", DENSE
    if options["num_class_embeds"]:
        rows = WeightMapping(("class_embedding.weight",), lambda weight: np.concatenate([weight, 0 * weight[:1]]))
        yield "noise/label/rows", "class_embedding", {("embedding",): rows}
    yield "conv_in", "conv_in", CONV
    bottom = len(options["block_out_channels"]) - 1
    for level in range(bottom + 1):
        at = f"down_blocks.{level}"
        for i in range(options["layers_per_block"]):
            yield from residual(f"down_{level}_{i}", f"{at}.resnets.{i}")
            yield from attention(f"down_{level}_{i}_attention", f"{at}.attentions.{i}")
        if level != bottom:
            yield from resampled(f"down_{level}_resample", f"{at}.downsamplers.0")
    yield from residual("middle_0", "mid_block.resnets.0")
    yield from attention("middle_attention", "mid_block.attentions.0")
    yield from residual("middle_1", "mid_block.resnets.1")
    for level in range(bottom, -1, -1):
        at = f"up_blocks.{bottom - level}"
        for i in range(options["layers_per_block"] + 1):
            yield from residual(f"up_{level}_{i}", f"{at}.resnets.{i}")
            yield from attention(f"up_{level}_{i}_attention", f"{at}.attentions.{i}")
        if level != 0:
            yield from resampled(f"up_{level}_resample", f"{at}.upsamplers.0")
    yield "norm_out", "conv_norm_out", NORM
    yield "conv_out", "conv_out", CONV


def target(config: Mapping[str, Any]) -> Target:
    """Return the discrete-time schedule and the prediction type of the folder's scheduler.

    The default is the schedule of Ho et al. 2020. The network takes the timestep, 0 to 999, as its noise level, like
    networks for `ddpm_linear` with 1,000 steps.
    """
    scheduler = config.get("scheduler", {})
    predictions = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0"}
    refuse_unknown("diffusers: scheduler", scheduler, SCHEDULER_OPTIONS)
    require_option(
        "diffusers",
        scheduler,
        _class_name=SCHEDULERS,
        num_train_timesteps=(1000,),
        beta_schedule=("linear",),
        trained_betas=(None,),
        rescale_betas_zero_snr=(False,),
        prediction_type=tuple(predictions),
        predict_epsilon=(None, True),
        variance_type=(None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
        use_flow_sigmas=(None, False),
        timestep_type=("discrete",),
    )
    betas = (0.00085, 0.012) if scheduler.get("_class_name") in STABLE_DIFFUSION_BETAS else (1e-4, 0.02)
    kwargs = {
        "num_steps": 1000,
        "beta_start": scheduler.get("beta_start", betas[0]),
        "beta_end": scheduler.get("beta_end", betas[1]),
    }
    return Target("ddpm_linear", kwargs, predictions[scheduler.get("prediction_type", "epsilon")], "none", {})


FAMILY = Family(
    model=model,
    mappings=lambda config, names: weight_mappings(_layers(config, names)),
    target=target,
    arrays=partial(unwrap, "diffusers"),
    unused=lambda name: False,
    image_size=image_size,
    channels=lambda config, arrays: config.get("in_channels", 3),
)
