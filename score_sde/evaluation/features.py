"""Features of images, computed on all devices, with their moments as they come; of real images kept on disk."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from score_sde.data import Dataset
from score_sde.data.hashing import hash_split
from score_sde.errors import not_none
from score_sde.evaluation.extractors import Extractor
from score_sde.evaluation.metrics import Moments, merge, moments_of
from score_sde.runtime import distributed
from score_sde.runtime.cache import cache_folder
from score_sde.runtime.disk import read_arrays, write_arrays
from score_sde.runtime.hashing import hash_json
from score_sde.training.metrics import progress_bar

ROWS = 64  # images a device at a time, always: what an image's features are depends neither on batches nor on devices
GATHERED = 1024  # vectors whose moments are taken together
KEPT = 10_000  # vectors of real images that are kept beside the moments of all, for KID and overlap


class Features(NamedTuple):
    """Of a set of images."""

    vectors: np.ndarray  # (n, d), the first of the set
    logits: np.ndarray  # (n, classes), of 0 classes where none are known
    moments: Moments  # of the whole set


class Split(NamedTuple):
    """Real images that samples are compared with."""

    source: Dataset
    number: int  # of its images, the first ones
    name: str
    fingerprint: str


def split_of(source: Dataset, data: dict[str, Any], name: str, limit: int) -> Split:
    """The first images of a split, at most `limit`."""
    number = min(limit, len(source.examples))
    return Split(source, number, name, hash_split(source, data, name, number))


def make_extract(extractor: Extractor) -> Callable[..., Features]:
    """Compiles an extractor for all devices; of several processes each does its part, and all get the whole.

    Returns:
      (rows, number, kept=None, name="features") -> Features of `number` images, where rows(indices) gives pixels (n,
      height, width, channels) uint8 and `kept` is how many vectors and logits stay beside the moments (None: all). No
      image is left out, and none counted twice.
    """
    devices = jax.local_devices()
    params = jax.device_put(extractor.params, devices[0])
    compiled = jax.pmap(extractor.apply, in_axes=(None, 0), devices=devices)
    whole = ROWS * len(devices) * jax.process_count()

    def extract(rows, number, kept=None, name="features") -> Features:
        kept = number if kept is None else kept
        parts, waiting, total = [], [], None
        with progress_bar(number, 0, "image", name) as bar:
            for first in range(0, number, whole):
                places = np.minimum(np.arange(first, first + whole), number - 1)  # the last batch is filled up
                prepared = extractor.prepare(rows(places[distributed.local_slice(whole)]))
                found = compiled(params, prepared.reshape(len(devices), ROWS, *prepared.shape[1:]))
                mine = [np.asarray(part).reshape(ROWS * len(devices), part.shape[-1]) for part in found]
                vectors, logits = (part[: number - first] for part in distributed.all_gather(mine))
                if first < kept:
                    parts.append((vectors, logits))
                waiting.append(vectors)
                last = first + whole >= number
                if last or sum(map(len, waiting)) >= GATHERED:
                    moments = moments_of(np.concatenate(waiting))
                    total = moments if total is None else merge(total, moments)
                    waiting = []
                bar.update(len(vectors))
        vectors, logits = (np.concatenate(column)[:kept] for column in zip(*parts, strict=True))
        return Features(vectors, logits, not_none(total))

    return extract


def of_real(extract: Callable[..., Features], extractor: Extractor, split: Split) -> Features:
    """A split's features; kept on disk, in `cache_folder()`, under a hash of the split and the extractor."""
    key = hash_json(split.fingerprint, extractor.fingerprint, KEPT, Moments._fields)
    path = cache_folder() / "statistics" / f"{key}.npz"
    stored = read_arrays(path)
    if stored is not None:
        moments = Moments(int(stored["number"]), stored["mean"], stored["scatter"])
        return Features(stored["vectors"], stored["logits"], moments)
    examples = split.source.examples
    found = extract(lambda places: np.stack([examples[i]["image"] for i in places]), split.number, KEPT, split.name)
    if distributed.is_main_process():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_arrays(path, {"vectors": found.vectors, "logits": found.logits, **found.moments._asdict()})
    return found
