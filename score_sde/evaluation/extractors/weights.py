"""Loading of downloaded weights, with conversion and a check of their shapes."""

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
    """Return the path of a network's weights.

    Args:
      given: Path; "" for `cache_folder()`/extractors/<library.WEIGHTS_FILE>.
      library: Module of the network, in this package.

    Raises:
      UserError: if the file is missing. The message has the URL and the path.
    """
    path = Path(given) if given else cache_folder() / "extractors" / library.WEIGHTS_FILE
    if not path.is_file():
        name = library.__name__.split(".")[-1]
        raise UserError(
            f"the features {name!r} need weights, which are not at {path}: download {library.WEIGHTS_URL} "
            "and put it there, or set its path",
            name,
        )
    return path


def load(path: Path, library: ModuleType) -> tuple[nn.Module, Any]:
    """Return a library's network and its parameters, for module.apply({"params": params}, images).

    Args:
      path: File of weights in a format of `weight_files.read`.
      library: Module of the network (`inception`, `dinov2`).

    Raises:
      UserError: if the file can't be read, or holds weights of another network.
    """
    try:
        module, params = library.convert(weight_files.read(path).arrays)
    except (KeyError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(
            f"{path} holds other weights than {library.WEIGHTS_FILE}: {type(error).__name__} {reason}"
        ) from error
    example = jax.ShapeDtypeStruct((1, library.SIDE, library.SIDE, 3), jnp.float32)
    expected = _shapes(jax.eval_shape(module.init, jax.random.key(0), example)["params"])
    given = _shapes(params)
    wrong = sorted(name for name in given.keys() | expected.keys() if given.get(name) != expected.get(name))
    if wrong:
        raise UserError(
            f"{path} holds other weights than {library.WEIGHTS_FILE}: expected {wrong[0]} of the shape "
            f"{expected.get(wrong[0])}, got {given.get(wrong[0])}; {len(wrong)} arrays differ"
        )
    return module, params


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves}
