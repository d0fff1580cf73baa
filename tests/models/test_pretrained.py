"""Imported weights: comparison with reference outputs of the original libraries, and weight files."""

import json
import os
import pickle
import zipfile
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from score_sde.errors import UserError
from score_sde.models import create, pretrained
from score_sde.models.pretrained import folders
from score_sde.parameterization import make_denoiser
from score_sde.runtime import weight_files
from score_sde.sde import SDES
from tests.thinned import thinned

ORACLES = sorted((Path(__file__).parents[1] / "reference").glob("*.npz"))
FAST = [path for path in ORACLES if path.stem in ("edm_songunet_ncsnpp_EDMPrecond", "score_sde_ncsnpp")]


def opened(path):
    """Return the family, config and weights of an archive, and the archive."""
    archive = np.load(path)
    weights = {name.removeprefix("weights/"): archive[name] for name in archive.files if name.startswith("weights/")}
    return path.name.split("_")[0].replace("score", "score_sde"), json.loads(str(archive["config"])), weights, archive


def computed(family, config, weights, archive):
    module, variables = pretrained.load(family, weights, config)
    if family == "score_sde":
        level = archive["noise_label"]
        level = np.log(level) if config["model"]["embedding_type"] == "fourier" else level
        return jax.jit(module.apply)(variables, archive["input"], level)
    setup = pretrained.target(family, config)
    labels = archive["labels"].argmax(1) if archive["labels"].shape[1] else None
    augment = None

    def network(x, level):
        return module.apply(variables, x, level, labels, augment=augment)

    sde = SDES["edm"]()  # at sigma = t
    denoiser = make_denoiser(network, sde, setup.prediction, setup.preconditioning)
    return jax.jit(lambda x, sigma: denoiser(x, sigma).x0)(archive["input"], jnp.asarray(archive["sigma"]))


@pytest.mark.parametrize("path", thinned(ORACLES, *FAST), ids=lambda path: path.stem)
def test_imported_weights_give_reference_output(path):
    family, config, weights, archive = opened(path)
    output = computed(family, config, weights, archive)
    # float32 through some 30 layers has a relative error of about 1e-5; the tolerance has a tenfold margin.
    assert np.abs(output - archive["output"]).max() < 1e-4 * archive["output"].std()


def test_one_message_lists_all_invalid_weights():
    family, config, weights, _ = opened(ORACLES[0])
    del weights["model.enc.16x16_conv.bias"]
    weights["model.surplus"] = np.zeros(3)
    weights["model.out_conv.weight"] = weights["model.out_conv.weight"][:2]
    weights["model.enc.8x8_block0.affine.weight"] = np.zeros(5)
    with pytest.raises(UserError) as error:
        pretrained.load(family, weights, config)
    text = str(error.value)
    assert "missing: enc.16x16_conv.bias for conv_in/bias (16,)" in text
    assert "extra: surplus (3,)" in text
    assert "misshapen: out_conv.weight (2, 16, 3, 3) for conv_out/kernel (3, 3, 16, 3)" in text
    assert "misshapen: enc.8x8_block0.affine.weight (5,) for down_1_0/embedding/kernel (64, 64)" in text
    assert len(text.splitlines()) == 5


@pytest.mark.parametrize(
    ("family", "change", "words"),
    [
        ("emd", {}, "Did you mean 'edm'"),
        ("edm", {"network": "SongNet"}, "network='SongNet' is not covered"),
        ("edm", {"channel_mult_emb": 2}, "channel_mult_emb=2 is not covered, only 4"),
        ("edm", {"img_resolution": None}, "the network's config lacks 'img_resolution'"),
        ("edm", {"img_resolution": [16, 8]}, r"img_resolution to be a positive integer, got \[16, 8\]"),
        ("edm", {"encoder_type": "other"}, "encoder_type='other' is not covered"),
        ("edm", {"out_channels": 6}, "out_channels=6 is not covered, only 3"),
        ("edm", {"model_type": "DhariwalUNet"}, "model_type='DhariwalUNet' is not covered, only 'SongUNet'"),
        ("edm", {"beta_d": 19.9}, "expected a config of known options, got beta_d=19.9"),
    ],
)
def test_uncovered_configs_raise(family, change, words):
    _, config, weights, _ = opened(FAST[0])
    config = {key: value for key, value in (config | change).items() if value is not None}
    with pytest.raises(UserError, match=words):
        pretrained.load(family, weights, config)


