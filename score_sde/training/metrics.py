"""Training metrics: metrics.jsonl, TensorBoard event files (without TensorFlow) and the progress bar."""

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

from score_sde.errors import escape, not_none
from score_sde.runtime import distributed
from score_sde.runtime.disk import quarantine, report, write_atomically


class MetricsLog:
    """The log of a run in DIR/metrics.jsonl and DIR/tensorboard, written by the main process only."""

    def __init__(self, workdir: Path, first_step: int):
        """Open the log, and drop the records after `first_step`, which a resumed run writes again."""
        if not distributed.is_main_process():
            return
        self._path = workdir / "metrics.jsonl"
        _drop_after(self._path, first_step)
        self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step + 1)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Write the metrics of a step, as a line of JSON and as one TensorBoard event per metric."""
        if not distributed.is_main_process():
            return
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")
        for name, value in metrics.items():
            self._events.add_scalar(name, value, step)
        self._events.flush()

    def close(self) -> None:
        """Close the event file."""
        if distributed.is_main_process():
            self._events.close()


def read_log(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the records of a metrics.jsonl, and the number of damaged lines.

    A last line without a newline is not damaged, since it may be in the course of being written.
    """
    *complete, last = path.read_bytes().split(b"\n") if path.is_file() else [b""]
    records = [_record(line) for line in complete if line.strip()]
    readable = [record for record in (*records, _record(last)) if record is not None]
    return readable, records.count(None)


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and type(record.get("step")) is int else None


def _drop_after(path: Path, step: int) -> None:
    """Drop the lines after a step; a killed run logged more than it saved, and its last line may be incomplete."""
    records, damaged = read_log(path)
    if damaged:
        copy = quarantine(path, path.parent)
        report(f"{path} has {damaged} line(s) that can't be read; the file is kept in {copy}, its other lines stay")
    if path.is_file() or records:
        lines = (json.dumps(record) for record in records if record["step"] <= step)
        write_atomically(path, "".join(f"{line}\n" for line in lines))


class MetricAccumulator:
    """The metrics since the last log, which stay on the devices until they are logged, and the training time.

    The time includes neither the first call, which compiles, nor pauses.
    """

    def __init__(self, batch_size: int):
        """Start without metrics.

        Args:
          batch_size: Global batch size.
        """
        self._batch_size = batch_size
        self._metrics: list[dict[str, jax.Array]] = []
        self._lengths: list[int] = []
        self._nonfinite_before = 0  # consecutive nonfinite steps up to the last log
        self._last: float | None = None  # start of the time that is not yet counted
        self._seconds, self._steps = 0.0, 0

    def add(self, metrics: dict[str, jax.Array], steps: int) -> None:
        """Add the mean metrics of a call of `steps` steps."""
        self._metrics.append(metrics)
        self._lengths.append(steps)
        if self._last is None:
            jax.block_until_ready(metrics)
        else:
            self.pause()
            self._steps += steps
        self.resume()

    def pause(self) -> None:
        """Stop the clock until `resume`."""
        self._seconds += time.perf_counter() - not_none(self._last)

    def resume(self) -> None:
        """Start the clock."""
        self._last = time.perf_counter()

    def nonfinite(self, step: int) -> tuple[int, int, int]:
        """Return (first, total, consecutive) of the steps whose loss or gradient was not finite.

        Steps are counted from 0. Within a call the nonfinite steps are assumed to be the last ones, as NaN persists.

        Args:
          step: Number of finished steps.

        Returns:
          The first nonfinite step since the last log, their number since then, and the number of consecutive nonfinite
          steps up to the last step.
        """
        first, total, consecutive, passed = step, 0, self._nonfinite_before, step - sum(self._lengths)
        for metrics, steps in zip(jax.device_get(self._metrics), self._lengths, strict=True):
            count = round(float(metrics["nonfinite"]) * steps)
            passed += steps
            if count and not total:
                first = passed - count
            total += count
            consecutive = consecutive + count if count == steps else count
        return first, total, consecutive

    def summary(self) -> dict[str, float]:
        """Return the means since the last summary, with steps and images per second after the first call."""
        _, _, self._nonfinite_before = self.nonfinite(0)
        values = jax.device_get(self._metrics)
        record = {name: float(np.mean([value[name] for value in values])) for name in values[0] if name != "stop"}
        skipped = record.pop("nonfinite", 0.0)
        if skipped:  # skipped steps add 0 to the sums
            fraction = 1 - skipped or math.nan
            record = {name: value / fraction for name, value in record.items()} | {"skipped": skipped}
        self.pause()
        if self._steps:
            rate = self._steps / self._seconds
            record |= {"steps_per_second": rate, "images_per_second": rate * self._batch_size}
        self._metrics, self._lengths, self._seconds, self._steps = [], [], 0.0, 0
        self.resume()
        return record


def progress_bar(total: int, first: int, unit: str, description: str) -> tqdm:
    """Return a bar from `first` to `total` with the rate and the remaining time.

    Without a terminal it prints a line every 10 seconds.
    """
    quiet = not distributed.is_main_process() or sys.stderr is None
    interval = 0.2 if not quiet and sys.stderr.isatty() else 10.0
    return tqdm(
        total=total,
        initial=first,
        unit=unit,
        desc=escape(description),
        mininterval=interval,
        dynamic_ncols=True,
        disable=quiet,
    )
