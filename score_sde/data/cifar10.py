"""CIFAR-10 from its authors' binary archive (Krizhevsky 2009), downloaded where it is missing; no TensorFlow needed."""

import fcntl
import gzip
import hashlib
import io
import os
import tarfile
import urllib.error
import urllib.request
import zlib
from pathlib import Path

import numpy as np
from tqdm import tqdm

from score_sde.data.examples import Arrays, Source
from score_sde.errors import UserError

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"  # as the authors publish it
ARCHIVE, FOLDER = "cifar-10-binary.tar.gz", "cifar-10-batches-bin"
FILES = {"train": [f"data_batch_{n}.bin" for n in range(1, 6)], "test": ["test_batch.bin"]}
ROW = 1 + 3 * 32 * 32  # bytes: a label, then the red, green and blue planes
SECONDS = 30.0  # without a byte, after which a download is given up


def find(path: str) -> Path | None:
    """Returns the archive or the extracted folder in a folder, if one of them is there."""
    folder = Path(path)
    places = (folder / FOLDER, folder / ARCHIVE, folder)
    return next((place for place in places if place.is_file() or (place / FILES["test"][0]).is_file()), None)


def read(split: str, place: Path) -> Source:
    """Reads a split from the archive or from the folder extracted from it.

    Raises:
      UserError: if a file is missing or damaged.
    """
    try:
        names = FILES[split]
        parts = _from_archive(place, names) if place.is_file() else [(place / name).read_bytes() for name in names]
    except (OSError, EOFError, ValueError, KeyError, tarfile.TarError, zlib.error) as error:
        raise UserError(f"cifar10: {place} can't be read: {error} (remove it, and it is downloaded again)") from error
    rows = b"".join(parts)
    table = np.frombuffer(rows[: len(rows) // ROW * ROW], np.uint8).reshape(-1, ROW)
    if len(rows) % ROW or not len(table) or table[:, 0].max() > 9:
        raise UserError(
            f"cifar10: {place} is damaged: expected rows of {ROW} bytes with labels 0 to 9, got {len(rows)} bytes "
            "(remove it, and it is downloaded again)"
        )
    images = table[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return Source(Arrays(np.ascontiguousarray(images), table[:, 0].astype(np.int64)), (32, 32, 3), 256, 10)


def _from_archive(archive: Path, names: list[str]) -> list[bytes]:
    """Reads members by name; nothing is extracted to the disk."""
    with gzip.open(archive) as file:  # as a whole, since its checksum stands at the end
        content = io.BytesIO(file.read())
    with tarfile.open(fileobj=content) as tar:
        members = [tar.extractfile(f"{FOLDER}/{name}") for name in names]
        if None in members:
            raise ValueError("a data file is not a regular file")
        return [member.read() for member in members if member is not None]


def download(folder: Path, url: str = URL, md5: str = MD5) -> Path:
    """Downloads the archive into a folder, where an interrupted download is continued, and checks its MD5.

    Raises:
      UserError: if there is no network, the folder can't be written, or the archive is not the authors'.
    """
    path, partial = folder / ARCHIVE, folder / f"{ARCHIVE}.partial"
    ways = (
        f"copy {ARCHIVE} to a folder and set --config.data.path to it, or prepare the set with TensorFlow Datasets "
        "(pip install tensorflow-cpu, then tfds build cifar10 --file_format=array_record)"
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with partial.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # of several processes on one machine, one downloads
            if path.is_file():
                return path
            _fetch(url, partial)
            if _md5(partial) == md5:
                os.replace(partial, path)
                return path
    except (OSError, ValueError) as error:  # urllib's errors are OSErrors
        kept = f"; {partial.stat().st_size} bytes are kept, and the same command continues" if partial.exists() else ""
        raise UserError(f"cifar10: {url} can't be downloaded to {folder}: {error}{kept}; otherwise {ways}") from error
    found = _md5(partial)
    partial.unlink()
    raise UserError(f"cifar10: expected an archive with MD5 {md5} at {url}, got {found}; it was removed; {ways}")


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _fetch(url: str, partial: Path) -> None:
    """Appends what is missing to a partial file, with a progress bar."""
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is missing
            return
        raise
    with response:
        continued = response.status == 206
        length = int(response.headers.get("Content-Length") or 0)
        have = have if continued else 0
        with (
            partial.open("ab" if continued else "wb") as file,
            tqdm(desc="CIFAR-10", total=have + length or None, initial=have, unit="B", unit_scale=True) as bar,
        ):
            while block := response.read(1 << 20):
                file.write(block)
                bar.update(len(block))
        if length and partial.stat().st_size != have + length:
            raise OSError(f"the connection ended after {partial.stat().st_size} of {have + length} bytes")
