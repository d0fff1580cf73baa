"""Loading of data sets by name.

An example is `{"image": uint8 (height, width, channels), "label": int}`; for data that are not images, the "image" is
float32 (features,). A new data set is a function (split, path, ...) -> Dataset and an entry of `DATASETS`.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np

from score_sde.data import cifar10, toys
from score_sde.data.examples import Arrays, Dataset, MappedDataset, MissingSplit, add_label, crop_image, pad_image
from score_sde.data.folders import image_folder
from score_sde.data.idx import idx
from score_sde.data.npz import npz
from score_sde.errors import UserError, build, lookup, not_none
from score_sde.runtime.cache import cache_folder

SPLITS = ("train", "test")


def load(
    name: str,
    split: str,
    image_size: int,
    channels: int,
    path: str = "",
    kwargs: Mapping[str, Any] | None = None,
    crop: bool = False,
) -> Dataset:
    """Load a split of a data set.

    Args:
      name: Key of `DATASETS`.
      split: "train" or "test".
      image_size: Height and width of the images, in pixels; smaller images are padded. 0 for data that are not images.
      channels: Number of channels of the images, or of features of data that are not images.
      path: Folder or file of the data set; "" for its default location.
      kwargs: Further keyword arguments of the data set's function.
      crop: Whether images of another size are cropped to a square about their center and resized. Images of a data set
        with varying sizes always are.

    Raises:
      UserError: if the name or the split is unknown, the data are missing, or their shape is not the requested one.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    arguments: dict[str, Any] = {"split": split, "path": path}
    if "channels" in signature(lookup("data set", DATASETS, name, "name")).parameters:
        arguments["channels"] = channels
    dataset = build("data set", DATASETS, name, arguments | dict(kwargs or {}))
    if image_size == 0 or len(dataset.image_shape) == 1:
        expected = (channels,) if image_size == 0 else (image_size, image_size, channels)
        if dataset.image_shape != expected:
            raise UserError(
                f"{name}: expected data of shape {expected}, got {dataset.image_shape}; image_size=0 is for data that "
                "are not images",
                "channels",
                "image_size",
            )
        return dataset
    height, width, given_channels = dataset.image_shape
    if given_channels != channels:
        raise UserError(f"{name}: the images have {given_channels} channels, not {channels}", "channels")
    shape = (image_size, image_size, channels)
    if (height, width) == (image_size, image_size):
        return dataset
    if crop or None in (height, width):
        resize = partial(crop_image, size=image_size)
    elif max(height, width) > image_size:
        raise UserError(
            f"{name}: expected images of at most {image_size}x{image_size}, got {height}x{width}; "
            "cropping also resizes them",
            "crop=True",
            "image_size",
        )
    else:
        resize = partial(pad_image, size=image_size)
    return dataset._replace(examples=MappedDataset(dataset.examples, resize), image_shape=shape)


def digits(split: str, path: str = "") -> Dataset:
    """Load the UCI handwritten digits that ship with scikit-learn: 1,797 images, 8x8, 17 gray levels.

    1,500 images are for training and 297 for the test. The split is a fixed permutation, because the file is ordered by
    writer.

    Raises:
      UserError: if a path is given.
    """
    if path:
        raise UserError(f"digits: expected no path, because it ships with scikit-learn, got {path}", "path=''")
    # Importing scikit-learn for its file would take more than a second.
    package = Path(not_none(not_none(find_spec("sklearn")).origin)).parent
    rows = np.loadtxt(package / "datasets" / "data" / "digits.csv.gz", np.uint8, delimiter=",")
    order = np.random.default_rng(0).permutation(len(rows))
    rows = rows[order[:1500] if split == "train" else order[1500:]]
    images, labels = rows[:, :64].reshape(-1, 8, 8, 1), rows[:, 64].astype(np.int64)
    return Dataset(Arrays(images, labels), image_shape=(8, 8, 1), levels=17, num_classes=10)


