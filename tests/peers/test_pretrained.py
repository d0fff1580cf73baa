"""Weights of networks that PyTorch libraries made, live: diffusers' UNet2DModel block by block, and .pth files."""

import copy
import inspect
import json

import diffusers
import jax
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from score_sde.errors import UserError
from score_sde.models import pretrained
from score_sde.runtime import weight_files
from tests.models.test_pretrained import ORACLES, computed, opened
from tests.peers import torchvision_without_cuda  # noqa: F401

pytestmark = pytest.mark.peers

SMALL = {"block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8, "sample_size": 8}
CONFIGS = {
    "google/ddpm": {
        **SMALL,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "downsample_padding": 0,
        "attention_head_dim": None,
        "norm_eps": 1e-6,
    },
    "defaults and heads": {
        **SMALL,
        "down_block_types": ("AttnDownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D"),
        "attention_head_dim": 8,
    },
    "resampling blocks, scale and shift, classes": {
        **SMALL,
        "down_block_types": ("ResnetDownsampleBlock2D", "ResnetDownsampleBlock2D"),
        "up_block_types": ("ResnetUpsampleBlock2D", "ResnetUpsampleBlock2D"),
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift",
        "attn_norm_num_groups": 8,
        "num_class_embeds": 5,
        "layers_per_block": 2,
    },
    "attention with resampling blocks": {
        **SMALL,
        "down_block_types": ("AttnDownBlock2D", "ResnetDownsampleBlock2D"),
        "up_block_types": ("ResnetUpsampleBlock2D", "AttnUpBlock2D"),
        "downsample_type": "resnet",
        "upsample_type": "resnet",
    },
    "height other than width, attention": {
        **SMALL,
        "sample_size": (8, 12),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    },
    "odd sizes, three levels, no attention": {
        **SMALL,
        "sample_size": (28, 20),
        "block_out_channels": (8, 16, 24),
        "down_block_types": ("DownBlock2D",) * 3,
        "up_block_types": ("UpBlock2D",) * 3,
        "add_attention": False,
        "in_channels": 1,
        "out_channels": 1,
    },
}


def made(config):
    """A network with random weights, and what each of its modules returns."""
    torch.manual_seed(0)
    network = diffusers.UNet2DModel(**config).eval()
    with torch.no_grad():  # away from zeros and ones
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    size = config["sample_size"]
    size = size if isinstance(size, tuple) else (size, size)
    x = torch.randn(3, config.get("in_channels", 3), *size)
    levels, labels = torch.tensor([0.0, 417.0, 999.0]), torch.tensor([0, 3, 4])
    activations = {}
    for name, module in network.named_modules():
        if name and isinstance(module, torch.nn.Conv2d | diffusers.models.resnet.ResnetBlock2D):
            module.register_forward_hook(lambda _, __, out, name=name: activations.update({name: out.detach().numpy()}))
    told = {"class_labels": labels} if config.get("num_class_embeds") else {}
    with torch.no_grad():
        activations[""] = network(x, levels, **told).sample.numpy()
    inputs = [x.numpy().transpose(0, 2, 3, 1), levels.numpy()] + ([labels.numpy()] if told else [])
    weights = {name: array.numpy() for name, array in network.state_dict().items()}
    return network, weights, inputs, activations


@pytest.mark.parametrize("name", CONFIGS)
def test_diffusers_network_is_ours_block_by_block(name, capsys):
    network, weights, inputs, activations = made(CONFIGS[name])
    config = json.loads(network.to_json_string())
    blocks = {key: value for key, value in activations.items() if ".conv" not in key and "norm" not in key}
    errors = pretrained.parity("diffusers", weights, config, inputs, blocks)
    # float32 through some 30 layers: relative rounding of 1e-7 a layer, so 1e-5; a tenfold margin.
    assert errors[""] < 1e-4
    checked = [error for error in errors.values() if not np.isnan(error)]
    assert len(checked) > 6 and max(checked) < 1e-4
    assert len(capsys.readouterr().out.splitlines()) == len(errors)


def test_a_folder_of_diffusers_is_loaded_as_it_is(tmp_path):
    network, _, inputs, activations = made(CONFIGS["google/ddpm"])
    scheduler = diffusers.DDPMScheduler(beta_end=0.03, prediction_type="v_prediction")
    diffusers.DDPMPipeline(network, scheduler).save_pretrained(tmp_path)
    found = pretrained.load_model(str(tmp_path))
    assert found.target[:4] == (
        "ddpm_linear",
        {"num_steps": 1000, "beta_start": 1e-4, "beta_end": 0.03},
        "v",
        "none",
    )
    module, variables = pretrained.load("diffusers", tmp_path)
    output = jax.jit(module.apply)(variables, *inputs)
    expected = activations[""].transpose(0, 2, 3, 1)
    assert np.abs(output - expected).max() < 1e-4 * expected.std()


def test_diffusers_layouts_give_same_network(tmp_path):
    """A network of 28 x 20 pixels, in the variants, shards and containers of diffusers, and compiled."""
    network, *_ = made(CONFIGS["odd sizes, three levels, no attention"])
    network.save_pretrained(tmp_path / "plain")
    network.save_pretrained(tmp_path / "bin", safe_serialization=False)
    network.save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    network.save_pretrained(tmp_path / "variant shards", max_shard_size="50KB", variant="ema")
    network.save_pretrained(tmp_path / "bin shards", max_shard_size="50KB", safe_serialization=False)
    network.save_pretrained(tmp_path / "compiled")
    file = tmp_path / "compiled" / "diffusion_pytorch_model.safetensors"
    save_file({f"module._orig_mod.{name}": array for name, array in load_file(file).items()}, file)
    copy.deepcopy(network).half().save_pretrained(tmp_path / "fp16", variant="fp16")
    copy.deepcopy(network).bfloat16().save_pretrained(tmp_path / "bf16", variant="bf16")
    copy.deepcopy(network).bfloat16().save_pretrained(tmp_path / "bf16 bin", safe_serialization=False)
    assert len(list((tmp_path / "variant shards").glob("*.ema-*-of-*.safetensors"))) > 1
    expected = pretrained.load_model(str(tmp_path / "plain"))
    for folder in tmp_path.iterdir():
        found = pretrained.load_model(str(folder))
        assert found.event_shape == (28, 20, 1) and found.kwargs == expected.kwargs
        rtol = 2**-8 if "bf16" in folder.name else 2**-11 if "fp16" in folder.name else 0.0
        jax.tree.map(
            lambda a, b, r=rtol: np.testing.assert_allclose(a, b, r, 1e-6 * (r > 0)), found.params, expected.params
        )


BETAS = ("beta_start", "beta_end")


def test_all_options_of_diffusers_are_known():
    options = set(inspect.signature(diffusers.UNet2DModel.__init__).parameters) - {"self"}
    assert options <= {*pretrained.diffusers.DEFAULTS, *pretrained.diffusers.OTHER_OPTIONS}
    for name in pretrained.diffusers.SCHEDULERS:
        defaults = {key: inspect.signature(getattr(diffusers, name).__init__).parameters[key].default for key in BETAS}
        assert (
            defaults.items() <= pretrained.target("diffusers", {"scheduler": {"_class_name": name}}).sde_kwargs.items()
        )
        options = set(inspect.signature(getattr(diffusers, name).__init__).parameters) - {"self", "args", "kwargs"}
        assert options <= set(pretrained.diffusers.SCHEDULER_OPTIONS)


@pytest.mark.parametrize("name", pretrained.diffusers.SCHEDULERS)
def test_diffusers_scheduler_config_is_supported(name):
    try:
        scheduler = getattr(diffusers, name)(beta_start=1e-4, beta_end=0.02)
    except ImportError:
        pytest.skip("needs torchsde or scipy")
    config = {"scheduler": json.loads(scheduler.to_json_string())}
    expected = {"num_steps": 1000, "beta_start": 1e-4, "beta_end": 0.02}
    assert pretrained.target("diffusers", config)[:3] == ("ddpm_linear", expected, "epsilon")


@pytest.mark.parametrize("kind", ["SkipDownBlock2D", "AttnSkipDownBlock2D"])
def test_what_is_not_covered_is_refused(kind):
    config = SMALL | {"down_block_types": (kind, "DownBlock2D"), "up_block_types": ("UpBlock2D", "UpBlock2D")}
    with pytest.raises(UserError, match=f"the block '{kind}' is not covered"):
        pretrained.load("diffusers", {}, config)


def checkpoint(path):
    """A checkpoint as score_sde writes it, around the weights of an oracle: the average is what was computed."""
    _, config, weights, archive = opened(path)
    state = {f"module.{name}": torch.tensor(array) for name, array in weights.items()}
    trained = [value.clone() for name, value in state.items() if "sigmas" not in name and "modules.0.W" not in name]
    for name, value in state.items():
        if "sigmas" not in name and "modules.0.W" not in name:
            value.zero_()  # so that only the average can give the output
    ema = {"decay": 0.999, "num_updates": 7, "shadow_params": trained}
    return {"optimizer": {"state": {}, "param_groups": []}, "model": state, "ema": ema, "step": 7}, config, archive


@pytest.mark.parametrize("stem", ["score_sde_ddpmpp", "score_sde_ncsnpp"])
def test_a_pth_checkpoint_is_read_without_running_it(tmp_path, stem):
    (path,) = [path for path in ORACLES if path.stem == stem]
    content, config, archive = checkpoint(path)
    torch.save(content, tmp_path / "checkpoint_8.pth")
    (tmp_path / "checkpoint_8.pth.json").write_text(json.dumps({"family": "score_sde", "config": config}))
    output = computed("score_sde", config, tmp_path / "checkpoint_8.pth", archive)
    assert np.abs(output - archive["output"]).max() < 1e-4 * archive["output"].std()
    assert pretrained.load_model(str(tmp_path / "checkpoint_8.pth")).target.sde == ("vp" if "ddpm" in stem else "ve")


def test_views_and_other_types_of_a_pth_file(tmp_path):
    base = torch.arange(24, dtype=torch.float64).reshape(4, 6)
    content = {"part": base[1:3, ::2].T, "half": base.half(), "flag": torch.tensor([True, False]), "empty": base[:0]}
    torch.save(content | {"brain": base.bfloat16()}, tmp_path / "x.pth")
    found = weight_files.read(tmp_path / "x.pth").arrays
    np.testing.assert_array_equal(found["brain"].astype(np.float64), base.numpy())
    for name, expected in content.items():
        np.testing.assert_array_equal(found[name], expected.numpy())
