"""Short hashes of values, arrays and files."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np


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


def _short(digest: Any) -> str:
    return digest.hexdigest()[:16]
