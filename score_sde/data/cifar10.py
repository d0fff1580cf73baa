"""CIFAR-10 from the authors' binary archive (Krizhevsky 2009), downloaded if necessary, without TensorFlow."""

import fcntl
import gzip
import hashlib
import io
import os
import tarfile
import urllib.error
import urllib.request
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
from tqdm import tqdm

from score_sde.data.examples import Arrays, Dataset
from score_sde.errors import UserError

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"  # published by the authors
ARCHIVE, FOLDER = "cifar-10-binary.tar.gz", "cifar-10-batches-bin"
FILES = {"train": [f"data_batch_{n}.bin" for n in range(1, 6)], "test": ["test_batch.bin"]}
NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ROW = 1 + 3 * 32 * 32  # bytes per example: a label, then the red, green and blue planes
TIMEOUT = 30.0  # seconds without data after which a download fails


def find(path: str) -> Path | None:
    """Return the path of the archive or of the extracted folder in a folder, or None if neither is there."""
    folder = Path(path)
    candidates = (folder / FOLDER, folder / ARCHIVE, folder)
    return next((file for file in candidates if file.is_file() or (file / FILES["test"][0]).is_file()), None)


def read(split: str, path: Path) -> Dataset:
    """Read a split from the archive or from the extracted folder.

    Args:
      split: "train" or "test".
      path: Path of the archive or of the extracted folder.

    Raises:
      UserError: if a file is missing or damaged.
    """
    try:
        names = FILES[split]
        contents = _from_archive(path, names) if path.is_file() else [(path / name).read_bytes() for name in names]
    except (OSError, EOFError, ValueError, KeyError, tarfile.TarError, zlib.error) as error:
        raise UserError(f"cifar10: {path} can't be read: {error} (remove it to download it again)") from error
    rows = b"".join(contents)
    table = np.frombuffer(rows[: len(rows) // ROW * ROW], np.uint8).reshape(-1, ROW)
    if len(rows) % ROW or not len(table) or table[:, 0].max() > 9:
        raise UserError(
            f"cifar10: {path} is damaged: expected rows of {ROW} bytes with labels 0 to 9, got {len(rows)} bytes "
            "(remove it to download it again)"
        )
    images = table[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    examples = Arrays(np.ascontiguousarray(images), table[:, 0].astype(np.int64))
    return Dataset(examples, (32, 32, 3), 256, len(NAMES), NAMES)


def _from_archive(archive: Path, names: list[str]) -> list[bytes]:
    """Return the contents of the named members, without extracting them to the disk."""
    with gzip.open(archive) as file:  # read whole, because the checksum is at the end
        content = io.BytesIO(file.read())
    with tarfile.open(fileobj=content) as tar:
        members = [tar.extractfile(f"{FOLDER}/{name}") for name in names]
        if None in members:
            raise ValueError("a data file is not a regular file")
        return [member.read() for member in members if member is not None]


def download(folder: Path, url: str = URL, md5: str = MD5) -> Path:
    """Download the archive into a folder, resuming an interrupted download, and check its MD5.

    Args:
      folder: Folder, which is made if necessary.
      url: Address of the archive.
      md5: Expected MD5 of the archive.

    Returns:
      Path of the archive.

    Raises:
      UserError: if there is no network, the folder can't be written, or the MD5 is not the expected one.
    """
    path, partial = folder / ARCHIVE, folder / f"{ARCHIVE}.partial"
    alternatives = (
        f"copy {ARCHIVE} to a folder and give the folder as the path, or prepare the data set with TensorFlow Datasets "
        "(pip install tensorflow-cpu, then tfds build cifar10 --file_format=array_record)"
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with partial.open("ab") as file:
            with suppress(OSError):  # without file locks each process downloads
                fcntl.flock(file, fcntl.LOCK_EX)  # only one of several processes on a machine downloads
            if path.is_file():
                return path
            _fetch(url, partial)
            if _md5(partial) == md5:
                os.replace(partial, path)
                return path
    except (OSError, ValueError) as error:  # urllib's errors are OSErrors
        kept = f"; {partial.stat().st_size} bytes are kept, and the same command continues" if partial.exists() else ""
        raise UserError(
            f"cifar10: {url} can't be downloaded to {folder}: {error}{kept}; otherwise {alternatives}", "path"
        ) from error
    actual = _md5(partial)
    partial.unlink()
    raise UserError(
        f"cifar10: expected an archive with MD5 {md5} at {url}, got {actual}; it was removed; {alternatives}", "path"
    )


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _fetch(url: str, partial: Path) -> None:
    """Append the missing bytes to a partial file, with a progress bar."""
    size = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={size}-"} if size else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # the range is empty, because no byte is missing
            return
        raise
    with response:
        continued = response.status == 206
        length = int(response.headers.get("Content-Length") or 0)
        size = size if continued else 0
        with (
            partial.open("ab" if continued else "wb") as file,
            tqdm(desc="CIFAR-10", total=size + length or None, initial=size, unit="B", unit_scale=True) as bar,
        ):
            while block := response.read(1 << 20):
                file.write(block)
                bar.update(len(block))
        if length and partial.stat().st_size != size + length:
            raise OSError(f"the connection ended after {partial.stat().st_size} of {size + length} bytes")
