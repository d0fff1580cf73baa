"""Input pipeline: the batch of step n is a function of (seed, n) and of nothing else.

Grain's `MapDataset` has random access at every stage, so the training step gives the position in the data. No iterator
state is saved, because it would depend on the number of processes.
"""

import multiprocessing
import os
import queue
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags

from score_sde.data.examples import Dataset, Examples
from score_sde.errors import UserError, not_none
from score_sde.runtime.distributed import exit_with_message

if TYPE_CHECKING:  # Grain loads Orbax, and the mathematics imports this package
    import grain


class IndexedExamples:
    """Examples with their index in the data set as "index", and with int32 labels."""

    def __init__(self, examples: Examples):
        """Wrap a sequence of examples."""
        self.examples = examples

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return the example at an index."""
        example = self.examples[index]
        return {"image": example["image"], "label": np.int32(example["label"]), "index": np.int32(index)}


class LocalExamples:
    """Examples of one process: the same slice of every global batch; other examples are never read."""

    def __init__(self, examples: "grain.MapDataset", batch_size: int, rows: slice):
        """Restrict a sequence of examples.

        Args:
          examples: Examples of all processes, in the order of the global batches.
          batch_size: Size of the global batch.
          rows: Slice of the global batch that this process reads.
        """
        self.examples, self.batch_size, self.rows = examples, batch_size, rows

    def __len__(self) -> int:
        """Return the number of examples in whole global batches."""
        return len(self.examples) // self.batch_size * (self.rows.stop - self.rows.start)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return the example at an index among those of this process."""
        step, row = divmod(index, self.rows.stop - self.rows.start)
        return self.examples[step * self.batch_size + self.rows.start + row]


def _shuffle(dataset: Dataset, seed: int, random_flip: bool) -> "grain.MapDataset":
    """Return an endless sequence of examples: every epoch visits each example once, in a new random order."""
    import grain

    shuffled = grain.MapDataset.source(IndexedExamples(dataset.examples)).seed(seed).shuffle().repeat()
    # The flip follows `repeat`, so that it differs between the epochs.
    return shuffled.random_map(_flip) if random_flip else shuffled


def _flip(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    return example | {"image": example["image"][:, ::-1]} if rng.integers(2) else example


def batches(
    dataset: Dataset,
    seed: int,
    batch_size: int,
    steps_per_call: int = 1,
    first_step: int = 0,
    random_flip: bool = False,
    num_threads: int = 2,
    num_workers: int = 0,
    rows: slice | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Iterate over the batches from step `first_step` on; batches are read ahead.

    Args:
      dataset: Data set.
      seed: Seed of the order and of the flips.
      batch_size: Size of the global batch, over all processes.
      steps_per_call: Number of batches that are yielded at a time.
      first_step: Step of the first batch.
      random_flip: Whether to mirror each image with probability 1/2 at every visit.
      num_threads: Number of reader threads.
      num_workers: Number of reader processes; 0 reads in this process.
      rows: Slice of the global batch that this process reads; None reads all of it.

    Yields:
      {"image": (steps_per_call, rows, *image_shape), "label": int32 (steps_per_call, rows), "index": int32
      (steps_per_call, rows)}, where the index is the example's index in the data set.

    Raises:
      UserError: if a reader process has ended, on taking a batch.
    """
    import grain

    sequence, count = _shuffle(dataset, seed, random_flip), batch_size
    if rows is not None and rows != slice(0, batch_size):
        sequence, count = grain.MapDataset.source(LocalExamples(sequence, batch_size, rows)), rows.stop - rows.start
    read_ahead = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=4)  # in calls
    calls = sequence.batch(count).slice(slice(first_step, None)).batch(steps_per_call).to_iter_dataset(read_ahead)
    if num_workers:
        if not flags.FLAGS.is_parsed():  # Grain's workers read absl flags, which only a command line parses
            flags.FLAGS.mark_as_parsed()
        calls = calls.mp_prefetch(grain.MultiprocessingOptions(num_workers=num_workers), worker_init_fn=_follow_parent)
        return _while_workers_live(iter(calls))
    return iter(calls)


def _while_workers_live(calls: Iterator[dict[str, np.ndarray]]) -> Iterator[dict[str, np.ndarray]]:
    """Iterate over calls in a thread, because Grain notices the end of a reader process only once it has started.

    Python's multiprocessing waits forever to send the data set to a process that died before it has received it, and
    then neither returns nor lets the program end.

    Raises:
      UserError: if a reader process has ended.
    """
    taken: queue.Queue[Any] = queue.Queue(maxsize=1)

    def take() -> None:
        try:
            for call in calls:
                taken.put((call, None))
        except BaseException as error:
            taken.put((None, error))

    threading.Thread(target=take, daemon=True).start()
    dead: set[str] = set()
    while True:
        try:
            call, error = taken.get(timeout=5.0)
        except queue.Empty:
            if dead & (dead := _zombies()):  # Grain would have noticed within these five seconds
                exit_with_message("data: a reader process died while it started (out of memory, or killed)")
            continue
        if error is None:
            yield call
            continue
        ended = re.search(r"Worker process was terminated unexpectedly with exit code (-?\d+)", str(error))
        if ended is None:
            raise error
        raise UserError(
            f"data: a reader process died with exit code {ended.group(1)} (out of memory, or killed); the same command "
            "resumes from the last checkpoint",
            "num_workers",
        ) from None


def _zombies() -> set[str]:
    """Return the children of this process that have ended but were not waited for, on Linux."""
    found = set()
    for path in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):  # a thread or a child may end meanwhile
            found |= {n for n in path.read_text().split() if ") Z" in Path(f"/proc/{n}/stat").read_text()}
    return found


def _follow_parent(worker: int, workers: int) -> None:
    """End a reader process only with its parent.

    SIGINT, SIGTERM and SIGHUP go to the whole process group, but the training reads batches until it has saved its
    final checkpoint. A thread waits for the parent. Linux's parent-death signal does not serve, because it is sent when
    the thread that started the worker ends.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(not_none(multiprocessing.parent_process()),), daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)
