"""Short hashes of values, arrays and files."""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np

from score_sde.errors import UserError
from score_sde.runtime.cache import cache_folder
from score_sde.runtime.disk import write_atomically


def hash_json(*values: Any) -> str:
    """Return a hash of JSON-serializable values."""
    return _short(hashlib.sha256(json.dumps(values, sort_keys=True).encode()))


def hash_pytree(tree: Any) -> str:
    """Return a hash of the leaves of a pytree; names are ignored."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return _short(digest)


def hash_file(path: Path) -> str:
    """Return a hash of a file's contents."""
    with path.open("rb") as file:
        return _short(hashlib.file_digest(file, "sha256"))


def hash_files(paths: Sequence[Path]) -> str:
    """Return a hash of the contents of files, cached as in `cached_hash`."""
    return cached_hash(paths, lambda: hash_json([hash_file(path) for path in paths]))


def cached_hash(paths: Sequence[Path], compute: Callable[[], str], *options: Any) -> str:
    """Return compute(), which depends on the contents of files and on options; the cache keeps it for unchanged files.

    Raises:
      UserError: if a file can't be read.
    """
    states = []
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            raise UserError(f"{path} can't be read: {error.strerror} (repair or remove it)") from error
        states.append((str(path.absolute()), status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    cached = cache_folder() / "hashes" / hash_json(states, options)
    with suppress(OSError, ValueError):
        if known := cached.read_text():
            return known
    computed = compute()
    with suppress(OSError):  # without a cache every start computes it
        cached.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(cached, computed)
    return computed


def _short(digest: Any) -> str:
    return digest.hexdigest()[:16]
