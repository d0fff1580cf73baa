"""On-disk cache directory."""

import atexit
import functools
import os
import shutil
import sys
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """Return $XDG_CACHE_HOME/score_sde, by default ~/.cache/score_sde; a temporary folder if that is not writable."""
    return _writable_folder(os.environ.get("XDG_CACHE_HOME", ""))


@functools.cache
def _writable_folder(cache_home: str) -> Path:
    try:
        folder = Path(cache_home or Path.home() / ".cache") / "score_sde"
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        return folder
    except (OSError, RuntimeError) as error:  # there is no home folder, or it is read-only
        temporary = Path(tempfile.mkdtemp(prefix="score_sde_"))
        atexit.register(shutil.rmtree, temporary, ignore_errors=True)
        print(f"the cache is lost after this run: {error} (set XDG_CACHE_HOME to a writable folder)", file=sys.stderr)
        return temporary