def toy(split: str, path: str, sample: toys.SampleFn, num_examples: int) -> Dataset:
    """Sample a toy data set from a fixed seed.

    Args:
      split: "train" or "test", which have different seeds.
      path: "", because toy data are not read from a file.
      sample: Sampler of the toy distribution.
      num_examples: Number of training examples; the test split has at most 10,000.

    Raises:
      UserError: if a path is given or num_examples < 1.
    """
    if path:
        raise UserError(f"toys: expected no path, because toy data are sampled, got {path}", "path=''")
    if num_examples < 1:
        raise UserError(f"toys: expected num_examples >= 1, got {num_examples}", "num_examples")
    train = split == "train"
    rng = np.random.default_rng(0 if train else 1)
    points, labels = sample(rng, num_examples if train else min(num_examples, 10_000))
    return Dataset(
        Arrays(points.astype(np.float32), labels, exact=False),
        points.shape[1:],
        levels=None,
        num_classes=labels.max() + 1,
    )


def mixture(
    split: str,
    path: str,
    means: Sequence[Sequence[float]],
    stds: Sequence[float],
    weights: Sequence[float] = (),
    num_examples: int = 10_000,
) -> Dataset:
    """Sample a Gaussian mixture in any dimension; see `toys.mixture` and `toy`."""
    return toy(split, path, toys.mixture(means, stds, weights), num_examples)


def subspace(
    split: str,
    path: str,
    channels: int,
    means: Sequence[Sequence[float]],
    stds: Sequence[float],
    weights: Sequence[float] = (),
    num_examples: int = 10_000,
) -> Dataset:
    """Sample a Gaussian mixture in a random subspace of `channels` dimensions; see `toys.mixture` and `toy`."""
    sample = toys.mixture(means, stds, weights)
    basis = toys.random_basis(channels, len(means[0]))
    return toy(split, path, toys.in_subspace(sample, basis), num_examples)


def two_moons(split: str, path: str, noise: float = 0.05, num_examples: int = 10_000) -> Dataset:
    """Sample two moons; see `toys.two_moons` and `toy`."""
    return toy(split, path, toys.two_moons(noise), num_examples)


def swiss_roll(split: str, path: str, noise: float = 0.03, num_examples: int = 10_000) -> Dataset:
    """Sample a Swiss roll; see `toys.swiss_roll` and `toy`."""
    return toy(split, path, toys.swiss_roll(noise), num_examples)


def checkerboard(split: str, path: str, num_examples: int = 10_000) -> Dataset:
    """Sample a checkerboard; see `toys.checkerboard` and `toy`."""
    return toy(split, path, toys.checkerboard(), num_examples)


def tfds(split: str, path: str, name: str, test_split: str = "test") -> Dataset:
    """Open an image data set of TensorFlow Datasets, prepared as array_record; reading it doesn't need TensorFlow.

    Args:
      split: "train" or "test".
      path: Data folder of TensorFlow Datasets; "" for its default.
      name: Name of the data set ("cifar100"), with its config if it has one ("downsampled_imagenet/32x32").
      test_split: Name of the test split in TensorFlow Datasets, which for some data sets is "validation".

    Raises:
      UserError: if the data set is unknown, not prepared, or not made of images with class labels.
    """
    import tensorflow_datasets

    try:
        builder = tensorflow_datasets.builder(name, data_dir=path or None)
    except (tensorflow_datasets.core.DatasetNotFoundError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"TensorFlow Datasets: {reason}", "kwargs.name") from error
    folder = Path(os.fspath(builder.data_path))
    root = path or folder.parents[1]
    command = f"tfds build {name} --file_format=array_record --data_dir={root}"
    if not (folder / "dataset_info.json").is_file() and find_spec("tensorflow") is not None:
        _prepare(builder, name)
    if not (folder / "dataset_info.json").is_file():
        raise UserError(
            f"{name} is not prepared in {folder}. On a machine with network access and TensorFlow "
            f"(pip install tensorflow-cpu) run `{command}`. Without network access here, run it there, copy the "
            "folder, and give the folder above it as the path",
            "path",
        )
    if builder.info.file_format.value != "array_record":
        raise UserError(
            f"{name}: expected the format array_record in {folder}, got {builder.info.file_format.value}; run "
            f"`{command}`"
        )
    features, split = builder.info.features, test_split if split == "test" else split
    if split not in builder.info.splits or "image" not in features:
        missing = MissingSplit if "image" in features else UserError
        raise missing(
            f"{name}: expected the split {split!r} and the feature 'image', got the splits "
            f"{', '.join(builder.info.splits)} and the features {', '.join(features)}",
            "test_split",
        )
    classes = getattr(features["label"], "num_classes", None) if "label" in features else 1
    if classes is None:
        raise UserError(f"{name}: the 'label' feature is not categorical and cannot be used for class conditioning")
    examples = builder.as_data_source(split)
    if "label" not in features:
        examples = MappedDataset(examples, add_label)
    names = tuple(features["label"].names) if "label" in features else ()
    files = tuple(sorted(folder.glob(f"*-{split}.array_record*")))
    return Dataset(examples, features["image"].shape, 256, classes, names, files=files)


