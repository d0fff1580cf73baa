"""DIR/data.json, the record of what a run depends on besides its config: its data, classes and weight files."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from score_sde.data import Dataset
from score_sde.data.hashing import hash_dataset
from score_sde.errors import UserError
from score_sde.runtime import distributed
from score_sde.runtime.disk import UNREADABLE, read_json_object, report, write_atomically
from score_sde.runtime.hashing import hash_files


def check_inputs(workdir: Path, source: Dataset, weights: dict[str, str], resumed: bool) -> None:
    """Compare what a run depends on between processes and, if it resumes, with data.json; write data.json.

    Call it on every process. A resumed run without a record, as older ones are, gets one.

    Args:
      workdir: Folder of the run.
      source: Training split.
      weights: Files or folders of weights that the run starts from or uses, by their keys in the config.
      resumed: Whether the run resumes from a checkpoint.

    Raises:
      UserError: if the data or weights differ from those that the run began with, or between processes.
    """
    now = {
        "examples": len(source.examples),
        "sha256": hash_dataset(source),
        "class_names": list(source.class_names),
        "weights": {key: [path, hash_files(_files(Path(path)))] for key, path in weights.items()},
    }
    distributed.check_equal(now, "data and weights")
    problem = _compare(workdir / "data.json", now, resumed) if distributed.is_main_process() else ""
    if distributed.any_process(bool(problem)):
        raise UserError(problem or f"{workdir} holds a run of other data, according to process 0", "path", "workdir")


def class_names(workdir: Path) -> list[str]:
    """Return the names of a run's classes in data.json, [] if there are none."""
    with suppress(*UNREADABLE):
        return list(read_json_object(workdir / "data.json").get("class_names", []))
    return []


def _compare(path: Path, now: dict[str, Any], resumed: bool) -> str:
    """Return the difference from the record as a message, or ""; write the record if there is none."""
    before: dict[str, Any] = {}
    if resumed and path.is_file():
        try:
            before = read_json_object(path)
        except UNREADABLE as error:
            report(f"{path} can't be read ({error}), so the data are assumed to be those of the run")
    differences = []
    if before.get("examples", now["examples"]) != now["examples"]:
        differences.append(f"{before['examples']} examples then, {now['examples']} now")
    elif before.get("sha256", now["sha256"]) != now["sha256"]:
        differences.append("as many examples, but not the same")
    if before.get("class_names", now["class_names"]) != now["class_names"]:
        differences.append(f"the classes {before['class_names']} then, {now['class_names']} now")
    for key, (file, content) in now["weights"].items():
        file_before, content_before = before.get("weights", {}).get(key, (None, None))
        if file == file_before and content != content_before:
            differences.append(f"other weights in {file} ({key})")
    if not differences:
        write_atomically(path, json.dumps(now) + "\n")
        return ""
    return (
        f"{path.parent} holds a run of other data: {'; '.join(differences)}; choose the run's data or another folder, "
        f"or remove {path.name} to resume with these data"
    )


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
