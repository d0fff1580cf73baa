"""Paths on the command line and in configs: `~` is the home folder, and colons are allowed."""

import os
from pathlib import Path

PATHS = (  # keys that hold one
    "data.path",
    "model.pretrained",
    "loss.objective_kwargs.teacher",
    "sampling.guidance_weights",
    "sampling.task_kwargs.mask",
    "evaluation.inception",
    "evaluation.dinov2",
    "evaluation.baseline",
    "base",  # of a sweep
    "from_run",
)
expand = os.path.expanduser


def split_variant(location: str) -> tuple[str, str]:
    """Split FILE:VARIANT into the expanded path and the variant, "" if there is none.

    A path may contain colons: it is the longest existing file, or ends at the first colon in the file's name.
    """
    pieces = expand(location).split(":")
    for count in range(len(pieces), 0, -1):
        if os.path.isfile(path := ":".join(pieces[:count])):
            return path, ":".join(pieces[count:])
    folder, slash, name = expand(location).rpartition("/")
    name, _, variant = name.partition(":")
    return folder + slash + name, variant


def look_up(path: str, folder: Path) -> str:
    """Find a relative path of a config file: in the current folder, otherwise in the file's folder and those above.

    A single word, such as "data", isn't looked up above. A path that isn't found is returned unchanged.
    """
    if not path or _exists(path):
        return path
    places = [folder, *folder.parents] if "/" in path or "." in path else [folder]
    return next((found for place in places if _exists(found := str(place / path))), path)


def _exists(path: str) -> bool:
    return os.path.exists(expand(path)) or os.path.isfile(split_variant(path)[0])
