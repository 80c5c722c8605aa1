import contextlib
import hashlib
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import ROOT

from resnet_ft import DatasetError, open_image, stage_dataset


class Server:
    """One file on a loopback address, and how the server behaves; `requests` are their headers."""

    def __init__(self, content: bytes):
        self.content = content
        self.content_type = "application/octet-stream"
        self.statuses: list[int] = []  # answered first, one per request
        self.breaks_after: list[int] = []  # bytes after which a connection ends, one per request
        self.ranges = self.validators = self.length = True
        self.pause_s = 0.0  # after every 16 KiB
        self.requests: list[dict] = []
        self.url = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.requests.append(dict(handler.headers))
        if self.statuses:
            handler.send_error(self.statuses.pop(0))
            return
        etag = f'"{hashlib.sha256(self.content).hexdigest()}"'
        begin, wanted = 0, handler.headers.get("Range")
        if wanted and self.ranges and handler.headers.get("If-Range", etag) == etag:
            begin = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if begin and begin >= len(self.content):
            handler.send_error(416)
            return
        handler.send_response(206 if begin else 200)
        handler.send_header("Content-Type", self.content_type)
        if begin:
            last = len(self.content) - 1
            handler.send_header("Content-Range", f"bytes {begin}-{last}/{len(self.content)}")
        if self.length:
            handler.send_header("Content-Length", str(len(self.content) - begin))
        if self.validators:
            handler.send_header("ETag", etag)
        handler.end_headers()
        self.send_body(handler, self.content[begin:])

    def send_body(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        if self.breaks_after:
            body = body[: self.breaks_after.pop(0)]
        with contextlib.suppress(ConnectionError):  # the client was killed
            for i in range(0, len(body), 1 << 14):
                handler.wfile.write(body[i : i + (1 << 14)])
                time.sleep(self.pause_s)


@pytest.fixture
def server(photos, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(photos.rglob("*.png")):
            file.write(path, path.relative_to(photos))
    server = Server(archive.getvalue())

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.answer(self)

        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, args=(0.02,))
    thread.start()
    server.url = f"http://127.0.0.1:{http.server_port}/some/photos.zip?key=1"
    yield server
    http.shutdown()
    http.server_close()
    thread.join()


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_an_archive_is_downloaded_and_unpacked_once(server, photos, tmp_path):
    staged = stage_dataset(server.url, tmp_path / "local")
    assert staged.name.startswith("photos-")
    assert tree(staged) == tree(photos)
    assert [path.name for path in (tmp_path / "local").iterdir()] == [staged.name]
    server.statuses = [500] * 9  # not asked again: it works without a network
    assert stage_dataset(server.url, tmp_path / "local") == staged
    assert len(server.requests) == 1


def test_the_format_of_a_download_is_recognised_by_its_content(server, photos, tmp_path):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:xz") as file:
        file.add(photos, ".")
    server.content = archive.getvalue()
    assert tree(stage_dataset(server.url, tmp_path / "local")) == tree(photos)


def test_an_archive_that_the_server_calls_encoded_is_not_decoded(server, photos, tmp_path):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as file:
        file.add(photos, ".")
    server.content = archive.getvalue()
    server.content_type += "\r\nContent-Encoding: gzip"
    assert tree(stage_dataset(server.url, tmp_path / "local")) == tree(photos)


@pytest.mark.parametrize("validators", [True, False])
def test_an_interrupted_download_is_resumed(server, photos, tmp_path, validators):
    server.validators = validators
    server.breaks_after = [40_000, 30_000]
    assert tree(stage_dataset(server.url, tmp_path / "local")) == tree(photos)
    assert [request.get("Range") for request in server.requests] == [
        None,
        "bytes=40000-",
        "bytes=70000-",
    ]
    assert ("If-Range" in server.requests[1]) == validators


def test_with_a_server_that_cannot_resume_it_starts_again(server, photos, tmp_path):
    server.ranges = False
    server.breaks_after = [40_000]
    assert tree(stage_dataset(server.url, tmp_path / "local")) == tree(photos)


def test_a_file_that_was_replaced_meanwhile_is_downloaded_from_its_start(server, photos, tmp_path):
    (folder := tmp_path / "local").mkdir()
    server.breaks_after = [40_000] + [0] * 9
    with pytest.raises(DatasetError, match="could not be downloaded: only 40,000 of"):
        stage_dataset(server.url, folder)
    server.breaks_after = []
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.write(photos / "Train" / "red" / "0.png", "red/other.png")
    server.content = archive.getvalue()
    assert list(tree(stage_dataset(server.url, folder))) == ["red/other.png"]


def test_a_busy_server_is_asked_again(server, photos, tmp_path):
    server.statuses = [503, 503]
    assert tree(stage_dataset(server.url, tmp_path / "local")) == tree(photos)
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("status", "remedy"),
    [(404, "Check the address"), (403, "login or a permission"), (410, "look for its new address")],
)
def test_what_the_server_refuses_is_named_with_the_remedy(server, tmp_path, status, remedy):
    server.statuses = [status]
    with pytest.raises(DatasetError, match=rf"answered {status} .*{remedy}") as raised:
        stage_dataset(server.url, tmp_path / "local")
    assert server.url in str(raised.value)
    assert list((tmp_path / "local").iterdir()) == []
    assert len(server.requests) == 1


