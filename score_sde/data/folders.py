"""User-provided data: an image folder or an .npz file."""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from score_sde.data.decoding import MODES, decode, parse_color
from score_sde.data.examples import Arrays, Dataset
from score_sde.errors import UserError
from score_sde.runtime.cache import cache_folder

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SPLIT_FOLDERS = {"train": ("train",), "test": ("test", "validation", "val")}
MAX_LABEL = 2**31 - 1  # labels are int32


class ImageFiles:
    """Examples from image files, decoded on access."""

    def __init__(self, paths: list[Path], labels: list[int], channels: int, background: tuple[int, int, int]):
        """Pair image files with labels; see `decoding.decode` for channels and background."""
        self.paths, self.labels, self.channels, self.background = paths, labels, channels, background

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return the example at an index."""
        return {"image": decode(self.paths[index], self.channels, self.background), "label": self.labels[index]}


def image_folder(
    split: str, path: str, channels: int = 3, test_share: float = 0.1, background: str = "white"
) -> Dataset:
    """Open the images in a folder and its subfolders, of any sizes; the class of an image is its subfolder.

    Symbolic links are followed. Names that begin with a dot are skipped. Every file is decoded once before the first
    use, so that a damaged file raises at once.

    Args:
      split: "train" or "test". The split is the subfolder of this name (for the test also validation or val). Without
        such subfolders it is a fixed random subset of the images.
      path: Folder.
      channels: Number of channels, to which colors and transparency are converted; see `decoding.decode`.
      test_share: Fraction of images held out as the test split if there are no train and test subfolders.
      background: Color behind transparent pixels, "white" or "#ff8000"; it has no effect with 4 channels.

    Raises:
      UserError: if the folder is missing, a class or a split is empty, or a file can't be decoded.
    """
    if channels not in MODES:
        raise UserError(f"image_folder: expected {', '.join(map(str, MODES))} channels, got {channels}", "channels")
    color = parse_color(background)
    root = Path(path)
    if not path or not root.is_dir():
        raise UserError(f"image_folder: no folder {path!r}", "path")
    split_folders = [root / name for name in SPLIT_FOLDERS[split] if (root / name).is_dir()]
    presplit = any((root / name).is_dir() for names in SPLIT_FOLDERS.values() for name in names)
    if presplit and not split_folders:
        raise UserError(f"image_folder: {path} has no subfolder {' or '.join(SPLIT_FOLDERS[split])}")
    root = split_folders[0] if presplit else root
    paths = sorted(_image_files(root))
    if not paths:
        raise UserError(f"image_folder: no {', '.join(SUFFIXES)} files in {root}", "path")
    train_root = Path(path) / "train" if presplit else root  # defines the class indices of both splits
    classes = sorted({_class_name(file, train_root) for file in _image_files(train_root)})
    empty = [folder for folder in _class_folders(train_root) if folder not in classes]
    if empty:
        raise UserError(f"image_folder: the class folder {train_root / empty[0]} holds no image (fill or remove it)")
    unknown = sorted({_class_name(file, root) for file in paths} - set(classes))
    if unknown or ("" in classes and len(classes) > 1):
        unclassified = unknown or [file.name for file in paths if file.parent == root]
        raise UserError(
            f"image_folder: cannot infer the class of {unclassified[0]!r}; expected a subfolder of {root} among "
            f"{', '.join(filter(None, classes))}"
        )
    check_decodable(paths, channels, color)
    labels = [classes.index(_class_name(file, root)) for file in paths]
    if not presplit:
        indices = split_indices(split, len(paths), test_share)
        paths, labels = [paths[i] for i in indices], [labels[i] for i in indices]
    return Dataset(ImageFiles(paths, labels, channels, color), (None, None, channels), 256, max(len(classes), 1))


def _image_files(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """Yield the image files in a folder and its subfolders, except in links to a folder above."""
    real_path = os.path.realpath(folder)
    if real_path in above:
        return
    for entry in os.scandir(folder):
        path = folder / entry.name
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _image_files(path, (*above, real_path))
        elif path.suffix.lower() in SUFFIXES:
            yield path


def _class_folders(root: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))


def _class_name(file: Path, root: Path) -> str:
    """Return the subfolder of `root` that holds an image; "" for none."""
    return file.relative_to(root).parts[0] if file.parent != root else ""


def check_decodable(paths: list[Path], channels: int, background: tuple[int, int, int]) -> None:
    """Decode every file once; the cache records which sets of files have passed.

    Raises:
      UserError: if a file can't be decoded.
    """
    states = [(os.fsencode(path.absolute()), *_size_and_time(path)) for path in paths]
    checked = cache_folder() / "decoded" / hashlib.sha256(repr((states, channels)).encode()).hexdigest()[:16]
    if checked.exists():
        return
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(desc="decoding every image once", total=len(paths), unit="image", delay=5.0) as bar,
    ):
        for first in range(0, len(paths), 256):
            chunk = paths[first : first + 256]
            for _ in pool.map(lambda path: decode(path, channels, background), chunk):
                bar.update()
    with suppress(OSError):  # without a cache every run decodes the files
        checked.parent.mkdir(parents=True, exist_ok=True)
        checked.touch()


def _size_and_time(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"image_folder: {path} can't be read: {error.strerror} (repair or remove it)") from error
    return status.st_size, status.st_mtime_ns


def npz(split: str, path: str, test_share: float = 0.1) -> Dataset:
    """Load a split of an .npz file.

    The arrays are train_images, train_labels, test_images and test_labels, or x_train, y_train, x_test and y_test, or
    images and labels. Images are (n, height, width[, channels]) in uint8, or (n, features) real numbers. Labels are
    integers from 0, (n,) or (n, 1), and may be missing. The test split of `images` is a fixed random subset.

    Args:
      split: "train" or "test".
      path: File.
      test_share: Fraction of the examples held out as the test split if the file has the array `images`.

    Raises:
      UserError: if the file is missing or damaged, or its arrays are not images and labels.
    """
    if not Path(path).is_file():
        raise UserError(f"npz: no file {path!r}", "path")
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise UserError(f"npz: {path} is a single array, not an .npz file of several", "path")
        names = archive.files
        pairs = ((f"{split}_images", f"{split}_labels"), (f"x_{split}", f"y_{split}"), ("images", "labels"))
        pair = next((pair for pair in pairs if pair[0] in names), None)
        if pair is None:
            raise UserError(f"npz: {path} holds {', '.join(names)}, none of {', '.join(pair[0] for pair in pairs)}")
        images = archive[pair[0]]
        labels = archive[pair[1]] if pair[1] in names else np.zeros(len(images) if images.ndim else 0, np.int32)
    except UserError:
        raise
    except Exception as error:  # a damaged archive makes NumPy and zipfile raise errors of many kinds
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"npz: {path} can't be read: {reason}", "path") from error
    images = _check_images(images, f"npz: {pair[0]} in {path}")
    labels = check_labels(labels, len(images), f"npz: {pair[1]} in {path}")
    if pair[0] == "images":
        indices = split_indices(split, len(images), test_share)
        images, labels = images[indices], labels[indices]
    levels = None if images.ndim == 2 else 256
    return Dataset(Arrays(images, labels), images.shape[1:], levels, int(labels.max()) + 1)


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


def split_indices(split: str, count: int, test_share: float) -> np.ndarray:
    """Return the sorted indices of a split; the test split is a fixed random subset of the examples.

    Args:
      split: "train" or "test".
      count: Number of examples in both splits.
      test_share: Fraction of examples in the test split.

    Raises:
      UserError: if test_share is out of range or leaves a split empty.
    """
    if not isinstance(test_share, int | float) or not 0 < test_share < 1:
        raise UserError(f"data: expected 0 < test_share < 1, got {test_share!r}", "test_share")
    held_out = round(count * test_share)
    if not 0 < held_out < count:
        raise UserError(f"data: test_share={test_share} of {count} examples leaves a split empty", "test_share")
    order = np.random.default_rng(0).permutation(count)
    return np.sort(order[:held_out] if split == "test" else order[held_out:])
