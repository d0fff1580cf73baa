"""On-disk cache directory."""

import atexit
import functools
import os
import shutil
import sys
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """Returns $XDG_CACHE_HOME/score_sde, by default ~/.cache/score_sde; a temporary folder if it can't be written."""
    return _usable(os.environ.get("XDG_CACHE_HOME", ""))


@functools.cache
def _usable(cache_home: str) -> Path:
    try:
        folder = Path(cache_home or Path.home() / ".cache") / "score_sde"
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        return folder
    except (OSError, RuntimeError) as error:  # no home folder, a read-only one
        temporary = Path(tempfile.mkdtemp(prefix="score_sde_"))
        atexit.register(shutil.rmtree, temporary, ignore_errors=True)
        print(f"no cache can be kept between runs: {error} (set XDG_CACHE_HOME to a folder)", file=sys.stderr)
        return temporary
