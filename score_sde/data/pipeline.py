"""From a source to batches: the batch of step n is a function of (seed, n) and of nothing else.

Grain's `MapDataset` is random access all the way through, so a run that resumes at step n asks for batch n: the
position in the data is the step, and no iterator state is saved, which would be tied to a number of processes.
"""

import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Iterator
from typing import Any, TypeVar

import grain
import jax
import numpy as np
from absl import flags
from jax.typing import ArrayLike

from score_sde.data.examples import Source
from score_sde.errors import UserError, not_none

Pixels = TypeVar("Pixels", np.ndarray, jax.Array)


class Numbered:
    """A sequence of examples that say which they are, as "index"; labels are int32."""

    def __init__(self, examples: Any):
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self.examples[index]
        return {"image": example["image"], "label": np.int32(example["label"]), "index": np.int32(index)}


class Rows:
    """The rows of one process, out of every batch of a sequence of examples; no other row is ever read."""

    def __init__(self, examples: grain.MapDataset, batch_size: int, rows: slice):
        self.examples, self.batch_size, self.rows = examples, batch_size, rows

    def __len__(self) -> int:
        return len(self.examples) // self.batch_size * (self.rows.stop - self.rows.start)

    def __getitem__(self, index: int) -> dict[str, Any]:
        step, row = divmod(index, self.rows.stop - self.rows.start)
        return self.examples[step * self.batch_size + self.rows.start + row]


def examples(source: Source, seed: int, random_flip: bool = False) -> grain.MapDataset:
    """Endless random access to examples: each epoch visits each image once, in an order of its own."""
    dataset = grain.MapDataset.source(Numbered(source.examples)).seed(seed).shuffle().repeat()
    if random_flip:  # after `repeat`, so that an image's flip differs from epoch to epoch
        dataset = dataset.random_map(_flip)
    return dataset


def _flip(example, rng: np.random.Generator):
    return example | {"image": example["image"][:, ::-1]} if rng.integers(2) else example


def batches(
    source: Source,
    seed: int,
    batch_size: int,
    steps_per_call: int = 1,
    first_step: int = 0,
    random_flip: bool = False,
    num_threads: int = 2,
    num_workers: int = 0,
    rows: slice | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """The batches from step `first_step` on, `steps_per_call` at a time, read ahead.

    Args:
      source: of the examples.
      seed: of the order and the flips.
      batch_size: global, of all processes together.
      steps_per_call: how many batches are yielded at a time.
      first_step: the first batch's.
      random_flip: mirror each image with probability 1/2, each time it is visited.
      num_threads: that read, in this process.
      num_workers: processes that read in their place; 0: none.
      rows: of each batch, those that this process reads; None: all.

    Raises:
      UserError: while batches are taken, a process that reads has ended.

    Yields:
      {"image": (steps_per_call, rows, *image_shape), "label", "index": int32 (steps_per_call, rows)}; the index is an
      example's place in the source.
    """
    dataset, count = examples(source, seed, random_flip), batch_size
    if rows is not None and rows != slice(0, batch_size):
        dataset, count = grain.MapDataset.source(Rows(dataset, batch_size, rows)), rows.stop - rows.start
    read_ahead = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=4)  # in calls
    calls = dataset.batch(count).slice(slice(first_step, None)).batch(steps_per_call).to_iter_dataset(read_ahead)
    if num_workers:
        if not flags.FLAGS.is_parsed():  # Grain's workers read flags, also where no command line was
            flags.FLAGS.mark_as_parsed()
        calls = calls.mp_prefetch(grain.MultiprocessingOptions(num_workers=num_workers), worker_init_fn=_follow_parent)
        return _while_workers_live(iter(calls))
    return iter(calls)


def _while_workers_live(calls: Iterator[dict[str, np.ndarray]]) -> Iterator[dict[str, np.ndarray]]:
    try:
        yield from calls
    except RuntimeError as error:  # Grain's
        ended = re.search(r"Worker process was terminated unexpectedly with exit code (-?\d+)", str(error))
        if ended is None:
            raise
        raise UserError(
            f"data: expected its worker processes to live as long as the run, one ended with exit code "
            f"{ended.group(1)}: out of memory, or killed (set --config.data.num_workers; the same command goes on from "
            "the last checkpoint)"
        ) from None


def _follow_parent(worker: int, workers: int) -> None:
    """Ends a worker with its parent alone.

    Ctrl-C, SIGTERM and SIGHUP go to the whole group of processes, and the training asks for more until it has saved. A
    thread waits for the parent, as Linux's own signal at its death comes when the thread that started the worker ends.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(not_none(multiprocessing.parent_process()),), daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def to_unit_range(images: Pixels, levels: int | None) -> Pixels:
    """Pixels 0 .. levels - 1 to float32 in [-1, 1], or real numbers (levels None) as they are; NumPy and JAX arrays."""
    if levels is None:
        return images.astype("float32")
    return images.astype("float32") * (2.0 / (levels - 1)) - 1.0


def to_levels(images: ArrayLike, levels: int) -> np.ndarray:
    """Values in [-1, 1] to the nearest pixel value 0 .. levels - 1 (uint8), clipped: `to_unit_range`'s inverse."""
    return np.clip(np.round((np.asarray(images) + 1.0) * (0.5 * (levels - 1))), 0, levels - 1).astype(np.uint8)
