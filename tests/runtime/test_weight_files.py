"""Files of weights that are damaged or crafted: the right arrays or one short sentence, in little time and memory."""

import json
import pickle
import tracemalloc
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.errors import UserError
from score_sde.models import create, pretrained
from score_sde.runtime import weight_files

START = pickle.PROTO + b"\x02"
NAME = b"X\x01\x00\x00\x00a"  # "a"


def literal(value):
    """The instructions that push a value."""
    return pickle.dumps(value, 2)[2:-1]


def tensor(size, stride, count=4):
    """The instructions that push a float32 tensor of storage 0."""
    storage = literal("storage") + b"ctorch\nFloatStorage\n" + literal("0") + literal("cpu") + literal(count)
    shape = literal(0) + literal(size) + literal(stride) + literal(False) + b"}"
    return b"ctorch._utils\n_rebuild_tensor_v2\n((" + storage + b"tQ" + shape + b"tR"


def write(path, instructions, compression=zipfile.ZIP_STORED, **storages):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", START + instructions + b".")
        for name, data in storages.items():
            archive.writestr(f"archive/data/{name.strip('_')}", data)


def doubled(levels):
    """The instructions that push a tuple of two, each of two, and so on: 2^levels to visit, 6 bytes a level."""
    pairs = (b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(levels))
    return b")q\x00" + b"".join(pairs)


def test_a_pth_file_gives_its_tensors(tmp_path):
    data = np.arange(4, dtype="<f4")
    write(tmp_path / "x.pth", b"}" + NAME + tensor((2, 2), (1, 2)) + b"s", _0=data.tobytes())
    np.testing.assert_array_equal(weight_files.read(tmp_path / "x.pth").arrays["a"], data.reshape(2, 2).T)


BFLOAT16 = np.array([0x3F80, 0xC000], "<u2").tobytes()  # 1 and -2


