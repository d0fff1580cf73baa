"""Samples of an evaluation, stored batch by batch, so that a killed evaluation resumes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from score_sde.data import to_levels
from score_sde.runtime import distributed
from score_sde.runtime.disk import read_arrays, write_arrays
from score_sde.runtime.hashing import hash_json, hash_pytree
from score_sde.sampling import Sampler
from score_sde.training.metrics import progress_bar

FOLDER = "evaluation"  # subfolder of a run, until the results are written
IGNORED = ("num_samples", "batch_size")  # options of sampling that samples don't depend on


class Samples(NamedTuple):
    """Samples of one set of parameters.

    Attributes:
      x: (n, *event) samples, which are pixels if the data are, otherwise float32.
      nfe: Mean number of network evaluations per sample; None if the solver can't count them.
      effective_sample_size: Mean effective sample size of weighted particles; None without them.
    """

    x: np.ndarray
    nfe: float | None
    effective_sample_size: float | None


def generate_samples(
    sampler: Sampler, params: Any, num_samples: int, levels: int | None, config: Mapping[str, Any], workdir: Path
) -> Samples:
    """Generate samples, or load those that an interrupted evaluation with the same settings has stored.

    Args:
      sampler: Sampler.
      params: Parameters of the network.
      num_samples: Number of samples.
      levels: Number of pixel levels; None for data that are not pixels.
      config: Resolved config of the run.
      workdir: Folder of the run; batches are stored in DIR/evaluation/<hash of the settings>.
    """
    folder = workdir / FOLDER / _key(sampler, params, config)
    if distributed.is_main_process():
        folder.mkdir(parents=True, exist_ok=True)
    distributed.barrier("evaluation's folder")
    parts = _stored(folder)
    done = sum(len(part["x"]) for part in parts)
    with progress_bar(num_samples, min(done, num_samples), "image", "samples") as bar:
        for batch in sampler.batches(params, num_samples, first=done):
            x = batch.x if levels is None else to_levels(batch.x, levels)
            counts = {"nfe": batch.nfe, "effective_sample_size": batch.effective_sample_size}
            part: dict[str, Any] = {"x": x} | {name: value for name, value in counts.items() if value is not None}
            if distributed.is_main_process():
                write_arrays(folder / f"{done:09d}.npz", part)
            parts.append(part)
            done += len(x)
            bar.update(len(x))

    def mean(name: str) -> float | None:
        if name not in parts[0]:
            return None
        return float(np.concatenate([part[name] for part in parts])[:num_samples].mean())

    x = np.concatenate([part["x"] for part in parts])[:num_samples]
    return Samples(x, mean("nfe"), mean("effective_sample_size"))


def _stored(folder: Path) -> list[dict[str, np.ndarray]]:
    """Return the stored batches in order, up to one that is missing or damaged; the same on all processes."""
    parts, done = [], 0
    while (part := read_arrays(folder / f"{done:09d}.npz")) is not None:
        parts.append(part)
        done += len(part["x"])
    distributed.barrier("evaluation's parts")  # no process adds a batch before all have read
    return parts


def _key(sampler: Sampler, params: Any, config: Mapping[str, Any]) -> str:
    sampling = {name: value for name, value in config["sampling"].items() if name not in IGNORED}
    options = [config["seed"], config["sde"], config["model"], config["data"], sampling]
    measured = () if sampler.task is None else sampler.measured()
    return hash_json(options, hash_pytree((params, sampler.arguments(), measured)))
