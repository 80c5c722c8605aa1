import base64
import contextlib
import hashlib
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
import traceback
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import tenacity
from conftest import ROOT

from resnet_ft import DatasetError, Run, decisions_file, open_image, stage_dataset


class Server:
    """One file on a loopback address, and how the server behaves; `requests` are their headers."""

    def __init__(self, content: bytes):
        self.content = content
        self.content_type = "application/octet-stream"
        self.statuses: list[int] = []  # answered first, one per request
        self.breaks_after: list[int] = []  # bytes after which a connection ends, one per request
        self.ranges = self.validators = self.length = True
        self.last_modified = ""
        self.ignores_if_range = self.always_parts = False
        self.part_validators = True
        self.changes_to: list[bytes] = []  # the content from the second request on
        self.login = ""  # "user:password" that it asks for
        self.step, self.pause_s = 1 << 14, 0.0  # bytes between two pauses
        self.requests: list[dict] = []
        self.url = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.requests.append(dict(handler.headers))
        if self.statuses:
            handler.send_error(self.statuses.pop(0))
            return
        if self.login:
            expected = "Basic " + base64.b64encode(self.login.encode()).decode()
            if handler.headers.get("Authorization") != expected:
                handler.send_error(401)
                return
        if len(self.requests) == 2 and self.changes_to:
            self.content = self.changes_to.pop()
        etag = f'"{hashlib.sha256(self.content).hexdigest()}"'
        begin, wanted = 0, handler.headers.get("Range")
        unchanged = handler.headers.get("If-Range", etag) in (etag, self.last_modified)
        if wanted and self.ranges and (unchanged or self.ignores_if_range):
            begin = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if begin and begin >= len(self.content):
            handler.send_error(416)
            return
        is_part = bool(begin) or self.always_parts
        handler.send_response(206 if is_part else 200)
        handler.send_header("Content-Type", self.content_type)
        if is_part:
            last = len(self.content) - 1
            handler.send_header("Content-Range", f"bytes {begin}-{last}/{len(self.content)}")
        if self.length:
            handler.send_header("Content-Length", str(len(self.content) - begin))
        if self.last_modified and (self.part_validators or not begin):
            handler.send_header("Last-Modified", self.last_modified)
        if self.validators and (self.part_validators or not begin):
            handler.send_header("ETag", etag)
        handler.end_headers()
        self.send_body(handler, self.content[begin:])

    def send_body(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        if self.breaks_after:
            body = body[: self.breaks_after.pop(0)]
        with contextlib.suppress(ConnectionError):  # the client was killed
            for i in range(0, len(body), self.step):
                handler.wfile.write(body[i : i + self.step])
                handler.wfile.flush()
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


@pytest.fixture
def no_waits(monkeypatch):
    monkeypatch.setattr("resnet_ft.remote.web_retry.wait", tenacity.wait_none())


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


@pytest.mark.parametrize("validator", ["ETag", "Last-Modified"])
def test_an_interrupted_download_is_resumed(server, photos, tmp_path, validator):
    server.validators = validator == "ETag"
    server.last_modified = "Fri, 27 Nov 2026 10:00:00 GMT"
    server.breaks_after = [40_000, 30_000]
    assert tree(stage_dataset(server.url, tmp_path / "local")) == tree(photos)
    assert [request.get("Range") for request in server.requests] == [
        None,
        "bytes=40000-",
        "bytes=70000-",
    ]
    assert server.requests[1]["If-Range"].startswith('"' if server.validators else "Fri")


@pytest.mark.parametrize("same_size", [True, False])
@pytest.mark.parametrize("validator", ["ETag", "Last-Modified", None])
def test_an_archive_that_changes_on_the_server_is_never_a_mixture(
    server, photos, tmp_path, same_size, validator
):
    files = [(f"{name}/{i}.bin", os.urandom(4000)) for name in "ab" for i in range(15)]
    versions = []
    for version in (b"first", b"later"):
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as file:
            for name, content in files:
                file.writestr(name, version + content)
            if version == b"later" and not same_size:
                file.writestr("b/more.bin", b"more")
        versions.append(archive.getvalue())
    server.content, server.changes_to = versions[0], versions[1:]
    server.ignores_if_range, server.breaks_after = True, [60_000]
    server.validators = validator == "ETag"
    if validator == "Last-Modified":
        server.last_modified = "Fri, 27 Nov 2026 10:00:00 GMT"
        server.part_validators = False  # nothing says of which version the part is
    staged = tree(stage_dataset(server.url, tmp_path / "local"))
    assert {content[:5] for name, content in staged.items() if "more" not in name} == {b"later"}
    assert len(staged) == 30 + (not same_size)
    resumed = ["Range" in request for request in server.requests]
    assert resumed == ([False, True, False] if validator else [False, False])


def test_a_part_that_nobody_asked_for_is_no_file(server, tmp_path, no_waits):
    server.always_parts = True
    with pytest.raises(DatasetError, match="the server sent a part of another file"):
        stage_dataset(server.url, tmp_path / "local")
    assert not any(path.is_file() for path in (tmp_path / "local").rglob("*"))


def test_a_server_that_can_never_resume_is_given_up(server, tmp_path):
    server.ranges = False
    server.breaks_after = [40_000] * 99
    with pytest.raises(DatasetError, match=r"began anew, 4 times.*Download it in a browser"):
        stage_dataset(server.url, tmp_path / "local")


@pytest.mark.parametrize("length", [True, False])
def test_a_server_that_sends_byte_by_byte_is_given_up(
    server, tmp_path, monkeypatch, no_waits, length
):
    monkeypatch.setattr("resnet_ft.remote._PATIENCE_S", 0.2)
    server.length = length
    server.step, server.pause_s = 1, 0.02
    with pytest.raises(DatasetError, match="the server sent fewer than 16,384 bytes in 0 seconds"):
        stage_dataset(server.url, tmp_path / "local")


def test_endless_little_parts_are_given_up(server, tmp_path, no_waits):
    server.breaks_after = [100] * 999
    with pytest.raises(DatasetError, match=r"only 400 of [\d,]+ bytes came"):
        stage_dataset(server.url, tmp_path / "local")


_BODY = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("begun", "said"),
    [
        (b"HTTP/1.1 200 OK\r\nX-Long: ", "no answer began within 0 seconds"),
        (_BODY, "fewer than 16,384 bytes in 0 seconds"),  # the size of a chunk, which never ends
        (_BODY + b"4;", "fewer than 16,384 bytes in 0 seconds"),  # an extension of it
        (_BODY + b"2\r\nPK\r\n0\r\nX: ", "fewer than 16,384 bytes in 0 seconds"),  # trailers
    ],
)
def test_an_answer_with_a_line_that_never_ends_is_given_up(
    tmp_path, monkeypatch, no_waits, begun, said
):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("resnet_ft.remote._PATIENCE_S", 0.2)
    listener = socket.create_server(("127.0.0.1", 0))

    def trickle() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    connection.sendall(begun)
                    for _ in range(100):
                        connection.sendall(b"0")
                        time.sleep(0.02)

    thread = threading.Thread(target=trickle, daemon=True)
    thread.start()
    with pytest.raises(DatasetError, match=said):
        stage_dataset(f"http://127.0.0.1:{listener.getsockname()[1]}/x.zip", tmp_path / "local")
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


