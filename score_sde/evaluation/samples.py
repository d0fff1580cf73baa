"""Samples of an evaluation, kept on disk batch by batch, so that a killed one goes on where it was."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from score_sde.data import to_levels
from score_sde.errors import not_none
from score_sde.experiment import Experiment
from score_sde.runtime import distributed
from score_sde.runtime.disk import read_arrays, write_arrays
from score_sde.runtime.hashing import hash_json, hash_pytree
from score_sde.training.metrics import progress_bar

FOLDER = "evaluation"  # in a run's folder, while samples are drawn
FREE = ("num_samples", "batch_size")  # of config.sampling: they change no sample


class Samples(NamedTuple):
    """Of one set of parameters."""

    x: np.ndarray  # (n, *event): pixels where the data are, else float32
    nfe: float | None  # evaluations of the network a sample, on average, if they are known


def draw(experiment: Experiment, params: Any, number: int, levels: int | None, workdir: Path) -> Samples:
    """So many samples; those that an evaluation with the same settings drew before it was killed are not drawn again.

    Args:
      experiment: the parts of a run.
      params: the network's parameters.
      number: of samples.
      levels: of the pixels; None: the data are no pixels.
      workdir: the run's folder; the parts lie in DIR/evaluation/<hash of all that decides a sample>.
    """
    sampler = not_none(experiment.sampler)
    folder = workdir / FOLDER / _key(experiment, params)
    if distributed.is_main_process():
        folder.mkdir(parents=True, exist_ok=True)
    distributed.barrier("evaluation's folder")
    parts = _drawn(folder)
    done = sum(len(part["x"]) for part in parts)
    with progress_bar(number, min(done, number), "image", "samples") as bar:
        for batch in sampler.draw(params, number, done):
            x = batch.x if levels is None else to_levels(batch.x, levels)
            part: dict[str, Any] = {"x": x} | ({} if batch.nfe is None else {"nfe": batch.nfe})
            if distributed.is_main_process():
                write_arrays(folder / f"{done:09d}.npz", part)
            parts.append(part)
            done += len(x)
            bar.update(len(x))
    x = np.concatenate([part["x"] for part in parts])[:number]
    nfe = np.concatenate([part["nfe"] for part in parts])[:number].mean() if "nfe" in parts[0] else None
    return Samples(x, None if nfe is None else float(nfe))


def _drawn(folder: Path) -> list[dict[str, np.ndarray]]:
    """The parts on disk, in order, up to one that is missing or damaged; with several processes the same on all."""
    parts, done = [], 0
    while (part := read_arrays(folder / f"{done:09d}.npz")) is not None:
        parts.append(part)
        done += len(part["x"])
    distributed.barrier("evaluation's parts")  # nothing is added before all have looked
    return parts


def _key(experiment: Experiment, params: Any) -> str:
    config = experiment.config
    sampling = {name: value for name, value in config["sampling"].items() if name not in FREE}
    decides = [config["seed"], config["sde"], config["model"], config["data"], sampling]
    return hash_json(decides, hash_pytree((params, not_none(experiment.sampler).beside())))
