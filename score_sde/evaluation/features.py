"""Features of images and their moments, computed on all devices; those of real images are cached on disk."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from score_sde.data import Dataset
from score_sde.data.hashing import hash_split
from score_sde.errors import not_none
from score_sde.evaluation.extractors import Extractor
from score_sde.evaluation.metrics import Moments, compute_moments, merge
from score_sde.runtime import distributed
from score_sde.runtime.cache import cache_folder
from score_sde.runtime.disk import read_arrays, write_arrays
from score_sde.runtime.hashing import hash_json
from score_sde.runtime.periodic import announcing
from score_sde.training.metrics import progress_bar

BATCH_PER_DEVICE = 64  # constant, so that an image's features depend neither on the batch size nor on the devices
MOMENT_CHUNK = 1024  # vectors that are reduced to moments at a time
NUM_STORED_FEATURES = 10_000  # feature vectors of real images that are stored besides the moments, for KID and PRDC
STORED_MOMENTS = ("number", "mean", "scatter")  # names of `Moments` in the cache


class Features(NamedTuple):
    """Features of a set of images.

    Attributes:
      vectors: (n, d) features of the first n images.
      logits: (n, num_classes) logits of the same images, with num_classes 0 for an extractor without classes.
      moments: Moments of the features of the whole set.
    """

    vectors: np.ndarray
    logits: np.ndarray
    moments: Moments


class Split(NamedTuple):
    """Real images that samples are compared with.

    Attributes:
      source: Images of the split.
      num_images: Number of images that are used, the first ones.
      name: Name of the split.
      fingerprint: Hash of the images that are used.
    """

    source: Dataset
    num_images: int
    name: str
    fingerprint: str


def make_split(source: Dataset, data: dict[str, Any], name: str, limit: int) -> Split:
    """Return the first images of a split.

    Args:
      source: Images of the split.
      data: Config of the data.
      name: Name of the split.
      limit: Maximum number of images.
    """
    count = min(limit, len(source.examples))
    return Split(source, count, name, hash_split(source, data, name, count))


def make_extract(extractor: Extractor) -> Callable[..., Features]:
    """Compile an extractor for all devices; each process computes its rows, and all processes get the whole result.

    Returns:
      (rows, count, num_stored=None, name="features") -> Features of `count` images. rows(indices) returns pixels (n,
      height, width, channels) uint8. `num_stored` is the number of vectors and logits in the result (None: all); the
      moments are those of every image, counted once. `name` labels the progress bar.
    """
    devices = jax.local_devices()
    params = jax.device_put(extractor.params, devices[0])
    compiled = announcing(jax.pmap(extractor.apply, in_axes=(None, 0), devices=devices), "compiling the features")
    batch = BATCH_PER_DEVICE * len(devices) * jax.process_count()

    def extract(rows, count, num_stored=None, name="features") -> Features:
        num_stored = count if num_stored is None else num_stored
        stored, pending, total = [], [], None
        with progress_bar(count, 0, "image", name) as bar:
            for first in range(0, count, batch):
                indices = np.minimum(np.arange(first, first + batch), count - 1)  # pads the last batch
                prepared = extractor.prepare(rows(indices[distributed.local_slice(batch)]))
                outputs = compiled(params, prepared.reshape(len(devices), BATCH_PER_DEVICE, *prepared.shape[1:]))
                local = [
                    np.asarray(output).reshape(BATCH_PER_DEVICE * len(devices), output.shape[-1]) for output in outputs
                ]
                vectors, logits = (output[: count - first] for output in distributed.all_gather(local))
                if first < num_stored:
                    stored.append((vectors, logits))
                pending.append(vectors)
                last = first + batch >= count
                if last or sum(map(len, pending)) >= MOMENT_CHUNK:
                    moments = compute_moments(np.concatenate(pending))
                    total = moments if total is None else merge(total, moments)
                    pending = []
                bar.update(len(vectors))
        vectors, logits = (np.concatenate(column)[:num_stored] for column in zip(*stored, strict=True))
        return Features(vectors, logits, not_none(total))

    return extract


def real_features(extract: Callable[..., Features], extractor: Extractor, split: Split) -> Features:
    """Return the features of a split; they are cached on disk by a hash of the split and the extractor."""
    key = hash_json(split.fingerprint, extractor.fingerprint, NUM_STORED_FEATURES, STORED_MOMENTS)
    path = cache_folder() / "statistics" / f"{key}.npz"
    arrays = read_arrays(path)
    if arrays is not None:
        moments = Moments(int(arrays["number"]), arrays["mean"], arrays["scatter"])
        return Features(arrays["vectors"], arrays["logits"], moments)
    examples = split.source.examples

    def rows(indices):
        return np.stack([examples[i]["image"] for i in indices])

    features = extract(rows, split.num_images, NUM_STORED_FEATURES, split.name)
    if distributed.is_main_process():
        path.parent.mkdir(parents=True, exist_ok=True)
        stored = dict(zip(STORED_MOMENTS, features.moments, strict=True))
        write_arrays(path, {"vectors": features.vectors, "logits": features.logits, **stored})
    return features
