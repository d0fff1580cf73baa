"""What a run reports while it trains: metrics.jsonl, TensorBoard's event files (no TensorFlow) and a progress bar."""

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

from score_sde.errors import not_none
from score_sde.runtime import distributed
from score_sde.runtime.disk import report, set_aside, write_atomically


class MetricsLog:
    """Appends to DIR/metrics.jsonl and DIR/tensorboard; a resumed run first drops what it will write again.

    Of several processes only the first writes.
    """

    def __init__(self, workdir: Path, first_step: int):
        if not distributed.is_main_process():
            return
        self._path = workdir / "metrics.jsonl"
        _keep_up_to(self._path, first_step)
        self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step + 1)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """One JSON object on a line of its own, and one event a metric."""
        if not distributed.is_main_process():
            return
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")
        for name, value in metrics.items():
            self._events.add_scalar(name, value, step)
        self._events.flush()

    def close(self) -> None:
        if distributed.is_main_process():
            self._events.close()


def read_log(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The records of a metrics.jsonl, and the number of damaged lines; a last one without its end is being written."""
    *whole, last = path.read_bytes().split(b"\n") if path.is_file() else [b""]
    records = [_record(line) for line in whole if line.strip()]
    found = [record for record in (*records, _record(last)) if record is not None]
    return found, records.count(None)


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and type(record.get("step")) is int else None


def _keep_up_to(path: Path, step: int) -> None:
    """Drops the lines behind a step: a killed run logged more than it saved, and its last line may be cut short."""
    records, damaged = read_log(path)
    if damaged:
        kept = set_aside(path, path.parent)
        report(f"{path} has {damaged} line(s) that can't be read; it is kept in {kept}, and the others go on in place")
    if path.is_file() or records:
        lines = (json.dumps(record) for record in records if record["step"] <= step)
        write_atomically(path, "".join(f"{line}\n" for line in lines))


class Window:
    """The metrics since the last log, left on the devices until they are asked for, and the time that training took.

    The first call, which compiles, and pauses that are not training are not in that time.
    """

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._metrics: list[dict[str, jax.Array]] = []
        self._lengths: list[int] = []
        self._bad_before = 0  # steps that were not finite up to the last log, without a break
        self._last: float | None = None
        self._seconds, self._steps = 0.0, 0

    def add(self, metrics: dict[str, jax.Array], steps: int) -> None:
        """The metrics of a call of so many steps."""
        self._metrics.append(metrics)
        self._lengths.append(steps)
        if self._last is None:
            jax.block_until_ready(metrics)
        else:
            self.pause()
            self._steps += steps
        self.resume()

    def pause(self) -> None:
        """What follows, until `resume`, is not training."""
        self._seconds += time.perf_counter() - not_none(self._last)

    def resume(self) -> None:
        self._last = time.perf_counter()

    def nonfinite(self, step: int) -> tuple[int, int, int]:
        """Of the steps whose loss or gradient was not finite: the first since the last log, how many there were since
        then, and how many the last ones are without a break.

        Steps are counted from 0; within a call the bad ones are the last, as NaN stays for good.

        Args:
          step: how many are finished.
        """
        first, total, unbroken, passed = step, 0, self._bad_before, step - sum(self._lengths)
        for metrics, steps in zip(jax.device_get(self._metrics), self._lengths, strict=True):
            count = round(float(metrics["nonfinite"]) * steps)
            passed += steps
            if count and not total:
                first = passed - count
            total += count
            unbroken = unbroken + count if count == steps else count
        return first, total, unbroken

    def summary(self) -> dict[str, float]:
        """Means since the last summary, with steps and images a second once there is something to time."""
        _, _, self._bad_before = self.nonfinite(0)
        values = jax.device_get(self._metrics)
        record = {name: float(np.mean([value[name] for value in values])) for name in values[0] if name != "stop"}
        skipped = record.pop("nonfinite", 0.0)
        if skipped:  # those steps add 0 to the sums
            share = 1 - skipped or math.nan
            record = {name: value / share for name, value in record.items()} | {"skipped": skipped}
        self.pause()
        if self._steps:
            rate = self._steps / self._seconds
            record |= {"steps_per_second": rate, "images_per_second": rate * self._batch_size}
        self._metrics, self._lengths, self._seconds, self._steps = [], [], 0.0, 0
        self.resume()
        return record


def progress_bar(total: int, first: int, unit: str, description: str) -> tqdm:
    """A bar from `first` to `total` with the rate and the time left; without a terminal a line every 10 seconds."""
    quiet = not distributed.is_main_process() or sys.stderr is None
    interval = 0.2 if not quiet and sys.stderr.isatty() else 10.0
    return tqdm(
        total=total, initial=first, unit=unit, desc=description, mininterval=interval, dynamic_ncols=True, disable=quiet
    )
