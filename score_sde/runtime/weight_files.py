"""Weight files: named NumPy arrays with metadata. Code in a file is never executed."""

import hashlib
import json
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
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
    """Contents of a weight file."""

    arrays: Any  # a state dict, names to arrays; of a score_sde checkpoint, its "model" and "ema"
    family: str | None  # from the metadata, None without any
    config: dict[str, Any] | None  # from the metadata, None without any


def read(path: str | Path, read_folder: Callable[[Path], Weights] | None = None) -> Weights:
    """Read a .safetensors file, or a file of torch.save (.pth, .pt, .bin).

    The family and config come from the metadata of a safetensors file, or from a sidecar file <file>.json next to the
    weights, with the content {"family": ..., "config": ...}.

    Args:
      path: File of weights.
      read_folder: Function for a path that is a folder. Defaults to None, which raises an error for folders.

    Raises:
      UserError: if the file is missing, has another format, or is damaged.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"no weights at {path}", "pretrained")
    readers: dict[str, Callable] = {".safetensors": _read_safetensors, ".pkl": _reject_pickle}
    readers |= dict.fromkeys((".pth", ".pt", ".bin"), _read_pth)
    reader = read_folder if path.is_dir() else readers.get(path.suffix)
    if reader is None:
        raise UserError(f"weights are read from {', '.join(readers)} files and diffusers folders, not from {path}")
    try:
        if path.is_file() and path.stat().st_size < 500 and path.read_bytes().startswith(b"version https://git-lfs"):
            raise UserError(f"expected weights in {path}, got a Git LFS pointer to them; run `git lfs pull`")
        weights = reader(path)
    except UserError:
        raise
    except Exception as error:  # each format raises its own kinds, and a damaged file may raise any
        kind = "folder of diffusers" if path.is_dir() else f"{path.suffix} file"
        raise UserError(f"{path} can't be read as a {kind}: {cut(str(error), 200)}") from None
    if not isinstance(weights.arrays, Mapping):
        raise UserError(f"{path} holds a {type(weights.arrays).__name__}, not names to arrays")
    sidecar = path.with_name(path.name + ".json")
    if sidecar.is_file():
        meta = read_json(sidecar)
        weights = weights._replace(family=meta.get("family", weights.family), config=meta.get("config", weights.config))
    for name, given, expected in (("family", weights.family, str), ("config", weights.config, dict)):
        if not isinstance(given, expected | None):
            raise UserError(f"{path}: expected its {name} to be a {expected.__name__}, got a {type(given).__name__}")
    return weights


def write(path: str | Path, arrays: Mapping[str, np.ndarray], family: str, config: Mapping[str, Any]) -> None:
    """Write a safetensors file for `read` atomically, with its metadata and a checksum."""
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    with replacing(Path(path)) as partial:
        save_file(arrays, str(partial), {"family": family, "config": json.dumps(config), "sha256": _digest(arrays)})


def write_tree(path: str | Path, tree: Any, family: str, config: Mapping[str, Any]) -> None:
    """Write nested dicts of arrays as `write` does; the path of an array is its name."""
    write(path, traverse_util.flatten_dict(jax.tree.map(np.asarray, tree), sep="/"), family, config)


def read_tree(path: str | Path) -> Any:
    """Read the nested dicts that `write_tree` wrote."""
    return traverse_util.unflatten_dict(read(path).arrays, sep="/")


def _read_safetensors(path: Path) -> Weights:
    with safe_open(str(path), "numpy") as file:
        meta = file.metadata() or {}
        try:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except AttributeError as error:
            raise ValueError(f"it has arrays of an unsupported dtype ({error})") from None
    if meta.get("sha256", "") not in ("", _digest(arrays)):
        raise ValueError("its arrays do not match their checksum")
    return Weights(arrays, meta.get("family"), _json(meta["config"], path) if "config" in meta else None)


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 of the arrays' names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}\n".encode())
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file."""
    try:
        text = path.read_text()
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    content = _json(text, path)
    if not isinstance(content, dict):
        raise UserError(f'{path} holds no JSON object {{"name": value, ...}}')
    return content


def _json(text: str, path: Path) -> Any:
    """Parse JSON text from a file."""
    try:
        return json.loads(text)
    except RecursionError:
        raise UserError(f"{path} is not a valid config: its lists and objects are nested too deep") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error


def _reject_pickle(path: Path) -> Weights:
    raise UserError(CONVERSION.format(path=path, stem=path.stem))


class _Storage(NamedTuple):
    data: np.ndarray


_DTYPES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": "bfloat16",  # of ml_dtypes, which jax imports
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
MAX_DIMENSIONS = 64  # NumPy's limit
MAX_ENTRIES = 100_000  # in a .pth file, counted once per reference; larger than any network


