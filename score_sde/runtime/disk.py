"""Files that are whole or absent: atomic writes, locks, and damaged files set aside."""

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

LEFT_OVER = 3600.0  # seconds after which a partial file belongs to a process that was killed
UNREADABLE = (OSError, ValueError, RecursionError)  # JSON's and UTF-8's errors are ValueErrors


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Replaces a file in one step at the end of the block, after what was written has reached the disk.

    Yields:
      A partial file's path, unique to this call and with the suffix of `path`; it is removed if the block fails.
    """
    name = f"partial_{{}}_{path.name}"
    for old in path.parent.glob(name.format("*")):
        with suppress(OSError):
            if time.time() - old.stat().st_mtime > LEFT_OVER:
                old.unlink()
    partial = path.with_name(name.format(secrets.token_hex(6)))
    try:
        yield partial
        _flush(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    with suppress(OSError):  # not every file system flushes folders
        _flush(path.parent)


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file's text in one step, so that a killed run never leaves half of it."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def read_object(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
      OSError, ValueError or RecursionError (`UNREADABLE`): the file can't be read, or holds something else.
    """
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError("it holds no JSON object")
    return found


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Writes an .npz file for `read_arrays`, in one step."""
    with replacing(path) as partial:
        np.savez(partial, **arrays, members=np.array(sorted(arrays)))


def read_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays of an .npz file that can be made again; None where it is missing or, which is said, damaged."""
    try:
        with np.load(path) as stored:
            arrays = dict(stored)  # reading compares each member's checksum
        if arrays.pop("members").tolist() != sorted(arrays):
            raise ValueError("it lacks a part")
        return arrays
    except FileNotFoundError:
        return None
    except Exception as error:  # of zipfile, zlib and NumPy's header, each with its own
        report(f"{path} can't be read ({error}) and is made again")
        return None


def set_aside(path: Path, workdir: Path) -> Path:
    """Moves a damaged file or folder of a run to DIR/damaged, and returns its new path."""
    folder = workdir / "damaged"
    folder.mkdir(exist_ok=True)
    free = next(place for n in range(10**6) if not (place := folder / f"{path.name}.{n}").exists())
    path.rename(free)
    return free


def report(words: str) -> None:
    """Prints a line on stderr."""
    print(words, file=sys.stderr, flush=True)


@contextmanager
def locked(path: Path, seconds: float) -> Iterator[str | None]:
    """Holds a file's lock for the block; the system frees it when the process ends, however it ends.

    Args:
      path: the lock's file, made if it is missing.
      seconds: bound of the wait for another holder.

    Yields:
      None with the lock; without it the other holder, as "process 12 on host". Where the file system has no locks
      this is said, and the block goes on.
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
                report(f"{path.parent} has no locks ({error.strerror}): let no second process write to it")
            break
        with suppress(OSError):  # a full disk keeps no name
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
