"""CIFAR-10 from the authors' archive, served on this machine: right, interrupted, wrong, and absent."""

import functools
import hashlib
import io
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest

from score_sde.data import cifar10, load
from score_sde.errors import UserError


@functools.cache
def batches(rows=4):
    """Random binary batches in the authors' format, and their images and labels."""
    rng = np.random.default_rng(0)
    content, truth = {}, {}
    for split, names in cifar10.FILES.items():
        tables = [rng.integers(0, 256, (rows, cifar10.ROW), np.uint8) for _ in names]
        for table, name in zip(tables, names, strict=True):
            table[:, 0] = rng.integers(0, 10, rows)
            content[name] = table.tobytes()
        table = np.concatenate(tables)
        truth[split] = np.moveaxis(table[:, 1:].reshape(-1, 3, 32, 32), 1, -1), table[:, 0]
    return content, truth


@functools.cache
def archive():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in batches()[0].items():
            info = tarfile.TarInfo(f"{cifar10.FOLDER}/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def server():
    """Serves the archive at (address, handler); `handler.cut` ends the next response after that many bytes."""

    class Handler(BaseHTTPRequestHandler):
        content, cut, ranges = archive(), None, []

        def do_GET(self):
            requested = self.headers.get("Range")
            Handler.ranges.append(requested)
            first = int(requested.removeprefix("bytes=").removesuffix("-")) if requested else 0
            if first >= len(self.content):
                self.send_error(416)
                return
            self.send_response(206 if requested else 200)
            self.send_header("Content-Length", str(len(self.content) - first))
            self.end_headers()
            self.wfile.write(self.content[first : Handler.cut])
            Handler.cut = None

        def log_message(self, *args):
            pass

    httpd = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}/{cifar10.ARCHIVE}", Handler
    httpd.shutdown()
    httpd.server_close()


def check(folder):
    for split, (images, labels) in batches()[1].items():
        dataset = load("cifar10", split, 32, 3, str(folder))
        assert (len(dataset.examples), dataset.num_classes, dataset.levels) == (len(labels), 10, 256)
        for i in range(len(labels)):
            np.testing.assert_array_equal(dataset.examples[i]["image"], images[i])
            assert dataset.examples[i]["label"] == labels[i]


def test_archive_and_extracted_folder_are_read(tmp_path):
    (tmp_path / cifar10.ARCHIVE).write_bytes(archive())
    check(tmp_path)
    folder = tmp_path / "other" / cifar10.FOLDER
    folder.mkdir(parents=True)
    for name, data in batches()[0].items():
        (folder / name).write_bytes(data)
    check(folder.parent)
    check(folder)


def test_missing_archive_is_downloaded(tmp_path, server, monkeypatch):
    """On a machine without TensorFlow."""
    monkeypatch.setattr(cifar10.download, "__defaults__", (server[0], hashlib.md5(archive()).hexdigest()))
    monkeypatch.setattr("score_sde.data.datasets.find_spec", lambda name: None)
    check(tmp_path / "new")
    assert (tmp_path / "new" / cifar10.ARCHIVE).read_bytes() == archive()
    assert server[1].ranges == [None]


def test_interrupted_download_is_continued(tmp_path, server):
    address, handler = server
    handler.cut = 1000
    md5 = hashlib.md5(archive()).hexdigest()
    with pytest.raises(UserError, match="1000 bytes are kept, and the same command continues"):
        cifar10.download(tmp_path, address, md5)
    assert not (tmp_path / cifar10.ARCHIVE).exists()
    cifar10.download(tmp_path, address, md5)
    assert handler.ranges == [None, "bytes=1000-"]
    check(tmp_path)
    (tmp_path / cifar10.ARCHIVE).rename(tmp_path / f"{cifar10.ARCHIVE}.partial")  # killed before it was renamed
    cifar10.download(tmp_path, address, md5)
    check(tmp_path)


def test_wrong_archive_is_removed(tmp_path, server):
    with pytest.raises(UserError, match=r"expected an archive with MD5 .*it was removed"):
        cifar10.download(tmp_path, server[0], "0" * 32)
    assert list(tmp_path.iterdir()) == []


def test_absent_network_names_both_alternatives(tmp_path):
    with pytest.raises(UserError, match=r"can't be downloaded .*tfds build cifar10.*\(set path\)"):
        cifar10.download(tmp_path, "http://127.0.0.1:9/nothing", "")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't be downloaded to"):
        cifar10.download(tmp_path / "file", "http://127.0.0.1:9/nothing", "")


@pytest.mark.parametrize("keep", [0, 10, 5000, -1])
def test_damaged_archives_are_named(tmp_path, keep):
    raw = archive()[:keep] if keep >= 0 else bytes([*archive()[:200], archive()[200] ^ 255, *archive()[201:]])
    (tmp_path / cifar10.ARCHIVE).write_bytes(raw)
    with pytest.raises(UserError, match=rf"{cifar10.ARCHIVE} (can't be read|is damaged)"):
        for split in ("train", "test"):
            load("cifar10", split, 32, 3, str(tmp_path))
