"""Where data comes from. A source is random access to `{"image": uint8 (height, width, channels), "label": int}`.

Or, for data that are not images, to `{"image": float32 (features,), ...}`. A new one is a function (split, path) ->
Source and an entry of `SOURCES`; what else it takes is `--config.data.kwargs`.
"""

import os
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np

from score_sde.data import cifar10, toys
from score_sde.data.examples import Arrays, Changed, Source, crop, pad, without_label
from score_sde.data.folders import image_folder, npz
from score_sde.data.idx import idx
from score_sde.errors import UserError, build, lookup
from score_sde.runtime.cache import cache_folder

SPLITS = ("train", "test")


def load(
    name: str,
    split: str,
    image_size: int,
    channels: int,
    path: str = "",
    kwargs: Mapping[str, Any] | None = None,
    cropped: bool = False,
) -> Source:
    """Opens a data set.

    Args:
      name: a key of `SOURCES`.
      split: "train" or "test".
      image_size: height and width that the network gets; smaller images are padded to it. 0: the data are not images.
      channels: what the images must have; the number of features of data that are not images.
      path: the folder the data set is in; "" is its usual place.
      kwargs: what the source takes beside these.
      cropped: whether images of another size are cut to a square about their centre and resized; those of a source
        whose images differ in size always are.

    Raises:
      UserError: the name or split is unknown, the data set is missing, or its images don't fit.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    given: dict[str, Any] = {"split": split, "path": path}
    if "channels" in signature(lookup("data set", SOURCES, name, "name")).parameters:
        given["channels"] = channels
    source = build("data set", SOURCES, name, given | dict(kwargs or {}))
    if image_size == 0 or len(source.image_shape) == 1:
        expected = (channels,) if image_size == 0 else (image_size, image_size, channels)
        if source.image_shape != expected:
            raise UserError(
                f"{name}: the data have the shape {source.image_shape}, not {expected} (set "
                "--config.data.channels, and --config.data.image_size, to 0 for data that are not images)"
            )
        return source
    height, width, found = source.image_shape
    if found != channels:
        raise UserError(f"{name}: the images have {found} channels, not {channels}", "channels")
    shape = (image_size, image_size, channels)
    if (height, width) == (image_size, image_size):
        return source
    if cropped or None in (height, width):
        return source._replace(examples=Changed(source.examples, partial(crop, size=image_size)), image_shape=shape)
    if max(height, width) > image_size:
        raise UserError(
            f"{name}: the images are {height}x{width}, larger than {image_size} (set --config.data.image_size, or "
            "--config.data.crop=True to cut and resize them)"
        )
    return source._replace(examples=Changed(source.examples, partial(pad, size=image_size)), image_shape=shape)


def digits(split: str, path: str = "") -> Source:
    """The UCI handwritten digits that ship with scikit-learn: 1,797 images, 8x8, 17 grey levels; 1,500 train, 297 test.

    The split is a fixed permutation: the file is ordered by writer, so its last images are of other hands.
    """
    from sklearn.datasets import load_digits

    if path:
        raise UserError(f"digits ships with scikit-learn and is not read from a folder, got --config.data.path={path}")
    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.images))
    chosen = order[:1500] if split == "train" else order[1500:]
    images = bunch.images[chosen].astype(np.uint8)[..., None]
    return Source(Arrays(images, bunch.target[chosen]), image_shape=(8, 8, 1), levels=17, num_classes=10)


def toy(split: str, path: str, draw: toys.Draw, num_examples: int) -> Source:
    """Points drawn once from a fixed seed: num_examples to train on, as many as that and at most 10,000 to test."""
    if path:
        raise UserError(f"toys are drawn, not read from a folder, got --config.data.path={path}")
    if num_examples < 1:
        raise UserError(f"a toy needs num_examples >= 1, got {num_examples}", "num_examples")
    train = split == "train"
    rng = np.random.default_rng(0 if train else 1)
    points, labels = draw(rng, num_examples if train else min(num_examples, 10_000))
    return Source(
        Arrays(points.astype(np.float32), labels), points.shape[1:], levels=None, num_classes=labels.max() + 1
    )


def mixture(split: str, path: str, means, stds, weights=(), num_examples: int = 10_000) -> Source:
    """A Gaussian mixture in any dimension (`toys.draw_mixture`)."""
    return toy(split, path, toys.draw_mixture(means, stds, weights), num_examples)


def two_moons(split: str, path: str, noise: float = 0.05, num_examples: int = 10_000) -> Source:
    """`toys.draw_two_moons`."""
    return toy(split, path, toys.draw_two_moons(noise), num_examples)


def swiss_roll(split: str, path: str, noise: float = 0.03, num_examples: int = 10_000) -> Source:
    """`toys.draw_swiss_roll`."""
    return toy(split, path, toys.draw_swiss_roll(noise), num_examples)


def checkerboard(split: str, path: str, num_examples: int = 10_000) -> Source:
    """`toys.draw_checkerboard`."""
    return toy(split, path, toys.draw_checkerboard(), num_examples)


def tfds(split: str, path: str, name: str, test_split: str = "test") -> Source:
    """An image set of TensorFlow Datasets, prepared as array_record; TensorFlow itself is not needed.

    Args:
      split: "train" or "test".
      path: the folder of TensorFlow Datasets; "" for its usual one.
      name: of the set, "cifar100", "celeb_a", with its config ("downsampled_imagenet/32x32").
      test_split: what the set calls its test split: some have "validation" alone.
    """
    import tensorflow_datasets

    try:
        builder = tensorflow_datasets.builder(name, data_dir=path or None)
    except (tensorflow_datasets.core.DatasetNotFoundError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"TensorFlow Datasets: {reason}", "name") from error
    folder = Path(os.fspath(builder.data_path))
    root = path or folder.parents[1]
    command = f"tfds build {name} --file_format=array_record --data_dir={root}"
    if not (folder / "dataset_info.json").is_file() and find_spec("tensorflow") is not None:
        _prepare(builder, name)
    if not (folder / "dataset_info.json").is_file():
        raise UserError(
            f"{name} is not prepared in {folder}. On a machine with network access and TensorFlow "
            f"(pip install tensorflow-cpu) run `{command}`; without network access here, run it there and copy "
            "the folder (set --config.data.path to the folder above it)"
        )
    if builder.info.file_format.value != "array_record":
        raise UserError(f"{name} in {folder} is {builder.info.file_format.value}, not array_record: run `{command}`")
    info, split = builder.info.features, test_split if split == "test" else split
    if split not in builder.info.splits or "image" not in info:
        raise UserError(
            f"{name} has the splits {', '.join(builder.info.splits)} and the features {', '.join(info)}; an "
            f"image and the split {split!r} are needed",
            "test_split",
        )
    classes = getattr(info["label"], "num_classes", None) if "label" in info else 1
    if classes is None:
        raise UserError(f"{name}: its label is no class, and the network would be told it as one")
    examples = builder.as_data_source(split)
    return Source(examples if "label" in info else Changed(examples, without_label), info["image"].shape, 256, classes)


def _prepare(builder: Any, name: str) -> None:
    """Downloads and prepares a set as array_record, with TensorFlow Datasets' own progress bars.

    Raises:
      UserError: if that fails, as without network.
    """
    try:
        builder.download_and_prepare(file_format="array_record")
    except Exception as error:  # of the network, the disk, or a set that needs files prepared by hand
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{name}: TensorFlow Datasets can't prepare it: {reason} (set --config.data.path to a folder where it is "
            "prepared)"
        ) from error


def cifar10_source(split: str, path: str) -> Source:
    """CIFAR-10: prepared by TensorFlow Datasets, or the authors' binary archive, which is downloaded where needed.

    Args:
      split: "train" or "test".
      path: The folder of TensorFlow Datasets, or the one with the archive or its extracted folder; "" for the usual
        folder of TensorFlow Datasets.

    Raises:
      UserError: if there are no such data and they can't be downloaded.
    """
    found = cifar10.find(path) if path else None
    if found is not None:
        return cifar10.read(split, found)
    folder = Path(path or os.environ.get("TFDS_DATA_DIR") or _home() / "tensorflow_datasets")
    if any(folder.glob("cifar10/*/dataset_info.json")) or find_spec("tensorflow") is not None:
        return tfds(split, path, "cifar10")
    return cifar10.read(split, cifar10.find(str(folder)) or cifar10.download(folder))


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:  # no home folder
        return cache_folder()


def _idx_or_tfds(split: str, path: str, name: str) -> Source:
    """IDX files where the folder has them, TensorFlow Datasets otherwise."""
    folder = Path(path)
    if path and (any(folder.glob("*-idx3-ubyte")) or any(folder.glob("*-idx3-ubyte.gz"))):
        return idx(split, path)
    if path and not (folder / name).is_dir():
        raise UserError(
            f"{name}: {path} holds neither IDX files (train-images-idx3-ubyte[.gz], ...) nor a TensorFlow Datasets "
            f"folder {name}; on a machine with network access and TensorFlow (pip install tensorflow-cpu) run "
            f"`tfds build {name} --file_format=array_record --data_dir={path}` (or set --config.data.path)"
        )
    return tfds(split, path, name)


SOURCES: dict[str, Callable[..., Source]] = {
    "digits": digits,
    "mixture": mixture,
    "two_moons": two_moons,
    "swiss_roll": swiss_roll,
    "checkerboard": checkerboard,
    "idx": idx,
    "mnist": partial(_idx_or_tfds, name="mnist"),
    "fashion_mnist": partial(_idx_or_tfds, name="fashion_mnist"),
    "cifar10": cifar10_source,
    "tfds": tfds,
    "image_folder": image_folder,
    "npz": npz,
}