def test_damaged_sidecar_file_or_folder_raises(tmp_path):
    weight_files.write(tmp_path / "x.safetensors", {"a": np.ones(2)}, "native", {})
    (tmp_path / "x.safetensors.json").write_text("{")
    with pytest.raises(UserError, match=r"x\.safetensors\.json is not valid JSON"):
        weight_files.read(tmp_path / "x.safetensors")
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"\xff" * 100)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match=r"config\.json holds no JSON object"):
        folders.read(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"model\.safetensors can't be read as a \.safetensors file"):
        folders.read(tmp_path)


def test_scheduler_of_diffusers_folder_is_read(tmp_path):
    """The scheduler lies in the network's folder (google/ddpm-cifar10-32) or in a sibling folder (pipelines)."""
    weight_files.write(tmp_path / "diffusion_pytorch_model.safetensors", {"a": np.ones(2)}, "diffusers", {})
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "scheduler_config.json").write_text('{"beta_end": 0.5}')
    assert folders.read(tmp_path).config == {"scheduler": {"beta_end": 0.5}}
    (tmp_path / "scheduler_config.json").unlink()
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text('{"beta_end": 0.25}')
    (tmp_path / "unet").mkdir()
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        (tmp_path / name).rename(tmp_path / "unet" / name)
    assert folders.read(tmp_path).config == folders.read(tmp_path / "unet").config == {"scheduler": {"beta_end": 0.25}}


def test_scalars_round_trip(tmp_path):
    weight_files.write(tmp_path / "x.safetensors", {"gain": np.float32(3.0), "a": np.ones((2, 3)).T}, "native", {})
    found = weight_files.read(tmp_path / "x.safetensors").arrays
    assert found["gain"].shape == () and found["a"].shape == (3, 2)


@pytest.mark.slow
def test_native_weights_round_trip(tmp_path):
    kwargs = {"channels": 8, "multipliers": (1, 2), "num_res_blocks": 1, "attention_resolutions": (4,)}
    module = create("ddpmpp", **kwargs)
    x, level = jnp.ones((2, 8, 8, 1)), jnp.ones(2)
    params = jax.jit(module.init)(jax.random.key(0), x, level)["params"]
    model = {"name": "ddpmpp", "kwargs": kwargs, "prediction": "v", "preconditioning": "none"}
    process = {"sde": {"name": "flow", "kwargs": {}}, "image_size": 8, "channels": 1, "sigma_data": 0.3}
    pretrained.save(tmp_path / "ema.safetensors", params, model, process)
    again, variables = pretrained.load("native", tmp_path / "ema.safetensors")
    jax.tree.map(np.testing.assert_array_equal, variables["params"], params)
    assert again.multipliers == [1, 2]
    found = pretrained.load_model(str(tmp_path / "ema.safetensors"), options={"dtype": "bfloat16"})
    assert (found.name, found.kwargs["dtype"], found.event_shape) == ("ddpmpp", "bfloat16", (8, 8, 1))
    assert found.target == ("flow", {}, "v", "none", {}, 0.3)


def test_network_of_vectors_round_trips(tmp_path):
    module, x = create("mlp", features=(8,)), jnp.ones((2, 2))
    params = jax.jit(module.init)(jax.random.key(0), x, jnp.ones(2))["params"]
    model = {"name": "mlp", "kwargs": {"features": (8,)}, "prediction": "x0", "preconditioning": "edm"}
    process = {"sde": {"name": "edm", "kwargs": {}}, "image_size": 0, "channels": 2, "sigma_data": 0.7}
    pretrained.save(tmp_path / "ema.safetensors", params, model, process)
    found = pretrained.load_model(str(tmp_path / "ema.safetensors"))
    assert found.event_shape == (2,) and found.target.sigma_data == 0.7
    jax.tree.map(np.testing.assert_array_equal, found.params, params)


VE = {"embedding_type": "fourier", "scale_by_sigma": True, "sigma_min": 0.01, "sigma_max": 50.0}
VP = {"embedding_type": "positional", "scale_by_sigma": False, "beta_min": 0.1, "beta_max": 20.0}


def song_config(group, sde, continuous=True, centered=True, **other):
    training = {"sde": sde, "continuous": continuous}
    return {"model": group | other, "training": training, "data": {"centered": centered}}


