"""Arrays of an .npz file as a data set."""

from pathlib import Path

import numpy as np

from score_sde.data.examples import Arrays, Dataset, MissingSplit, check_test_labels, split_indices
from score_sde.errors import UserError

MAX_LABEL = 2**31 - 1  # labels are int32


def npz(split: str, path: str, test_share: float = 0.1) -> Dataset:
    """Load a split of an .npz file.

    The arrays are train_images, train_labels, test_images and test_labels, or x_train, y_train, x_test and y_test, or
    images and labels. Images are (n, height, width[, channels]) in uint8, or (n, features) real numbers. Labels are
    integers from 0, (n,) or (n, 1), and may be missing. `class_names`, (classes,) strings, is optional; it may name
    classes without examples. The test split of `images` is a fixed random subset.

    Args:
      split: "train" or "test".
      path: File.
      test_share: Fraction of the examples held out as the test split if the file has the array `images`.

    Raises:
      MissingSplit: if the file has only the other split.
      UserError: if the file is missing or damaged, its arrays are not images and labels, or a test label has no
        training example of its class or a higher one.
    """
    if not Path(path).is_file():
        raise UserError(f"npz: no file {path!r}", "path")
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise UserError(f"npz: {path} is a single array, not an .npz file of several", "path")
        arrays = dict(archive)
    except UserError:
        raise
    except Exception as error:  # a damaged archive makes NumPy and zipfile raise errors of many kinds
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"npz: {path} can't be read: {reason}", "path") from error
    pairs = ((f"{split}_images", f"{split}_labels"), (f"x_{split}", f"y_{split}"), ("images", "labels"))
    pair = next((pair for pair in pairs if pair[0] in arrays), None)
    if pair is None:
        other = {"train": "test", "test": "train"}[split]
        kind = MissingSplit if {f"{other}_images", f"x_{other}"} & arrays.keys() else UserError
        raise kind(f"npz: {path} holds {', '.join(arrays)}, none of {', '.join(pair[0] for pair in pairs)}")
    images = _check_images(arrays[pair[0]], f"npz: {pair[0]} in {path}")
    labels = _labels(arrays, pair[1], len(images), path)
    train = pair[0].replace("test", "train"), pair[1].replace("test", "train")
    train_labels = _labels(arrays, train[1], len(arrays[train[0]]), path) if train[0] in arrays else labels
    num_classes = check_test_labels(f"npz: {path}", train_labels, labels)
    if pair[0] == "images":
        indices = split_indices(split, len(images), test_share)
        images, labels = images[indices], labels[indices]
    levels = None if images.ndim == 2 else 256
    names = tuple(map(str, arrays.get("class_names", ())))
    if names and len(names) < num_classes:
        raise UserError(f"npz: expected {num_classes} class_names or more in {path}, got {len(names)}", "path")
    return Dataset(Arrays(images, labels), images.shape[1:], levels, len(names) or num_classes, names)


def _labels(arrays: dict[str, np.ndarray], name: str, number: int, path: str) -> np.ndarray:
    """Return an array of labels, zeros if it is missing."""
    return check_labels(arrays[name], number, f"npz: {name} in {path}") if name in arrays else np.zeros(number, int)


def _check_images(images: np.ndarray, name: str) -> np.ndarray:
    """Return images as uint8 (n, height, width, channels), or data that are not images as float32 (n, features).

    Raises:
      UserError: if the array is neither, or a number is not finite in float32.
    """
    if images.ndim == 3:
        images = images[..., None]
    pixels = images.ndim == 4 and images.dtype == np.uint8
    features = images.ndim == 2 and images.dtype.kind in "fiu"
    if not (pixels or features) or not images.size:
        raise UserError(
            f"{name}: expected uint8 images (n, height, width, channels) or real numbers (n, features), got "
            f"{images.dtype} {images.shape}"
        )
    if pixels:
        return images
    with np.errstate(over="ignore"):
        numbers = images.astype(np.float32)
    if not np.isfinite(numbers).all():
        raise UserError(f"{name}: expected finite float32 numbers, got {np.isfinite(numbers).sum()} of {numbers.size}")
    return numbers


def check_labels(labels: np.ndarray, number: int, name: str) -> np.ndarray:
    """Return class labels as int64, (number,).

    Raises:
      UserError: unless there is one integer from 0 per example.
    """
    labels = labels.reshape(-1)
    integral = labels.dtype.kind in "iu" or (labels.dtype.kind == "f" and np.array_equal(labels, np.floor(labels)))
    if len(labels) != number or not integral or labels.min() < 0 or labels.max() > MAX_LABEL:
        numbers = labels.dtype.kind in "iuf" and labels.size
        given = f" from {labels.min()} to {labels.max()}" if numbers else ""
        raise UserError(
            f"{name}: expected {number} integers from 0 as labels, got {len(labels)} of {labels.dtype}{given}"
        )
    return labels.astype(np.int64)
