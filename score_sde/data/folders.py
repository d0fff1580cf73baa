"""Image folders: which files belong to which split and class, and their decoding."""

import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from score_sde.data.decoding import MODES, check_single, decode, parse_color
from score_sde.data.examples import Dataset, MissingSplit, split_indices
from score_sde.errors import UserError, cut, lookup
from score_sde.runtime.hashing import cached_hash, hash_file, hash_json

LAYOUTS = ("auto", "splits", "classes", "pile")
SPLIT = re.compile(r"(train|test|val|dev|eval)(ing|id|idation|uation)?[ _-]?(set|data|images|split)?", re.IGNORECASE)
TESTS = ("test", "val", "dev", "eval")  # in order of preference
SHARD = re.compile(r"\d{5,}")  # folders that the converters of StyleGAN and EDM write
# Formats that Pillow only identifies, and PostScript, which an interpreter would run.
NOT_DECODED = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")


class ImageFiles:
    """Examples from image files, decoded on access."""

    def __init__(self, paths: list[Path], labels: list[int], channels: int, background: tuple[int, int, int], sha: str):
        """Pair image files with labels; see `decoding.decode` for channels and background, `check_images` for sha."""
        self.paths, self.labels, self.channels, self.background, self.sha = paths, labels, channels, background, sha

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return the example at an index."""
        return {"image": decode(self.paths[index], self.channels, self.background), "label": self.labels[index]}


def image_folder(
    split: str, path: str, channels: int = 3, test_share: float = 0.1, background: str = "white", layout: str = "auto"
) -> Dataset:
    """Open the images in a folder and its subfolders, of any size and any format that Pillow reads.

    Symbolic links are followed, and names that begin with a dot are skipped. Every file is decoded once before the
    first use, so a damaged file raises at once.

    Args:
      split: "train" or "test".
      path: Folder.
      channels: Number of channels, to which colors and transparency are converted; see `decoding.decode`.
      test_share: Fraction of images held out as the test split if there are no split folders, a fixed random subset.
      background: Color behind transparent pixels, "white" or "#ff8000"; it has no effect with 4 channels.
      layout: Role of the subfolders. Use "splits" for train and test (also Training, val, test_set, ...), which may
        have class folders; "classes" for one class each; "pile" to ignore them. The default "auto" decides by their
        names, and raises if two readings are possible. A file dataset.json (EDM, StyleGAN) sets the labels.

    Raises:
      MissingSplit: if there is a folder for the other split only.
      UserError: if the folder is missing or ambiguous, a class or a split is empty, or a file can't be decoded.
    """
    if channels not in MODES:
        raise UserError(f"image_folder: expected {', '.join(map(str, MODES))} channels, got {channels}", "channels")
    color, root = parse_color(background), Path(path)
    if not path or not root.is_dir():
        raise UserError(f"image_folder: no folder {path!r}", "path")
    lookup("layout", dict.fromkeys(LAYOUTS), layout, "layout")
    folders = _split_folders(root, layout)
    if split not in folders:
        raise MissingSplit(f"image_folder: {path} has no subfolder {split}; its splits are {', '.join(folders)}")
    ignored: Counter[str] = Counter()
    train = _classify(folders.get("train", folders[split]), layout, ignored)
    files = train if folders[split] == folders.get("train") else _classify(folders[split], layout, ignored)
    numbers = [name for name in train.values() if isinstance(name, int)]  # by dataset.json
    classes = [str(n) for n in range(max(numbers) + 1)] if numbers else sorted({*map(str, train.values())})
    positions = {name: n for n, name in enumerate(classes)}
    for file, name in [*train.items(), *files.items()]:
        if str(name) not in positions or (name == "" and len(classes) > 1):
            raise UserError(
                f"image_folder: cannot infer the class of {str(name) or file.name!r} ({file}): expected a class of the "
                f"training split, {cut(', '.join(filter(None, classes)), 200)}"
            )
    paths = sorted(files)
    sha = check_images(paths, channels, color)
    labels = [positions[str(files[file])] for file in paths]
    if folders["train"] == folders.get("test"):
        indices = split_indices(split, len(paths), test_share)
        paths, labels = [paths[i] for i in indices], [labels[i] for i in indices]
    else:
        outside = [root / entry.name for entry in os.scandir(root) if root / entry.name not in folders.values()]
        found = (file for path in outside for file in (_files(path) if path.is_dir() else [path]))
        ignored["images outside the split folders"] += sum(map(_is_image, found))
    names = tuple(classes) if classes != [""] else ()
    examples = ImageFiles(paths, labels, channels, color, sha)
    return Dataset(examples, (None, None, channels), 256, max(len(classes), 1), names, dict(+ignored))


def _split_folders(root: Path, layout: str) -> dict[str, Path]:
    """Return the folder of each split; both are `root` if the split is random.

    Raises:
      UserError: if the names of the subfolders allow two readings.
    """
    names = [folder.name for folder in _subfolders(root) if any(map(_is_image, _files(folder)))]
    splits = {name: match.group(1).lower() for name in names if (match := SPLIT.fullmatch(name))}
    others = [name for name in names if name not in splits]
    listed = cut(", ".join(names), 200)
    if layout == "auto" and splits and (others or "train" not in splits.values()):
        raise UserError(
            f"image_folder: the subfolders of {root} ({listed}) can be splits or classes, choose one",
            "layout=splits",
            "layout=classes",
        )
    if layout == "auto" and names and all(map(SHARD.fullmatch, names)) and not (root / "dataset.json").is_file():
        raise UserError(
            f"image_folder: the subfolders of {root} ({listed}) can be classes, or shards of images without classes; "
            "choose one, or add dataset.json with the labels",
            "layout=classes",
            "layout=pile",
        )
    if layout in ("classes", "pile") or not splits:
        return {"train": root, "test": root}
    train = [name for name in splits if splits[name] == "train"]
    kinds = [kind for kind in TESTS if kind in splits.values()]
    test = [name for name in splits if kinds and splits[name] == kinds[0]]
    if len(train) != 1 or len(test) > 1:
        raise UserError(f"image_folder: expected one train and at most one test folder in {root}, got {listed}", "path")
    return {"train": root / train[0]} | ({"test": root / test[0]} if test else {})


def _classify(root: Path, layout: str, ignored: Counter) -> dict[Path, str | int]:
    """Return the class of each image: a number of dataset.json, a subfolder's name, or "". Count ignored suffixes.

    Raises:
      UserError: if there is no image, a class folder is empty, or dataset.json doesn't fit the images.
    """
    images = []
    for file in _files(root):
        if _is_image(file):
            images.append(file)
        elif file != root / "dataset.json":
            ignored[file.suffix.lower() or "no suffix"] += 1
    if not images:
        raise UserError(f"image_folder: no image that Pillow reads in {root}, such as .png files", "path")
    if (root / "dataset.json").is_file() and (numbers := _read_labels(root / "dataset.json")):
        labeled: dict[Path, str | int] = {root / name: label for name, label in numbers.items()}
        if labeled.keys() != {*images}:
            names = ", ".join(sorted(str(file) for file in labeled.keys() ^ {*images}))
            raise UserError(f"image_folder: expected dataset.json to label each image of {root}, see {cut(names, 200)}")
        return labeled
    if layout == "pile" or (root / "dataset.json").is_file():
        return dict.fromkeys(images, "")
    named: dict[Path, str | int] = {file: (*file.relative_to(root).parts[:-1], "")[0] for file in images}
    empty = [folder for folder in _subfolders(root) if folder.name not in named.values()]
    if empty:
        raise UserError(f"image_folder: the class folder {empty[0]} holds no image (fill or remove it)")
    return named


def _read_labels(path: Path) -> dict[str, int]:
    """Read dataset.json of EDM and StyleGAN, {"labels": [[name, label], ...] or null}."""
    try:
        content = json.loads(path.read_text())["labels"] or {}
        labels = dict(content)
        if any(type(label) is not int or label < 0 for label in labels.values()):
            raise ValueError("a label is not a whole number from 0")
        return labels
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f'image_folder: expected {{"labels": [[name, label], ...]}} in {path}: {error}') from error


def _is_image(path: Path) -> bool:
    kind = Image.registered_extensions().get(path.suffix.lower(), "")
    return kind in Image.OPEN and kind not in NOT_DECODED


def _subfolders(root: Path) -> list[Path]:
    entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    return [root / entry.name for entry in entries if entry.is_dir() and not entry.name.startswith((".", "__MACOSX"))]


def _files(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """Yield the files in a folder and its subfolders, except in links to a folder above."""
    real_path = os.path.realpath(folder)
    if real_path in above:
        return
    for entry in os.scandir(folder):
        if not entry.is_dir() and not entry.name.startswith("."):
            yield folder / entry.name
    for subfolder in _subfolders(folder):
        yield from _files(subfolder, (*above, real_path))


def check_images(paths: list[Path], channels: int, background: tuple[int, int, int]) -> str:
    """Decode every file once, and return a hash of their contents; unchanged files are not decoded again.

    Raises:
      UserError: if a file can't be decoded.
    """

    def check(path: Path) -> str:
        check_single(path)
        decode(path, channels, background)
        return hash_file(path)

    def check_all() -> str:
        hashes: list[str] = []
        with (
            ThreadPoolExecutor(os.cpu_count()) as pool,
            tqdm(desc="decoding every image once", total=len(paths), unit="image", delay=5.0) as bar,
        ):
            for first in range(0, len(paths), 256):
                hashes += pool.map(check, paths[first : first + 256])
                bar.update(len(hashes) - bar.n)
        return hash_json(hashes)

    return cached_hash(paths, check_all, channels)