SECRETS = ("opensesame", "s1gn4ture", "t0ken")


def test_passwords_in_an_address_are_used_and_never_shown_or_stored(server, photos, tmp_path):
    server.login = "ann:opensesame"
    place = server.url.partition("//")[2].partition("?")[0]
    url = f"http://ann:opensesame@{place}?X-Amz-Signature=s1gn4ture&sv=2&access_token=t0ken"
    messages = []
    server.statuses = [404]
    with pytest.raises(DatasetError) as raised:
        stage_dataset(url, tmp_path / "local")
    messages.append("".join(traceback.format_exception(raised.value)))
    server.content, archive = b"no archive", server.content
    with pytest.raises(DatasetError) as raised:
        stage_dataset(url, tmp_path / "local")
    messages.append("".join(traceback.format_exception(raised.value)))
    server.content = archive
    staged = stage_dataset(url, tmp_path / "local")
    assert tree(staged) == tree(photos)
    run = Run.open(tmp_path / "run", {"data_source": url})
    # What was stored leads to the staged folder; elsewhere it says what is missing.
    assert stage_dataset(run.data_source, tmp_path / "local") == staged
    with pytest.raises(DatasetError, match="stored without its password or signature") as raised:
        stage_dataset(run.data_source, tmp_path / "elsewhere")
    messages += [str(raised.value), (run.folder / "config.json").read_text()]
    messages.append(str(decisions_file(tmp_path, url)))
    messages += [str(path) for path in tmp_path.rglob("*")]
    assert not [(secret, text) for text in messages for secret in SECRETS if secret in text]
    assert f"http://***@{place}?X-Amz-Signature=***" in messages[0]
    assert "&sv=2&" in messages[0]


