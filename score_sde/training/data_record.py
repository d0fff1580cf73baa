"""DIR/data.json, the record of a run's training data, by which a resume with other data is detected."""

import json
from pathlib import Path

from score_sde.data import Dataset
from score_sde.data.hashing import hash_dataset
from score_sde.errors import UserError
from score_sde.runtime import distributed
from score_sde.runtime.disk import UNREADABLE, read_json_object, report, write_atomically


def check_same_data(workdir: Path, source: Dataset, resumed: bool) -> None:
    """Record the training data of a new run, or compare those of a resumed run; call it on every process.

    A resumed run without a record, as older ones are, gets one.

    Args:
      workdir: Folder of the run.
      source: Training split.
      resumed: Whether the run resumes from a checkpoint.

    Raises:
      UserError: if the data are not those that the run began with.
    """
    problem = _compare(workdir / "data.json", source, resumed) if distributed.is_main_process() else ""
    if distributed.any_process(bool(problem)):
        raise UserError(problem or f"{workdir} holds a run of other data, according to process 0", "path", "workdir")


def _compare(path: Path, source: Dataset, resumed: bool) -> str:
    """Return the difference between the data and the record as a message, or ""; write a missing record."""
    now = {"examples": len(source.examples), "fingerprint": hash_dataset(source)}
    before = None
    if resumed and path.is_file():
        try:
            before = read_json_object(path)
        except UNREADABLE as error:
            report(f"{path} can't be read ({error}), so the data are assumed to be those of the run")
    if before is None:
        write_atomically(path, json.dumps(now) + "\n")
    if before in (None, now):
        return ""
    counts = f"{before.get('examples')} examples then, {now['examples']} now"
    return (
        f"{path.parent} holds a run of other data: "
        + ("as many examples, but not the same" if before.get("examples") == now["examples"] else counts)
        + f"; choose the run's data or another folder, or remove {path.name} to resume with these data"
    )
