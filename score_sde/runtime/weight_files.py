"""Weights from files: names to NumPy arrays, and what the file says of them. Nothing in a file is ever executed."""

import hashlib
import json
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util
from safetensors import safe_open
from safetensors.numpy import save_file

from score_sde.errors import UserError, cut
from score_sde.runtime.disk import replacing

CONVERSION = """a .pkl file runs code when it is opened; where its classes are installed, convert it once:
    import json, pickle, safetensors.torch as st
    net = pickle.load(open("{path}", "rb"))["ema"]  # only if you trust where it comes from
    config = dict(net.init_kwargs, network=net.init_kwargs["model_type"], preconditioning=type(net).__name__)
    meta = {{"family": "edm", "config": json.dumps(config)}}
    st.save_file({{k: v.float().contiguous() for k, v in net.state_dict().items()}}, "{stem}.safetensors", meta)"""


class Weights(NamedTuple):
    """What a file holds."""

    arrays: Any  # a state dict: names to arrays; of a score_sde checkpoint: its "model" and "ema"
    family: str | None  # where the file says so; and its config
    config: dict[str, Any] | None


def read(path: str | Path) -> Weights:
    """Reads a .safetensors file, a .pth file, or a folder of diffusers.

    The family and config come from a safetensors file's metadata, from config.json in a folder, or from a JSON file
    {"family": ..., "config": ...} beside the weights, named <file>.json.

    Raises:
      UserError: there is no such file, it is of another kind, or it is damaged.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"no weights at {path}", "pretrained")
    readers = {".safetensors": _read_safetensors, ".pth": _read_pth, ".pt": _read_pth, ".pkl": _refuse_pickle}
    if not path.is_dir() and path.suffix not in readers:
        raise UserError(f"weights are read from {', '.join(readers)} and folders of diffusers, not from {path}")
    try:
        weights = _read_folder(path) if path.is_dir() else readers[path.suffix](path)
    except UserError:
        raise
    except Exception as error:  # each format has its own, and a damaged file may raise any
        kind = "folder of diffusers" if path.is_dir() else f"{path.suffix} file"
        raise UserError(f"{path} can't be read as a {kind}: {cut(str(error), 200)}") from None
    if not isinstance(weights.arrays, Mapping):
        raise UserError(f"{path} holds a {type(weights.arrays).__name__}, not names to arrays")
    beside = path.with_name(path.name + ".json")
    if beside.is_file():
        said = _read_json(beside)
        weights = weights._replace(family=said.get("family", weights.family), config=said.get("config", weights.config))
    for name, given, expected in (("family", weights.family, str), ("config", weights.config, dict)):
        if not isinstance(given, expected | None):
            raise UserError(f"{path}: expected its {name} to be a {expected.__name__}, got a {type(given).__name__}")
    return weights


def write(path: str | Path, arrays: Mapping[str, np.ndarray], family: str, config: Mapping[str, Any]) -> None:
    """Writes a safetensors file that `read` reads whole, in one step and with a checksum."""
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    with replacing(Path(path)) as partial:
        save_file(arrays, str(partial), {"family": family, "config": json.dumps(config), "sha256": _digest(arrays)})


def write_tree(path: str | Path, tree: Any, family: str, config: Mapping[str, Any]) -> None:
    """Writes nested dicts of arrays as `write` does, named by their paths."""
    write(path, traverse_util.flatten_dict(jax.tree.map(np.asarray, tree), sep="/"), family, config)


def read_tree(path: str | Path) -> Any:
    """The nested dicts that `write_tree` wrote."""
    return traverse_util.unflatten_dict(read(path).arrays, sep="/")


def _read_safetensors(path: Path) -> Weights:
    with safe_open(str(path), "numpy") as file:
        said = file.metadata() or {}
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if said.get("sha256", "") not in ("", _digest(arrays)):
        raise ValueError("its arrays are not those that were saved")
    return Weights(arrays, said.get("family"), _json(said["config"], path) if "config" in said else None)


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of names, dtypes, shapes and numbers."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}\n".encode())
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()


def _read_folder(path: Path) -> Weights:
    """What diffusers' save_pretrained writes, of a UNet2DModel or of a pipeline around one."""
    root = path / "unet" if (path / "unet").is_dir() else path
    file = root / "diffusion_pytorch_model.safetensors"
    if not (root / "config.json").is_file() or not file.is_file():
        raise UserError(f"{root} has no config.json with {file.name}: not a diffusers folder of safetensors weights")
    config = _read_json(root / "config.json")
    pipeline = root.parent if root.name == "unet" else root
    for scheduler in (pipeline / "scheduler" / "scheduler_config.json", root / "scheduler_config.json"):
        if scheduler.is_file():
            config["scheduler"] = _read_json(scheduler)
    return Weights(_read_safetensors(file).arrays, "diffusers", config)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text()
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}") from error
    said = _json(text, path)
    if not isinstance(said, dict):
        raise UserError(f'{path} holds no object {{"name": value, ...}}')
    return said


def _json(text: str, path: Path) -> Any:
    """Parses JSON from a file."""
    try:
        return json.loads(text)
    except RecursionError:
        raise UserError(f"{path} is no JSON of a config: its lists and objects are nested too deep") from None
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}") from error