@pytest.mark.parametrize(
    ("family", "config", "expected"),
    [
        (
            "score_sde",
            song_config(VP, "vpsde"),
            ("vp", {"beta_min": 0.1, "beta_max": 20.0}, "epsilon", "none", {}, None),
        ),
        (
            "score_sde",
            song_config(VP, "vpsde", continuous=False),
            ("ddpm_linear", {"num_steps": 1000, "beta_start": 1e-4, "beta_end": 0.02}, "epsilon", "none", {}, None),
        ),
        (  # score_sde's config of DDPM inherits an embedding that the network doesn't have
            "score_sde",
            song_config(VP, "vpsde", name="ddpm", embedding_type="fourier"),
            ("vp", {"beta_min": 0.1, "beta_max": 20.0}, "epsilon", "none", {}, None),
        ),
        (
            "score_sde",
            song_config(VE, "vesde"),
            ("ve", {"sigma_min": 0.01, "sigma_max": 50.0}, "score", "log_sigma", {}, None),
        ),
        (
            "edm",
            {"network": "SongUNet", "preconditioning": "EDMPrecond", "sigma_data": 1.5},
            ("edm", {}, "epsilon", "edm", {}, 1.5),
        ),
        (
            "edm",
            {"preconditioning": "EDMPrecond", "sigma_min": 0, "sigma_max": 40.0},
            ("edm", {"sigma_max": 40.0}, "epsilon", "edm", {}, 0.5),
        ),
        (
            "edm",
            {"preconditioning": "VEPrecond", "sigma_max": 50.0},
            ("ve", {"sigma_min": 0.02, "sigma_max": 50.0}, "epsilon", "ve", {}, 0.5),
        ),
        (
            "diffusers",
            {"scheduler": {"_class_name": "PNDMScheduler", "beta_end": 0.03, "prediction_type": "sample"}},
            ("ddpm_linear", {"num_steps": 1000, "beta_start": 1e-4, "beta_end": 0.03}, "x0", "none", {}, None),
        ),
        (
            "diffusers",
            {"scheduler": {"_class_name": "HeunDiscreteScheduler", "timestep_scaling": 10.0}},
            ("ddpm_linear", {"num_steps": 1000, "beta_start": 8.5e-4, "beta_end": 0.012}, "epsilon", "none", {}, None),
        ),
    ],
)
def test_training_setup(family, config, expected):
    assert pretrained.target(family, config) == expected


@pytest.mark.parametrize(
    ("family", "config", "words"),
    [
        ("score_sde", song_config(VE, "vesde", continuous=False), "continuous=False is not covered"),
        ("score_sde", song_config(VP, "vesde"), "embedding_type='positional' is not covered, only 'fourier'"),
        ("score_sde", song_config(VE, "vpsde"), "embedding_type='fourier' is not covered, only 'positional'"),
        ("score_sde", song_config(VP, "vpsde", num_scales=100), "num_scales=100 is not covered, only 1000"),
        ("score_sde", song_config(VP, "vpsde", centered=False), "centered=False is not covered"),
        ("edm", {"preconditioning": "VPPrecond", "beta_d": 10.0}, "beta_d=10.0 is not covered, only 19.9"),
        ("edm", {"preconditioning": "iDDPMPrecond"}, "'iDDPMPrecond' is not covered"),
        ("diffusers", {"scheduler": {"timestep_type": "continuous"}}, "timestep_type='continuous' is not covered"),
        ("diffusers", {"scheduler": {"variance_type": "learned"}}, "variance_type='learned' is not covered"),
        (
            "diffusers",
            {"scheduler": {"snr_shift": 3.0}},
            "scheduler: expected a config of known options, got snr_shift=3",
        ),
        ("diffusers", {"scheduler": {"_class_name": "FlowMatchEulerDiscreteScheduler"}}, "FlowMatch.* is not covered"),
        ("diffusers", {"scheduler": {"num_train_timesteps": 4000}}, "num_train_timesteps=4000 is not covered"),
        ("diffusers", {"scheduler": {"rescale_betas_zero_snr": True}}, "rescale_betas_zero_snr=True is not covered"),
        ("native", {}, "native: the network's config lacks 'model'"),
    ],
)
def test_uncovered_training_setups_raise(family, config, words):
    with pytest.raises(UserError, match=words):
        pretrained.target(family, config)


