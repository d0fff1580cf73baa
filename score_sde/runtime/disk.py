"""Atomic writes, file locks, and quarantine of damaged files."""

import fcntl
import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from score_sde.errors import escape

STALE_AFTER = 3600.0  # seconds; the process that wrote an older partial file was killed
UNREADABLE = (OSError, ValueError, RecursionError)  # json and UTF-8 decoding raise ValueErrors


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Replace a file atomically at the end of the block, after flushing the new content to disk.

    Yields:
      Path of a partial file to write, unique to this call and with the suffix of `path`. It is removed if the block
      fails.
    """
    name = f"partial_{{}}_{path.name}"
    for old in path.parent.glob(name.format("*")):
        with suppress(OSError):
            if time.time() - old.stat().st_mtime > STALE_AFTER:
                old.unlink()
    partial = path.with_name(name.format(secrets.token_hex(6)))
    try:
        partial.touch()
        mode = partial.stat().st_mode  # by the umask
        yield partial
        partial.chmod(mode)  # safetensors makes a file that only its owner can read
        _flush(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    with suppress(OSError):  # not every file system can flush folders
        _flush(path.parent)


def write_atomically(path: Path, text: str) -> None:
    """Replace a file's text atomically, so that a killed run never leaves half of it."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
      OSError, ValueError or RecursionError (`UNREADABLE`): if the file can't be read or holds no JSON object.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object, got a {type(content).__name__}")
    return content


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write an .npz file for `read_arrays` atomically."""
    with replacing(path) as partial:
        np.savez(partial, **arrays, members=np.array(sorted(arrays)))


def read_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """Return the arrays of an .npz file; None if it is missing, or damaged, which is reported."""
    try:
        with np.load(path) as stored:
            arrays = dict(stored)  # reading verifies the checksum of each member
        if arrays.pop("members").tolist() != sorted(arrays):
            raise ValueError("an array is missing")
        return arrays
    except FileNotFoundError:
        return None
    except Exception as error:  # zipfile, zlib and NumPy each raise their own kinds
        report(f"{path} can't be read ({error}) and is recomputed")
        return None


def quarantine(path: Path, workdir: Path) -> Path:
    """Move a damaged file or folder of a run to DIR/damaged and return its new path."""
    folder = workdir / "damaged"
    folder.mkdir(exist_ok=True)
    target = next(target for n in range(10**6) if not (target := folder / f"{path.name}.{n}").exists())
    path.rename(target)
    return target


def report(message: str) -> None:
    """Print a line to stderr, without control characters."""
    print(escape(message), file=sys.stderr, flush=True)


@contextmanager
def locked(path: Path, seconds: float) -> Iterator[str | None]:
    """Hold a file lock during the block; the system releases it when the process ends, even if it is killed.

    Args:
      path: Path of the lock file, created if it is missing.
      seconds: Longest wait for another holder.

    Yields:
      None if this process holds the lock, otherwise the other holder ("process 12 on host"). If the file system has no
      locks, a warning is printed and the block runs unlocked.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        end = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < end:
                    time.sleep(0.05)
                    continue
                yield os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
                return
            except OSError as error:
                report(f"{path.parent} has no file locks ({error.strerror}): no second process may write to it")
            break
        with suppress(OSError):  # the name does not fit on a full disk
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield None
    finally:
        os.close(descriptor)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
