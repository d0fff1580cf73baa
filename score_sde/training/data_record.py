"""DIR/data.json: the data set that a run trains on, so that a resume with another one is noticed."""

import json
from pathlib import Path

from score_sde.data import Dataset
from score_sde.data.hashing import hash_dataset
from score_sde.errors import UserError
from score_sde.runtime import distributed
from score_sde.runtime.disk import UNREADABLE, read_object, report, write_atomically


def check_same_data(workdir: Path, source: Dataset, resumed: bool) -> None:
    """Records the training data of a new run, and compares those of a resumed one; call it on every process.

    A run without a record, as older ones are, goes on and gets one.

    Args:
      workdir: the run's folder.
      source: the training split.
      resumed: whether the run goes on from a checkpoint.

    Raises:
      UserError: the data are not those that the run began with.
    """
    problem = _compared(workdir / "data.json", source, resumed) if distributed.is_main_process() else ""
    if distributed.any_process(bool(problem)):
        raise UserError(problem or f"{workdir} holds a run of other data, as process 0 says", "path", "workdir")


def _compared(path: Path, source: Dataset, resumed: bool) -> str:
    now = {"examples": len(source.examples), "fingerprint": hash_dataset(source)}
    before = None
    if resumed and path.is_file():
        try:
            before = read_object(path)
        except UNREADABLE as error:
            report(f"{path} can't be read ({error}), so the data are taken to be those of the run")
    if before is None:
        write_atomically(path, json.dumps(now) + "\n")
    if before in (None, now):
        return ""
    numbers = f"{before.get('examples')} examples then, {now['examples']} now"
    return (
        f"{path.parent} holds a run of other data: "
        + ("as many examples, but not the same" if before.get("examples") == now["examples"] else numbers)
        + f"; choose the run's data or another folder, or remove {path.name} to go on with these"
    )
