"""Data sets and batches from a config."""

from collections.abc import Iterator

from ml_collections import ConfigDict

from score_sde import data
from score_sde.data.examples import standardize
from score_sde.experiment.flags import naming_flags, plain


def load_split(config: ConfigDict, split: str) -> data.Dataset:
    """Return a split ("train", "test") of the data set of config.data."""
    options = config.data
    names = ("image_size", "channels", "path", "crop", "kwargs")
    with naming_flags(config, "data.kwargs", **{"data set": "data.name"} | {name: f"data.{name}" for name in names}):
        source = data.load(
            options.name,
            split,
            options.image_size,
            options.channels,
            options.path,
            plain(options.kwargs),
            options.crop,
        )
        return standardize(source, options.mean, options.std) if options.std else source


def batches(config: ConfigDict, source: data.Dataset, first_step: int, rows: slice | None = None) -> Iterator:
    """Iterate over the batches of a run; see `data.batches`."""
    return data.batches(
        source,
        config.seed,
        config.training.batch_size,
        config.training.steps_per_call,
        first_step,
        config.data.random_flip,
        config.data.num_threads,
        config.data.num_workers,
        rows,
    )


def event_shape(config: ConfigDict) -> tuple[int, ...]:
    """Return the shape of one example."""
    size, channels = config.data.image_size, config.data.channels
    return (size, size, channels) if size else (channels,)