def _prepare(builder: Any, name: str) -> None:
    """Download and prepare a data set as array_record, with the progress bars of TensorFlow Datasets.

    Raises:
      UserError: if it can't be prepared, for example without network access.
    """
    try:
        builder.download_and_prepare(file_format="array_record")
    except Exception as error:  # network, disk, or a data set whose files are downloaded by hand
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{name}: TensorFlow Datasets can't prepare it: {reason}; give a folder where it is prepared as the path",
            "path",
        ) from error


def cifar10_or_tfds(split: str, path: str) -> Dataset:
    """Open CIFAR-10, from TensorFlow Datasets or from the authors' binary archive, which is downloaded if necessary.

    Args:
      split: "train" or "test".
      path: Data folder of TensorFlow Datasets, or folder with the archive or its extracted folder; "" for the default
        folder of TensorFlow Datasets.

    Raises:
      UserError: if the data are not there and can't be downloaded.
    """
    archive = cifar10.find(path) if path else None
    if archive is not None:
        return cifar10.read(split, archive)
    folder = Path(path or os.environ.get("TFDS_DATA_DIR") or _home() / "tensorflow_datasets")
    if any(folder.glob("cifar10/*/dataset_info.json")) or find_spec("tensorflow") is not None:
        return tfds(split, path, "cifar10")
    return cifar10.read(split, cifar10.find(str(folder)) or cifar10.download(folder))


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:  # no home folder
        return cache_folder()


def _idx_or_tfds(split: str, path: str, name: str) -> Dataset:
    """Open IDX files if the folder has them, otherwise the data set of TensorFlow Datasets."""
    folder = Path(path)
    if path and (any(folder.glob("*-idx3-ubyte")) or any(folder.glob("*-idx3-ubyte.gz"))):
        return idx(split, path)
    if path and not (folder / name).is_dir():
        raise UserError(
            f"{name}: {path} holds neither IDX files (train-images-idx3-ubyte[.gz], ...) nor a TensorFlow Datasets "
            f"folder {name}. On a machine with network access and TensorFlow (pip install tensorflow-cpu) run "
            f"`tfds build {name} --file_format=array_record --data_dir={path}`",
            "path",
        )
    return tfds(split, path, name)


DATASETS: dict[str, Callable[..., Dataset]] = {
    "digits": digits,
    "mixture": mixture,
    "two_moons": two_moons,
    "swiss_roll": swiss_roll,
    "checkerboard": checkerboard,
    "subspace": subspace,
    "idx": idx,
    "mnist": partial(_idx_or_tfds, name="mnist"),
    "fashion_mnist": partial(_idx_or_tfds, name="fashion_mnist"),
    "cifar10": cifar10_or_tfds,
    "tfds": tfds,
    "image_folder": image_folder,
    "npz": npz,
}