def test_ema_of_another_length_raises():
    weights = {"model": {"conv.weight": np.zeros(3)}, "ema": {"shadow_params": []}}
    with pytest.raises(UserError, match="'ema' is not a list of 1 'shadow_params'"):
        pretrained.load("score_sde", weights, {})


UNET = {
    "sample_size": [8, 16],
    "block_out_channels": [8, 16],
    "down_block_types": ["AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D"],
}


@pytest.mark.parametrize(
    ("family", "config", "words"),
    [
        ("diffusers", UNET | {"freq_shift": 2}, "freq_shift=2 is not covered, only 0 or 1"),
        ("diffusers", UNET | {"time_embedding_dim": 64}, "time_embedding_dim=64 is not covered, only None or 32"),
        ("diffusers", UNET | {"out_channels": 6}, "out_channels=6 is not covered, only 3"),
        ("diffusers", UNET | {"_class_name": "UNet2DConditionModel"}, "'UNet2DConditionModel' is not covered"),
        ("diffusers", UNET | {"block_out_channels": [8, 16, 32]}, "as many down and up blocks as channels"),
        ("diffusers", UNET | {"sample_size": [8, 16, 3]}, r"a height and a width, got \[8, 16, 3\]"),
        (
            "diffusers",
            UNET | {"quantization_config": {"bits": 4}},
            r"known options, got quantization_config=\{'bits': 4\}",
        ),
        ("score_sde", {"model": {"spec_norm": True}}, "known options, got spec_norm=True"),
        ("score_sde", {"model": {}, "training": {"classes": 3}}, "known options, got classes=3"),
        ("score_sde", {"model": {}, "flow": {"depth": 2}}, r"known options, got flow=\{'depth': 2\}"),
        ("score_sde", {"spec_norm": True}, "known options, got spec_norm=True"),
    ],
)
def test_unsupported_options_are_named(family, config, words):
    with pytest.raises(UserError, match=words):
        pretrained.load(family, {}, config)


def test_options_of_training_are_ignored():
    ema = {"decay": 0.9999, "optimization_step": 7, "power": 0.75}
    origin = {"_class_name": "UNet2DModel", "_diffusers_version": "0.1", "mystery": None}
    assert pretrained.diffusers.model(UNET | ema | origin) == pretrained.diffusers.model(UNET)
    _, config, _, _ = opened(FAST[1])
    groups = {"data": {"dataset": "FFHQ", "num_channels": 3}, "training": {"n_iters": 7}, "optim": {"amsgrad": False}}
    assert pretrained.score_sde.model(config | groups) == pretrained.score_sde.model(config)
    _, config, _, _ = opened(FAST[0])
    repeated = {"model_type": "SongUNet", "use_fp16": True, "sigma_max": float("inf"), "in_channels": 3}
    assert pretrained.edm.model(config | repeated) == pretrained.edm.model(config)


def test_image_height_and_width_differ(tmp_path):
    """Attention resolutions are heights. An exported network may have two numbers as image_size."""
    assert pretrained.diffusers.FAMILY.image_size(UNET) == (8, 16)
    assert pretrained.diffusers.model(UNET)[1]["attention_resolutions"] == (8,)
    kwargs = {"channels": 8, "multipliers": (1, 2), "num_res_blocks": 1, "attention_resolutions": (4,)}
    x = jax.ShapeDtypeStruct((1, 8, 16, 1), jnp.float32)
    shapes = jax.eval_shape(create("ddpm", **kwargs).init, jax.random.key(0), x, jnp.ones(1))["params"]
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    model = {"name": "ddpm", "kwargs": kwargs, "prediction": "v", "preconditioning": "none"}
    process = {"sde": {"name": "flow", "kwargs": {}}, "image_size": (8, 16), "channels": 1, "sigma_data": 0.3}
    pretrained.save(tmp_path / "x.safetensors", params, model, process)
    assert pretrained.load_model(str(tmp_path / "x.safetensors")).event_shape == (8, 16, 1)


@pytest.mark.parametrize("family", pretrained.FAMILIES)
def test_wrapped_modules_keep_their_names(family):
    arrays = pretrained.FAMILIES[family].arrays
    expected = {"a.weight": 1, "a.b.weight": 2}
    for prefix in ("_orig_mod.", "module.", "module._orig_mod."):
        assert arrays({prefix + name: value for name, value in expected.items()}) == expected
    assert arrays({"a._orig_mod.weight": 1, "a._orig_mod.b.module.weight": 2}) == expected
    with pytest.raises(UserError, match=f"{family}: expected one array a.b, got two"):
        arrays({"a.b": 1, "module.a.b": 2})


