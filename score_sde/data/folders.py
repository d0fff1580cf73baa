"""User-provided data: an image folder, or arrays in an .npz file."""

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
from score_sde.data.examples import Arrays, Source
from score_sde.errors import UserError
from score_sde.runtime.cache import cache_folder

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
NAMES = {"train": ("train",), "test": ("test", "validation", "val")}  # of subfolders
MAX_LABEL = 2**31 - 1  # labels are int32


class Pictures:
    """A sequence of examples over image files, decoded on access."""

    def __init__(self, paths: list[Path], labels: list[int], channels: int, background: tuple[int, int, int]):
        self.paths, self.labels, self.channels, self.background = paths, labels, channels, background

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": decode(self.paths[index], self.channels, self.background), "label": self.labels[index]}


def image_folder(
    split: str, path: str, channels: int = 3, test_share: float = 0.1, background: str = "white"
) -> Source:
    """Opens the images below a folder, of any sizes; an image's class is the subfolder that it lies in.

    Links are followed and names that begin with a dot are skipped. Every file is decoded once before the first use, so
    that a damaged one is named at once; see `decoding.decode` for bit depths, orientation and transparency.

    Args:
      split: "train" or "test": the contents of the subfolders train and test (or validation, val) if there are any,
        otherwise a fixed random part of all images.
      path: The folder.
      channels: 1 converts colors to gray, 3 gray to colors, 4 keeps the transparency.
      test_share: Fraction of images held out as the test split if there are no train and test subfolders.
      background: Color behind transparent pixels, "white" or "#ff8000"; of no effect with 4 channels.

    Raises:
      UserError: if there is no such folder, an empty class or split, or a file that can't be decoded.
    """
    if channels not in MODES:
        raise UserError(f"image_folder: expected {', '.join(map(str, MODES))} channels, got {channels}", "channels")
    color = parse_color(background)
    root = Path(path)
    if not path or not root.is_dir():
        raise UserError(f"image_folder: no folder {path!r}", "path")
    split_folders = [root / name for name in NAMES[split] if (root / name).is_dir()]
    named = any((root / name).is_dir() for names in NAMES.values() for name in names)
    if named and not split_folders:
        raise UserError(f"image_folder: {path} has no subfolder {' or '.join(NAMES[split])}")
    root = split_folders[0] if named else root
    paths = sorted(_image_files(root))
    if not paths:
        raise UserError(f"image_folder: no {', '.join(SUFFIXES)} files in {root}", "path")
    trained = Path(path) / "train" if named else root  # the classes of both splits are numbered by this folder
    classes = sorted({_class_of(file, trained) for file in _image_files(trained)})
    empty = [folder for folder in _class_folders(trained) if folder not in classes]
    if empty:
        raise UserError(f"image_folder: the class folder {trained / empty[0]} holds no image (fill or remove it)")
    strange = sorted({_class_of(file, root) for file in paths} - set(classes))
    if strange or ("" in classes and len(classes) > 1):
        loose = strange or [file.name for file in paths if file.parent == root]
        raise UserError(
            f"image_folder: cannot infer the class of {loose[0]!r}; expected a subfolder of {root} among "
            f"{', '.join(filter(None, classes))}"
        )
    check_decodable(paths, channels, color)
    labels = [classes.index(_class_of(file, root)) for file in paths]
    if not named:
        chosen = part(split, len(paths), test_share)
        paths, labels = [paths[i] for i in chosen], [labels[i] for i in chosen]
    return Source(Pictures(paths, labels, channels, color), (None, None, channels), 256, max(len(classes), 1))


def _image_files(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """Yields the image files below a folder; links are followed but for those back to a folder above."""
    here = os.path.realpath(folder)
    if here in above:
        return
    for entry in os.scandir(folder):
        path = folder / entry.name
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _image_files(path, (*above, here))
        elif path.suffix.lower() in SUFFIXES:
            yield path


def _class_folders(root: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))


def _class_of(file: Path, root: Path) -> str:
    """Returns the subfolder that an image lies in; "" for none."""
    return file.relative_to(root).parts[0] if file.parent != root else ""


