"""From a source to batches: the batch of step n is a function of (seed, n) and of nothing else.

Grain's `MapDataset` is random access all the way through, so a run that resumes at step n asks for batch n: the
position in the data is the step, and no iterator state is saved.
"""

from collections.abc import Iterator

import grain
import jax.numpy as jnp
import numpy as np

from score_sde.data.sources import Source


def examples(source: Source, seed: int, random_flip: bool = False) -> grain.MapDataset:
    """Endless random access to examples: each epoch visits each image once, in an order of its own."""
    dataset = grain.MapDataset.source(source.examples).seed(seed)
    dataset = dataset.map(lambda example: {"image": example["image"], "label": np.int32(example["label"])})
    dataset = dataset.shuffle().repeat()
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
) -> Iterator[dict[str, np.ndarray]]:
    """The batches from step `first_step` on, `steps_per_call` at a time, read ahead by a few threads.

    Yields:
      {"image": uint8 (steps_per_call, batch_size, *image_shape), "label": int32 (steps_per_call, batch_size)}
    """
    dataset = examples(source, seed, random_flip).batch(batch_size).slice(slice(first_step, None))
    read_ahead = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=4)  # in calls
    return iter(dataset.batch(steps_per_call).to_iter_dataset(read_ahead))


def to_unit_range(images: jnp.ndarray, levels: int | None) -> jnp.ndarray:
    """Pixels 0 .. levels - 1 to float32 in [-1, 1], or real numbers (levels None) as they are; NumPy and JAX arrays."""
    if levels is None:
        return images.astype("float32")
    return images.astype("float32") * (2.0 / (levels - 1)) - 1.0


def to_levels(images: np.ndarray, levels: int) -> np.ndarray:
    """Values in [-1, 1] to the nearest pixel value 0 .. levels - 1 (uint8), clipped: `to_unit_range`'s inverse."""
    return np.clip(np.round((np.asarray(images) + 1.0) * (0.5 * (levels - 1))), 0, levels - 1).astype(np.uint8)