def test_half_precision_converts_in_float32():
    """The embedding of labels is a sum, which would be rounded in bfloat16."""
    family, config, weights, _ = opened(FAST[0])
    halved = {name: array.astype(jnp.bfloat16) for name, array in weights.items()}
    exact = {name: array.astype(np.float32) for name, array in halved.items()}
    _, found = pretrained.load(family, halved, config)
    _, expected = pretrained.load(family, exact, config)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def write_arrays(path, **arrays):
    """Write arrays as the suffix of the path says; the pickle of a .bin file holds only numbers."""
    if path.suffix == ".bin":
        write_pth(path, {name: int(array) for name, array in arrays.items()})
    else:
        save_file({name: np.array(array, np.float16) for name, array in arrays.items()}, path)


@pytest.mark.parametrize(
    "files",
    [
        {"model.safetensors": {"a": 1, "b": 2}},
        {"model.fp16.safetensors": {"a": 1, "b": 2}},
        {"model.safetensors": {"a": 1, "b": 2}, "model_old.safetensors": {"a": 3}},
        {"model.bin": {"a": 1, "b": 2}},
        {"model.bin": {"a": 1, "b": 2}, "model.fp16.safetensors": {"a": 3}, "model.non_ema.safetensors": {"a": 4}},
        {"model.fp16.bin": {"a": 3}, "model.fp16.safetensors": {"a": 1, "b": 2}, "model.onnx.json": {}},
        {
            "model.safetensors.index.json": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.bin"},
            "model-00001-of-00002.safetensors": {"a": 1},
            "model-00002-of-00002.bin": {"b": 2},
        },
        {
            "model.bin.index.fp16.json": {"a": "model.fp16-00001-of-00001.bin", "b": "model.fp16-00001-of-00001.bin"},
            "model.fp16-00001-of-00001.bin": {"a": 1, "b": 2},
        },
    ],
    ids=lambda files: " ".join(files),
)
def test_diffusers_folders_give_arrays(tmp_path, files):
    write_folder(tmp_path, files)
    found = folders.read(tmp_path)
    assert found.family == "diffusers" and found.arrays == {"a": 1, "b": 2}


def write_folder(folder, files):
    (folder / "config.json").write_text("{}")
    for name, content in files.items():
        name, content = (json.loads(json.dumps(x).replace("model", "diffusion_pytorch_model")) for x in (name, content))
        if name.endswith(".json"):
            (folder / name).write_text(json.dumps({"weight_map": content}))
        else:
            write_arrays(folder / name, **content)


SHARD = "model-00001-of-00001.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, r"expected diffusion_pytorch_model\.safetensors, \.bin or the index .* got none"),
        ({SHARD: {"a": 1}}, "got diffusion_pytorch_model-00001-of-00001.safetensors without an index"),
        ({"model.fp16.bin": {}, "model.ema.bin": {}}, "expected weights of one variant .* got ema, fp16; remove"),
        ({"model.safetensors": {}, INDEX: {}}, "expected one file or one index .*model.safetensors and .*index.json"),
        ({INDEX: {}}, r"expected a weight_map from arrays to files in .*index.json, got \{\}"),
        ({INDEX: {"a": 3}}, r"expected a weight_map .* got \{'a': 3\}"),
        ({INDEX: {"a": SHARD}}, "expected the shard .*00001-of-00001.safetensors of .*index.json, got no such file"),
        ({INDEX: {"a": "../x.safetensors"}}, "to name files of its folder, got '../x.safetensors'"),
        ({INDEX: {"a": "/x.safetensors"}}, "to name files of its folder, got '/x.safetensors'"),
        ({INDEX: {"a": ".."}}, r"to name files of its folder, got '\.\.'"),
        ({INDEX: {"a": "config.json"}}, "to name files of its folder, got 'config.json'"),
        ({INDEX: {"a": SHARD, "c": SHARD}, SHARD: {"a": 1, "b": 2}}, "got 2 in another file or in none: c, b"),
    ],
)
def test_incomplete_diffusers_folders_raise(tmp_path, files, words):
    write_folder(tmp_path, files)
    with pytest.raises(UserError, match=words) as error:
        folders.read(tmp_path)
    assert "\n" not in str(error.value)