def check_decodable(paths: list[Path], channels: int, background: tuple[int, int, int]) -> None:
    """Decodes every file once and remembers in the cache that this set of files is whole.

    Raises:
      UserError: if a file can't be decoded; the message names it.
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
            some = paths[first : first + 256]
            for _ in pool.map(lambda path: decode(path, channels, background), some):
                bar.update()
    with suppress(OSError):  # without a cache the files are decoded again next time
        checked.parent.mkdir(parents=True, exist_ok=True)
        checked.touch()


def _size_and_time(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"image_folder: {path} can't be read: {error.strerror} (repair or remove it)") from error
    return status.st_size, status.st_mtime_ns


def npz(split: str, path: str, test_share: float = 0.1) -> Source:
    """Opens an .npz file of train_images, train_labels, test_images, ... or x_train, y_train, ... or images, labels.

    Images are (n, height, width[, channels]) uint8, or (n, features) real numbers; labels are (n,) or (n, 1) whole
    numbers from 0, or are left out. If there is only `images`, a fixed random part of it is the test split.

    Raises:
      UserError: if there is no such file, or it holds something else.
    """
    if not Path(path).is_file():
        raise UserError(f"npz: no file {path!r}", "path")
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise UserError(f"npz: {path} is a single array, not an .npz file of several", "path")
        names = archive.files
        pairs = ((f"{split}_images", f"{split}_labels"), (f"x_{split}", f"y_{split}"), ("images", "labels"))
        found = next((pair for pair in pairs if pair[0] in names), None)
        if found is None:
            raise UserError(f"npz: {path} holds {', '.join(names)}, none of {', '.join(pair[0] for pair in pairs)}")
        images = archive[found[0]]
        labels = archive[found[1]] if found[1] in names else np.zeros(len(images) if images.ndim else 0, np.int32)
    except UserError:
        raise
    except Exception as error:  # a damaged archive makes NumPy and zipfile raise errors of many kinds
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"npz: {path} can't be read: {reason}", "path") from error
    images = _check_images(images, f"npz: {found[0]} in {path}")
    labels = check_labels(labels, len(images), f"npz: {found[1]} in {path}")
    if found[0] == "images":
        chosen = part(split, len(images), test_share)
        images, labels = images[chosen], labels[chosen]
    levels = None if images.ndim == 2 else 256
    return Source(Arrays(images, labels), images.shape[1:], levels, int(labels.max()) + 1)


def _check_images(images: np.ndarray, name: str) -> np.ndarray:
    """Returns uint8 images (n, height, width, channels), or finite float32 features (n, features).

    Raises:
      UserError: if the array is neither.
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
    """Returns class labels as int64, (number,).

    Raises:
      UserError: if they are not one whole number from 0 per example.
    """
    labels = labels.reshape(-1)
    whole = labels.dtype.kind in "iu" or (labels.dtype.kind == "f" and np.array_equal(labels, np.floor(labels)))
    if len(labels) != number or not whole or labels.min() < 0 or labels.max() > MAX_LABEL:
        numbers = labels.dtype.kind in "iuf" and labels.size
        given = f" from {labels.min()} to {labels.max()}" if numbers else ""
        raise UserError(
            f"{name}: expected {number} whole numbers from 0 as labels, got {len(labels)} of {labels.dtype}{given}"
        )
    return labels.astype(np.int64)


def part(split: str, count: int, test_share: float) -> np.ndarray:
    """Returns the indices of a split's examples among `count`: a fixed random part of them for the test.

    Raises:
      UserError: if one of the splits would be empty.
    """
    if not isinstance(test_share, int | float) or not 0 < test_share < 1:
        raise UserError(f"expected 0 < test_share < 1, got {test_share!r}", "test_share")
    held_out = round(count * test_share)
    if not 0 < held_out < count:
        raise UserError(f"a test_share of {test_share} leaves a split of {count} empty")
    order = np.random.default_rng(0).permutation(count)
    return np.sort(order[:held_out] if split == "test" else order[held_out:])
