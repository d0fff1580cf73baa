"""Weights of networks that others trained: found, converted, and checked against the network's shapes."""

from pathlib import Path
from types import ModuleType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from score_sde.errors import UserError
from score_sde.runtime import weight_files
from score_sde.runtime.cache import cache_folder


def find(given: str, library: ModuleType) -> Path:
    """The file that is given, or else its place in the cache.

    Args:
      given: a path; "" for `cache_folder()`/extractors/<library.FILE>.
      library: a file of this folder.

    Raises:
      UserError: it isn't there, with what to download and where to put it.
    """
    path = Path(given) if given else cache_folder() / "extractors" / library.FILE
    if not path.is_file():
        name = library.__name__.split(".")[-1]
        raise UserError(
            f"the features {name!r} need weights, which are not at {path}: download {library.SOURCE} and put it there, "
            "or say where it is",
            name,
        )
    return path


def load(path: Path, library: ModuleType) -> tuple[nn.Module, Any]:
    """The network of a file, and its parameters.

    Raises:
      UserError: the file can't be read, or holds other weights.
    """
    try:
        module, params = library.convert(weight_files.read(path).arrays)
    except (KeyError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{path} holds other weights than {library.FILE}: {type(error).__name__} {reason}") from error
    example = jax.ShapeDtypeStruct((1, library.SIDE, library.SIDE, 3), jnp.float32)
    needed = _shapes(jax.eval_shape(module.init, jax.random.key(0), example)["params"])
    found = _shapes(params)
    wrong = sorted(name for name in found.keys() | needed.keys() if found.get(name) != needed.get(name))
    if wrong:
        raise UserError(
            f"{path} holds other weights than {library.FILE}: {wrong[0]} has the shape {found.get(wrong[0])}, not "
            f"{needed.get(wrong[0])}; {len(wrong)} differ"
        )
    return module, params


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(place, simple=True, separator="/"): leaf.shape for place, leaf in leaves}