def test_bfloat16_is_read(tmp_path):
    header = json.dumps({"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + BFLOAT16)
    instructions = tensor((2,), (1,), 2).replace(b"FloatStorage", b"BFloat16Storage")
    for name in ("x.pth", "x.bin"):
        write(tmp_path / name, b"}" + NAME + instructions + b"s", _0=BFLOAT16)
    for name in ("x.safetensors", "x.pth", "x.bin"):
        found = weight_files.read(tmp_path / name).arrays["a"]
        assert found.dtype == jnp.bfloat16
        np.testing.assert_array_equal(found.astype(np.float32), [1, -2])


def test_unsupported_dtype_raises(tmp_path):
    header = json.dumps({"a": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(2))
    with pytest.raises(UserError, match=r"arrays of an unsupported dtype .*float8_e4m3fn"):
        weight_files.read(tmp_path / "x.safetensors")


CRAFTED = {
    "cycle": b"}q\x00" + NAME + b"h\x00s",
    "cycle_of_a_list": b"}" + NAME + b"]q\x01h\x01as",
    "doubled_value": b"}" + NAME + doubled(60) + b"s",
    "doubled_name": b"}" + doubled(60) + b"K\x01s",
    "doubled_set": b"(" + doubled(60) + b"\x91",
    "doubled_attribute": b"ccollections\nOrderedDict\n)R}" + doubled(60) + b"K\x01sb",
    "doubled_storage": b"(" + literal("storage") + b"ctorch\nFloatStorage\n" + doubled(60) + b"K\x01K\x01tQ",
    "name": b"c" + b"a" * 10**6 + b"\nb\n",
    "shape": b"}" + NAME + tensor((2**40,), (1,)) + b"s",
    "empty_shape": b"}" + NAME + tensor((0, 2**62), (1, 1)) + b"s",
    "dimensions": b"}" + NAME + tensor((1,) * 10**4, (1,) * 10**4) + b"s",
    "storage": b"}" + NAME + tensor((2,), (1,), 2**50) + b"s",
    "bytes": b"}" + NAME + b"\x96" + (2**40).to_bytes(8, "little") + b"s",
    "text": b"}" + NAME + b"X\xff\xff\xff\x7fs",
    "many": b"}" + NAME + b"]q\x01(" + b"h\x00" * 10 + b"es",
}


@pytest.mark.parametrize("name", CRAFTED)
def test_a_crafted_pickle_is_one_short_sentence(tmp_path, name):
    path = tmp_path / "x.pth"
    write(path, CRAFTED[name], _0=bytes(16))
    tracemalloc.start()
    with pytest.raises(UserError) as refused:
        weight_files.read(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(str(refused.value)) < 300 + len(str(path))
    assert peak < 64 * 2**20  # at most MAX_ENTRIES are visited


def test_a_compressed_archive_is_not_unpacked(tmp_path):
    write(tmp_path / "x.pth", b"}", zipfile.ZIP_DEFLATED, _0=bytes(10**8))
    with pytest.raises(UserError, match="members are larger than the file"):
        weight_files.read(tmp_path / "x.pth")


def test_tensors_of_one_storage_take_no_memory(tmp_path):
    one = NAME + tensor((2**18,), (1,), 2**18) + b"s"
    write(tmp_path / "x.pth", b"}" + one * 1000, _0=bytes(2**20))
    tracemalloc.start()
    weight_files.read(tmp_path / "x.pth")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * 2**20


@pytest.mark.parametrize("side", ["[" * 10**5, '{"a":' * 10**5, "[" * 10**5 + "]" * 10**5])
def test_a_side_file_of_great_depth_is_refused(tmp_path, side):
    weight_files.write(tmp_path / "x.safetensors", {"a": np.ones(2)}, "native", {})
    (tmp_path / "x.safetensors.json").write_text(side)
    with pytest.raises(UserError, match=r"x\.safetensors\.json is not a valid config: .* nested too deep"):
        weight_files.read(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("side", "words"),
    [
        ({"family": ["edm"], "config": {}}, "family to be a str, got a list"),
        ({"family": "edm", "config": []}, "config to be a dict, got a list"),
        ({"family": "f" * 10**6, "config": {}}, "unknown family 'ffff"),
        ({"family": "edm", "config": {"network": "n" * 10**6}}, "edm: network='nnnn"),
        ({"family": "diffusers", "config": {"block_out_channels": "many"}}, "diffusers: "),
        ({"family": "score_sde", "config": {"model": []}}, "score_sde: no network can be built"),
        ({"family": "native", "config": {"model": {"name": "mlp", "kwargs": 3}}}, "native: no network can be built"),
    ],
)
def test_a_config_of_the_wrong_kind_is_one_sentence(tmp_path, side, words):
    weight_files.write(tmp_path / "x.safetensors", {"a": np.ones(2)}, "native", {})
    (tmp_path / "x.safetensors.json").write_text(json.dumps(side))
    with pytest.raises(UserError, match=words) as refused:
        pretrained.load_model(str(tmp_path / "x.safetensors"))
    assert len(str(refused.value)) < 500 + len(str(tmp_path))


def test_an_image_size_of_a_config_takes_no_memory(tmp_path):
    """The shapes of the parameters are found without an image."""
    module = create("ddpm", channels=8, multipliers=(1,), num_res_blocks=1, attention_resolutions=())
    variables = jax.eval_shape(module.init, jax.random.key(0), jnp.ones((1, 8, 8, 1)), jnp.ones(1))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), variables["params"])
    kwargs = {"channels": 8, "multipliers": (1,), "num_res_blocks": 1, "attention_resolutions": ()}
    model = {"name": "ddpm", "kwargs": kwargs, "prediction": "v", "preconditioning": "none"}
    process = {"sde": {"name": "flow", "kwargs": {}}, "image_size": 2**16, "channels": 1, "sigma_data": 0.3}  # 16 GiB
    pretrained.save(tmp_path / "x.safetensors", params, model, process)
    assert pretrained.load_model(str(tmp_path / "x.safetensors")).event_shape == (2**16, 2**16, 1)


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_damaged_bytes_are_noticed_or_harmless(tmp_path, kind):
    """A flip or cut at random a hundred times: arrays of the same names and shapes, or one sentence."""
    path, rng = tmp_path / f"x.{kind}", np.random.default_rng(0)
    if kind == "pth":
        write(path, b"}" + NAME + tensor((2, 2), (1, 2)) + b"s", _0=bytes(16))
    else:
        weight_files.write(path, {"a": np.zeros((2, 2), np.float32)}, "native", {"image_size": 0})
    whole = path.read_bytes()
    for i in range(100):
        damaged = bytearray(whole)
        if i % 4 == 0:
            del damaged[rng.integers(len(whole)) :]
        else:
            damaged[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            found = weight_files.read(path)
        except UserError as error:
            assert len(str(error)) < 300 + len(str(path))
        else:
            assert all(isinstance(array, np.ndarray) and array.size <= 16 for array in found.arrays.values())
