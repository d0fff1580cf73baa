"""Images of one's own: a folder of pictures, or arrays in an .npz file."""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from score_sde.data.examples import Arrays, Source
from score_sde.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's, by channels
NAMES = {"train": ("train",), "test": ("test", "validation", "val")}  # of sub-folders


class Pictures:
    """A sequence of examples over picture files, decoded when they are asked for."""

    def __init__(self, paths: list[Path], labels: list[int], mode: str):
        self.paths, self.labels, self.mode = paths, labels, mode

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            with Image.open(self.paths[index]) as picture:
                image = np.asarray(picture.convert(self.mode))
        except (OSError, UnidentifiedImageError) as error:
            raise UserError(f"image_folder: {self.paths[index]} can't be decoded: {error} (remove it)") from error
        return {"image": image.reshape(*image.shape[:2], -1), "label": self.labels[index]}


def image_folder(split: str, path: str, channels: int = 3, test_share: float = 0.1) -> Source:
    """PNG and JPEG files below a folder, of any sizes; a picture's class is the sub-folder it lies in.

    Args:
      split: "train" or "test": what lies in the sub-folders train and test (or validation, val) where there are any,
        else a fixed random part of all.
      path: the folder.
      channels: 1 turns colours to grey, 3 grey to colours.
      test_share: of all pictures, those of the test split where no sub-folders say.

    Raises:
      UserError: there is no such folder, or no pictures in it.
    """
    if channels not in MODES:
        raise UserError(f"image_folder: {channels} channels? Known are {', '.join(map(str, MODES))}")
    root = Path(path)
    if not path or not root.is_dir():
        raise UserError(f"image_folder: no folder {path!r} (set --config.data.path)")
    split_folders = [root / name for name in NAMES[split] if (root / name).is_dir()]
    named = any((root / name).is_dir() for names in NAMES.values() for name in names)
    if named and not split_folders:
        raise UserError(f"image_folder: {path} has no sub-folder {' or '.join(NAMES[split])}")
    root = split_folders[0] if named else root
    paths = _pictures(root)
    if not paths:
        raise UserError(f"image_folder: no {', '.join(SUFFIXES)} files in {root} (set --config.data.path)")
    trained = Path(path) / "train" if named else root  # whose classes are numbered, for both splits
    classes = sorted({_class_of(file, trained) for file in _pictures(trained)})
    strange = sorted({_class_of(file, root) for file in paths} - set(classes))
    if strange or ("" in classes and len(classes) > 1):
        loose = strange or [file.name for file in paths if file.parent == root]
        raise UserError(f"image_folder: of which class is {loose[0]!r} in {root}? Known are {', '.join(classes)}")
    labels = [classes.index(_class_of(file, root)) for file in paths]
    if not named:
        chosen = part(split, len(paths), test_share)
        paths, labels = [paths[i] for i in chosen], [labels[i] for i in chosen]
    return Source(Pictures(paths, labels, MODES[channels]), (None, None, channels), 256, max(len(classes), 1))


def _pictures(root: Path) -> list[Path]:
    return sorted(file for file in root.rglob("*") if file.suffix.lower() in SUFFIXES)


def _class_of(file: Path, root: Path) -> str:
    """The sub-folder that a picture lies in; "" for none."""
    return file.relative_to(root).parts[0] if file.parent != root else ""


def npz(split: str, path: str, test_share: float = 0.1) -> Source:
    """Arrays in an .npz file: train_images, train_labels, test_images, ... or x_train, y_train, ... or images, labels.

    Images are (n, height, width[, channels]) uint8, or (n, features) real numbers; labels are (n,) or (n, 1) integers,
    or are left out. Of `images` alone a fixed random part is the test split.

    Raises:
      UserError: there is no such file, or it holds something else.
    """
    if not Path(path).is_file():
        raise UserError(f"npz: no file {path!r} (set --config.data.path)")
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise UserError(f"npz: {path} is a single array, not an .npz file of several (set --config.data.path)")
        names = archive.files
        pairs = ((f"{split}_images", f"{split}_labels"), (f"x_{split}", f"y_{split}"), ("images", "labels"))
        found = next((pair for pair in pairs if pair[0] in names), None)
        if found is None:
            raise UserError(f"npz: {path} holds {', '.join(names)}, none of {', '.join(pair[0] for pair in pairs)}")
        images = archive[found[0]]
        labels = archive[found[1]].reshape(-1) if found[1] in names else np.zeros(len(images), np.int32)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"npz: {path} can't be read: {error} (set --config.data.path)") from error
    if images.ndim == 3:
        images = images[..., None]
    if len(images) != len(labels) or images.ndim not in (2, 4) or (images.ndim == 4 and images.dtype != np.uint8):
        raise UserError(
            f"npz: {found[0]} is {images.dtype} {images.shape} with {len(labels)} labels; needed are uint8 images "
            "(n, height, width, channels) or real numbers (n, features), and a label each"
        )
    if found[0] == "images":
        chosen = part(split, len(images), test_share)
        images, labels = images[chosen], labels[chosen]
    if images.ndim == 2:
        return Source(Arrays(images.astype(np.float32), labels), images.shape[1:], None, int(labels.max()) + 1)
    return Source(Arrays(images, labels), images.shape[1:], 256, int(labels.max()) + 1)


def part(split: str, count: int, test_share: float) -> np.ndarray:
    """The places of a split's examples among so many: a fixed random part of them for the test."""
    held_out = round(count * test_share)
    if not 0 < held_out < count:
        raise UserError(f"a test_share of {test_share} leaves a split of {count} empty (set --config.data.kwargs)")
    order = np.random.default_rng(0).permutation(count)
    return np.sort(order[:held_out] if split == "test" else order[held_out:])