def test_what_is_stored_is_masked_in_lists_and_commands_and_nothing_else_changes(tmp_path):
    plain = {
        "note": "pass -u name, key=1; 5 > 3",
        "path": "photos #1?key=2",
        "page": "http://a/b?id=7",
    }
    command = (
        'pipe:curl -u ann:opensesame -H "Authorization: Bearer t0ken" "https://h/é?sig=s1gn4ture"'
    )
    run = Run.open(tmp_path / "run", {**plain, "more": {"sources": [command, 3]}})
    assert {name: run.config[name] for name in plain} == plain
    kept = run.config["more"]["sources"]
    assert (
        kept[1] == 3 and kept[0].startswith("pipe:curl -u *** -H ") and '" "https://h/é?' in kept[0]
    )
    assert not [secret for secret in SECRETS if secret in kept[0]]
    assert Run.open(run, {"more": {"sources": kept}}).config == run.config


def test_a_config_that_somebody_wrote_keeps_its_address(tmp_path):
    file = tmp_path / "config.json"
    file.write_text('{"data_source": "https://ann:opensesame@host/x.zip"}')
    Run.open(tmp_path, {"data_source": "https://ann:opensesame@host/x.zip", "seed": 1})
    assert "ann:opensesame@" in file.read_text()


def test_addresses_that_differ_in_a_signature_are_two_sources(server, photos, tmp_path):
    first = stage_dataset(server.url, tmp_path)
    second = stage_dataset(server.url.replace("key=1", "key=2"), tmp_path)
    assert first != second


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("http://[::1/x.zip", "is not valid"),
        ("https://ann:opensesame@host/my photos.zip", "has a space or a line break"),
        ("https://ann:opensesame@host/photos.zip\n", "has a space or a line break"),
        (" https://host/photos.zip", "has a space or a line break"),
        ("https://ann:open/sesame@host/photos.zip", "is not valid"),
        ("https:///photos.zip", "names no server"),
        ("https://host:99999/photos.zip", "is not valid"),
        ("ftp://ann:opensesame@host/photos.zip", "does not begin with http:// or https://"),
    ],
)
def test_what_is_no_address_is_refused_at_once(tmp_path, address, reason):
    with pytest.raises(DatasetError, match=rf"The address \S+ {reason}") as raised:
        stage_dataset(address, tmp_path / "local")
    assert "sesame" not in "".join(traceback.format_exception(raised.value))
    assert not [*tmp_path.glob("local/*")]


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
    assert server.url.partition("?")[0] in str(raised.value)
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
    archive = server.content
    server.content, server.length = b"Quota exceeded", False
    with pytest.raises(
        DatasetError, match=r"photos.zip\?key=\S+ cannot be unpacked|is not that of"
    ):
        stage_dataset(server.url, tmp_path / "local")
    server.content = archive
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


@pytest.mark.parametrize(
    ("address", "secret"),
    [
        ("http://ann:pa'ss@host.invalid/x.zip", "pa'ss"),
        ('http://ann:pa"ss@host.invalid/x.zip', 'pa"ss'),
        ("http://host.invalid/x.zip?sig=abc'def", "def"),
        ("http://host.invalid/x.zip?hdnea=abcdef&v=2", "abcdef"),
        ("http:/ann:opensesame@host.invalid/x.zip", "opensesame"),
    ],
)
def test_no_address_is_so_odd_that_its_secret_is_shown(address, secret, tmp_path, no_waits):
    with pytest.raises(DatasetError) as raised:
        stage_dataset(address, tmp_path / "local")
    assert secret not in str(raised.value) and "host.invalid" in str(raised.value)
