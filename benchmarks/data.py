"""Images per second of the input pipeline, compared with those of a train step on this machine.

    python benchmarks/data.py [--rounds=5] [--batches=100] [--size=20000]

The sources are 32x32x3 images in memory, an array_record file of PNG images as TensorFlow Datasets writes it, and PNG
files in folders, in batches of 128; "one host of two" reads half of each batch. "over step" is the rate divided by that
of train steps of `configs/vp_digits.py` in the same run. Values are medians over rounds. The first batches, which start
the threads, are excluded.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs as a file, too

import io
import tempfile
import time

import numpy as np
from absl import app, flags
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from benchmarks.report import load_config, median, show
from benchmarks.train_step import ours
from score_sde.data import batches
from score_sde.data.examples import Arrays, Dataset
from score_sde.data.folders import image_folder

FLAGS = flags.FLAGS
flags.DEFINE_integer("size", 20_000, "images in a set")
flags.DEFINE_integer("batches", 100, "batches of 128 that are timed")
BATCH = 128


class Records:
    """PNG images in an array_record file, decoded on access."""

    def __init__(self, path: str):
        self._source = ArrayRecordDataSource([path])

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict:
        record = self._source[index]
        with Image.open(io.BytesIO(record[1:])) as picture:
            return {"image": np.asarray(picture), "label": record[0]}


def encoded(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    return buffer.getvalue()


def sources(folder: Path, size: int) -> dict[str, Dataset]:
    """Return the same images in memory, in one record file, and in a folder of files."""
    rng = np.random.default_rng(0)
    # Smooth, as photographs are, so that they decode as fast.
    coarse = rng.integers(0, 256, (size, 8, 8, 3), np.uint8)
    images = coarse.repeat(4, 1).repeat(4, 2)
    shape, labels = images.shape[1:], rng.integers(0, 10, size)
    writer = ArrayRecordWriter(str(folder / "set.array_record"), "group_size:1")
    for i in range(size):
        writer.write(bytes([labels[i]]) + encoded(images[i]))
    writer.close()
    for i in range(min(size, 2000)):
        path = folder / "files" / "train" / str(labels[i]) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(images[i]))
    pictures = image_folder("train", str(folder / "files"))
    return {
        "memory": Dataset(Arrays(images, labels), shape, 256, 10),
        "array_record": Dataset(Records(str(folder / "set.array_record")), shape, 256, 10),
        "folder": pictures._replace(image_shape=shape),
    }


def rate(source: Dataset, number: int, **options) -> float:
    """Return the images per second."""
    iterator = batches(source, 0, BATCH, **options)
    rows = 0
    for _ in range(5):
        next(iterator)
    started = time.perf_counter()
    for _ in range(number):
        rows += next(iterator)["image"].shape[1]
    return rows / (time.perf_counter() - started)


def main(argv):
    del argv
    config = load_config("digits", BATCH)
    step, _ = ours(config, 1)
    step()
    seconds = []
    for _ in range(FLAGS.rounds):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    needed = BATCH / median(seconds)
    with tempfile.TemporaryDirectory() as folder:
        made = sources(Path(folder), FLAGS.size)
        cases = {
            "memory": (made["memory"], {}),
            "memory, flips": (made["memory"], {"random_flip": True}),
            "memory, flips, 4 threads": (made["memory"], {"random_flip": True, "num_threads": 4}),
            "memory, one host of two": (made["memory"], {"rows": slice(0, BATCH // 2)}),
            "array_record": (made["array_record"], {}),
            "array_record, flips": (made["array_record"], {"random_flip": True}),
            "array_record, 2 processes": (made["array_record"], {"num_workers": 2}),
            "folder": (made["folder"], {}),
        }
        rows = []
        for name, (source, options) in cases.items():
            rates = [rate(source, FLAGS.batches, **options) for _ in range(FLAGS.rounds)]
            rows.append({"source": name, "images/s": median(rates), "over step": median(rates) / needed})
    show(f"Input pipeline, batches of {BATCH} of 32x32x3; the step needs {needed:.0f} images/s", rows)


if __name__ == "__main__":
    app.run(main)