def test_other_folders_raise(tmp_path):
    with pytest.raises(UserError, match=r"expected a folder with a config\.json next to the weights"):
        pretrained.load_model(str(tmp_path))
    with pytest.raises(UserError, match="weights are read from"):
        weight_files.read(tmp_path)
    write_folder(tmp_path, {"model.bin": {"a": 1}})
    (tmp_path / "model_index.json").write_text('{"unet": ["diffusers", "UNet2DModel"], "vae": [null, null]}')
    assert folders.read(tmp_path).arrays == {"a": 1}
    (tmp_path / "model_index.json").write_text('{"vqvae": ["diffusers", "VQModel"]}')
    with pytest.raises(UserError, match="expected a pipeline on pixels, got one on latents of its vqvae"):
        folders.read(tmp_path)


class Command:
    def __reduce__(self):
        return os.system, ("echo ran > ran",)


def write_pth(path, content):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(content, protocol=2))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.safetensors", None, "no weights at"),
        ("model.ckpt", b"", "weights are read from"),
        ("network.pkl", b"", "a .pkl file runs code when it is opened"),
        ("pointer.bin", b"version https://git-lfs.github.com/spec/v1", "got a Git LFS pointer"),
        ("old.pth", b"not a zip file", "zip format that torch.save writes since"),
        ("damaged.safetensors", b"\xff" * 100, "can't be read as a .safetensors file"),
        ("list.pth", [1, 2], "holds a list, not names to arrays"),
    ],
)
def test_unsupported_files_raise(tmp_path, name, content, words):
    if isinstance(content, list):
        write_pth(tmp_path / name, content)
    elif content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words):
        pretrained.load_model(str(tmp_path / name))


def test_file_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_pth(tmp_path / "bad.pth", {"model": Command()})
    with pytest.raises(UserError, match=r"refers to posix\.system"):
        pretrained.load_model("bad.pth")
    assert not (tmp_path / "ran").exists()


def test_tensor_is_read_only_from_its_storage():
    """A malicious file may describe a tensor by another array, or by numbers that overflow."""
    storage = weight_files._Storage(np.arange(6.0))
    np.testing.assert_array_equal(weight_files._rebuild_tensor(storage, 1, (2, 2), (3, 1)), [[1, 2], [4, 5]])
    for given in (
        (np.zeros((10**6, 0)), 0, (2000,), (1,)),
        (storage, np.int64(2**63 - 1), (2,), (1,)),
        (storage, 5, (2,), (1,)),
        (storage, 0, (10**9,), (0,)),
        (storage, 0, (2,), (-1,)),
    ):
        with pytest.raises(ValueError, match="a tensor"):
            weight_files._rebuild_tensor(*given)


def test_weights_without_metadata_raise(tmp_path):
    write_pth(tmp_path / "bare.pth", {})
    with pytest.raises(UserError, match="expected the family of the weights"):
        pretrained.load_model(str(tmp_path / "bare.pth"))
    with pytest.raises(UserError, match=r"bare|without the network's config"):
        pretrained.load_model(str(tmp_path / "bare.pth"), "edm")


@pytest.mark.parametrize("path", ORACLES[:1], ids=lambda path: path.stem)
def test_parity_reports_errors_per_block(path, capsys):
    """Activations of the network itself are compared, one of them with a known error."""
    family, config, weights, archive = opened(path)
    module, variables = pretrained.load(family, weights, config)
    inputs = (archive["input"], np.log(archive["sigma"]) / 4)
    output, state = jax.jit(partial(module.apply, capture_intermediates=True))(variables, *inputs)
    block = np.asarray(state["intermediates"]["down_1_0"]["__call__"][0])
    theirs = {"enc.8x8_block0": block.transpose(0, 3, 1, 2) + 0.1 * block.std(), "": output, "enc.other": block}
    errors = pretrained.parity(family, weights, config, inputs, theirs)
    assert errors[""] < 1e-5 and np.isnan(errors["enc.other"])
    np.testing.assert_allclose(errors["enc.8x8_block0"], 0.1, rtol=1e-3)
    assert "enc.8x8_block0  1.0e-01" in capsys.readouterr().out