def _rebuild_tensor(storage: _Storage, offset, size, stride, *unused) -> np.ndarray:
    """Return a view of the storage, so that many tensors of one storage take no memory."""
    if not isinstance(storage, _Storage) or max(len(size), len(stride)) > MAX_DIMENSIONS:
        raise ValueError("a tensor lacks a valid storage and shape")
    if any(type(n) is not int or not 0 <= n < 2**63 for n in (offset, *size, *stride)):
        raise ValueError("the sizes of a tensor are not valid integers")
    if math.prod(size) > max(1, len(storage.data)):
        raise ValueError("a tensor is larger than its storage")
    itemsize = storage.data.itemsize
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and last >= len(storage.data):
        raise ValueError("a tensor exceeds its storage")
    strides = [itemsize * step for step in stride]
    return np.lib.stride_tricks.as_strided(storage.data[offset:], size, strides, writeable=False)


class _Unpickler(pickle._Unpickler):
    """Unpickler for tensors and dictionaries; it looks up nothing else, so that no code in a file can run.

    It derives from the unpickler in Python, because the compiled one allocates as much memory as a file claims to need
    and hashes any key. Hashing nested tuples that share their elements takes exponential time.
    """

    def __init__(self, file, archive: zipfile.ZipFile, root: str):
        """Create an unpickler.

        Args:
          file: Open file with the pickle.
          archive: Archive with the storages.
          root: Top folder in the archive.
        """
        super().__init__(file)
        self._archive, self._root = archive, root
        self._storages: dict[tuple[str, str], _Storage] = {}

    def find_class(self, module, name):
        """Return one of the few functions that a state dict needs; raise UserError for any other name."""
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        known = {
            ("collections", "OrderedDict"): lambda: OrderedDict(),  # its items follow, and are checked
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): lambda data, *unused: data,
        }
        if (module, name) not in known:
            raise UserError(
                f"the file refers to {cut(f'{module}.{name}')}: only tensors, numbers and dictionaries are read, and "
                "nothing is executed (save only the state dict, as safetensors)"
            )
        return known[module, name]

    def persistent_load(self, identifier):
        """Return a storage from the archive."""
        kind, dtype, key, _, count = identifier
        known = all(type(entry) is str for entry in (kind, dtype, key)) and kind == "storage" and key.isalnum()
        if not known or dtype not in _DTYPES.values() or type(count) is not int:
            raise ValueError("a storage lacks a valid type, name and size")
        if (key, dtype) not in self._storages:
            data = np.frombuffer(self._archive.read(f"{self._root}/data/{key}"), dtype)
            self._storages[key, dtype] = _Storage(data)
        (data,) = self._storages[key, dtype]
        if not 0 <= count <= len(data):
            raise ValueError("a storage is larger than its file")
        return _Storage(data[:count])


def _set_item(reader: Any) -> None:
    value, name = reader.stack.pop(), reader.stack.pop()
    _set_items(reader, [name, value])


def _set_items(reader: Any, items: list[Any]) -> None:
    if any(type(name) not in (str, int) for name in items[::2]):
        raise ValueError("a key is neither a string nor an integer")
    reader.stack[-1].update(zip(items[::2], items[1::2], strict=True))


_OPCODES: Any = dict(_Unpickler.dispatch)
_Unpickler.dispatch = _OPCODES
for _opcode in (pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET, pickle.DICT, pickle.BYTEARRAY8):
    del _OPCODES[_opcode[0]]
_OPCODES |= {
    pickle.SETITEM[0]: _set_item,
    pickle.SETITEMS[0]: lambda reader: _set_items(reader, reader.pop_mark()),
    pickle.BUILD[0]: lambda reader: reader.stack.pop(),  # attributes, which are not needed
}


def _read_pth(path: Path) -> Weights:
    """Read what torch.save writes since PyTorch 1.6: a zip file with a pickle and the bytes of each tensor."""
    if not zipfile.is_zipfile(path):
        raise UserError(
            f"{path} is not in the zip format that torch.save writes since PyTorch 1.6 (load and save it there again)"
        )
    with zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
            raise ValueError("its members are larger than the file, but torch.save does not compress")
        (name,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        with archive.open(name) as file:
            try:
                arrays = _Unpickler(file, archive, name.split("/")[0]).load()
            except KeyError as error:  # an unknown opcode or memo entry of the pickle, or a missing archive member
                raise ValueError(f"it has no entry {error}") from None
    _check_size(arrays)
    return Weights(arrays, None, None)


def _check_size(content: Any) -> None:
    """Raise ValueError if lists, tuples or dictionaries contain themselves, or are shared too often to traverse."""
    stack, count = [content], 0
    while stack:
        node = stack.pop()
        if not isinstance(node, Mapping | list | tuple):
            continue
        count += len(node)
        if count > MAX_ENTRIES:
            raise ValueError("its lists and dictionaries contain themselves, or share elements too often")
        stack += node.values() if isinstance(node, Mapping) else node