def _refuse_pickle(path: Path) -> Weights:
    raise UserError(CONVERSION.format(path=path, stem=path.stem))


class _Storage(NamedTuple):
    data: np.ndarray


_DTYPES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
MAX_DIMENSIONS = 64  # NumPy's
MAX_PARTS = 100_000  # of a .pth file, each as often as it is referred to: more than any network has


def _rebuild_tensor(storage: _Storage, offset, size, stride, *unused) -> np.ndarray:
    """A view of its storage: many tensors of one storage take no memory."""
    if not isinstance(storage, _Storage) or max(len(size), len(stride)) > MAX_DIMENSIONS:
        raise ValueError("a tensor is not described by its storage and a shape")
    if any(type(n) is not int or not 0 <= n < 2**63 for n in (offset, *size, *stride)):
        raise ValueError("a tensor is not described by whole numbers")
    if math.prod(size) > max(1, len(storage.data)):
        raise ValueError("a tensor is larger than its storage")
    itemsize = storage.data.itemsize
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and last >= len(storage.data):
        raise ValueError("a tensor reaches out of its storage")
    strides = [itemsize * step for step in stride]
    return np.lib.stride_tricks.as_strided(storage.data[offset:], size, strides, writeable=False)


class _Unpickler(pickle._Unpickler):
    """Reads tensors and dictionaries, and refuses to look up anything else, so that no code in a file can run.

    Python's own unpickler, as the compiled one allocates what a file claims, and hashes any key: of a tuple of tuples
    that are shared that takes exponential time.
    """

    def __init__(self, file, archive: zipfile.ZipFile, root: str):
        super().__init__(file)
        self._archive, self._root = archive, root
        self._storages: dict[tuple[str, str], _Storage] = {}

    def find_class(self, module, name):
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        known = {
            ("collections", "OrderedDict"): lambda: OrderedDict(),  # its items follow, and are looked at
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): lambda data, *unused: data,
        }
        if (module, name) not in known:
            raise UserError(
                f"the file asks for {cut(f'{module}.{name}')}: only tensors, numbers and dictionaries are read, and "
                "nothing is executed (save the state dict alone, as safetensors)"
            )
        return known[module, name]

    def persistent_load(self, identifier):
        kind, dtype, key, _, count = identifier
        known = all(type(part) is str for part in (kind, dtype, key)) and kind == "storage" and key.isalnum()
        if not known or dtype not in _DTYPES.values() or type(count) is not int:
            raise ValueError("a storage is not described by its type, name and size")
        if (key, dtype) not in self._storages:
            data = np.frombuffer(self._archive.read(f"{self._root}/data/{key}"), dtype)
            self._storages[key, dtype] = _Storage(data)
        (data,) = self._storages[key, dtype]
        if not 0 <= count <= len(data):
            raise ValueError("a storage is larger than its file")
        return _Storage(data[:count])


def _set_item(reader: Any) -> None:
    value, name = reader.stack.pop(), reader.stack.pop()
    _set(reader, [name, value])


def _set(reader: Any, items: list[Any]) -> None:
    if any(type(name) not in (str, int) for name in items[::2]):
        raise ValueError("a name is no text")
    reader.stack[-1].update(zip(items[::2], items[1::2], strict=True))


_INSTRUCTIONS: Any = dict(_Unpickler.dispatch)
_Unpickler.dispatch = _INSTRUCTIONS
for _instruction in (pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET, pickle.DICT, pickle.BYTEARRAY8):
    del _INSTRUCTIONS[_instruction[0]]
_INSTRUCTIONS |= {
    pickle.SETITEM[0]: _set_item,
    pickle.SETITEMS[0]: lambda reader: _set(reader, reader.pop_mark()),
    pickle.BUILD[0]: lambda reader: reader.stack.pop(),  # attributes, of which none is needed
}


def _read_pth(path: Path) -> Weights:
    """What torch.save writes since PyTorch 1.6: a zip file of a pickle and of each tensor's bytes."""
    if not zipfile.is_zipfile(path):
        raise UserError(
            f"{path} is not in the zip format that torch.save writes since PyTorch 1.6 (load and save it there again)"
        )
    with zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
            raise ValueError("its parts are larger than the file, and torch.save compresses none")
        (name,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        with archive.open(name) as file:
            try:
                arrays = _Unpickler(file, archive, name.split("/")[0]).load()
            except (
                KeyError
            ) as error:  # an instruction, or a place in the memory, of the pickle; or a part of the archive
                raise ValueError(f"it holds no {error}") from None
    _check_ends(arrays)
    return Weights(arrays, None, None)


def _check_ends(content: Any) -> None:
    """Refuses lists, tuples and dictionaries that hold themselves, or that sharing makes endless to visit."""
    left, count = [content], 0
    while left:
        part = left.pop()
        if not isinstance(part, Mapping | list | tuple):
            continue
        count += len(part)
        if count > MAX_PARTS:
            raise ValueError("its lists and dictionaries hold themselves, or each other too often")
        left += part.values() if isinstance(part, Mapping) else part