def test_a_server_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    url = "http://127.0.0.1:9/photos.zip"
    with pytest.raises(DatasetError, match=rf"{url} could not be .*refused.*the network"):
        stage_dataset(url, tmp_path / "local")


@pytest.mark.parametrize("page", [b"<!DOCTYPE html><html>", b"\xef\xbb\xbf\n <html><body>Sign in"])
def test_a_web_page_is_no_archive(server, tmp_path, page):
    server.content, server.content_type = page, "text/html; charset=utf-8"
    with pytest.raises(DatasetError, match=r"is a web page, not an archive.*mount Drive"):
        stage_dataset(server.url, tmp_path / "local")
    assert list((tmp_path / "local").iterdir()) == []


def test_what_is_no_archive_is_refused_and_not_kept(server, photos, tmp_path):
    whole = server.content
    server.content, server.length = b"Quota exceeded", False
    with pytest.raises(DatasetError, match=r"photos.zip\?key=1 cannot be unpacked|is not that of"):
        stage_dataset(server.url, tmp_path / "local")
    server.content = whole
    assert tree(stage_dataset(server.url, tmp_path / "local")) == tree(photos)


def test_a_download_that_the_disk_cannot_hold_is_not_started(server, tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path).free
    server.length = False
    monkeypatch.setattr(server, "send_body", lambda *_: None)
    server.content_type += f"\r\nContent-Length: {2 * free}"
    with pytest.raises(DatasetError, match=r"needs .* GB, and .* are free at .*/local\. Make room"):
        stage_dataset(server.url, tmp_path / "local")


def test_a_killed_download_is_resumed(server, photos, tmp_path):
    server.pause_s = 0.2
    code = "import sys, resnet_ft; resnet_ft.stage_dataset(sys.argv[1], sys.argv[2])"
    command = [sys.executable, "-c", code, server.url, str(tmp_path / "local")]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    while not server.requests:
        time.sleep(0.05)
    time.sleep(0.7)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    server.pause_s = 0
    staged = stage_dataset(server.url, tmp_path / "local", max_side=None)
    assert tree(staged) == tree(photos)
    assert int(server.requests[-1]["Range"].removeprefix("bytes=").removesuffix("-")) > 0
    assert [path.name for path in (tmp_path / "local").iterdir()] == [staged.name]


def test_images_from_the_web_are_shrunk_too(server, tmp_path):
    staged = stage_dataset(server.url, tmp_path / "local", max_side=24)
    assert {open_image(path).size for path in staged.rglob("*.png")} == {(24, 20)}
