"""A file from the web: an interrupted download is resumed, also by a later call."""

import json
import re
import shutil
from pathlib import Path

import requests

from resnet_ft.errors import DatasetError
from resnet_ft.notebook import progress_bar
from resnet_ft.remote import read_body, reason_of, request, web_retry

_RANGE_NOT_SATISFIABLE = 416
_NEEDS_LOGIN = (
    "It asks for a login or a permission. Use a link that opens without one, or download the file "
    "in a browser, put it on Drive and give its path."
)
_REMEDIES = {
    401: _NEEDS_LOGIN,
    403: _NEEDS_LOGIN,
    404: "Check the address: is the file still there?",
    410: "The file was removed: look for its new address.",
    429: "The server limits the number of requests. Wait an hour, and run it again.",
}


def download(url: str, folder: Path) -> Path:
    """Download a file into `folder` and return its path there, resuming what an earlier call left.

    An interruption is followed by further tries that resume, if the server still has the same file.
    Raises DatasetError with the address, the reason and a remedy for what the server refuses, for a
    web page, and where the file does not fit on the disk.
    """
    complete, partial = folder / "complete", _Partial(folder)
    finished = complete.exists()
    try:
        while not finished:  # some bytes came: the next interruption gets as many tries again
            finished = web_retry(_receive_more, url, partial)
    except (requests.RequestException, ConnectionError, TimeoutError) as error:
        remedy = "Check the address and the network, and run it again: it resumes where it stopped."
        if isinstance(error, requests.HTTPError):
            default = "Check the address, and run it again later."
            remedy = _REMEDIES.get(error.response.status_code, default)
        raise DatasetError(
            f"{url} could not be downloaded: {reason_of(error)}. {remedy}"
        ) from error
    if not complete.exists():
        partial.path.rename(complete)
    return complete


class _Partial:
    """The bytes that came so far, and a note of the server's file that they are from."""

    def __init__(self, folder: Path):
        self.path = folder / "partial"
        self._note = folder / "server.json"

    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def server(self) -> dict:
        """The file's `total` size and `validator` (ETag or date); None where it is unknown."""
        try:
            return json.loads(self._note.read_text())
        except (OSError, ValueError):
            return {"total": None, "validator": None}

    def begin(self, total: int | None, validator: str | None) -> None:
        """Drop the bytes that came; the next ones are from this file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_bytes(b"")
        self._note.write_text(json.dumps({"total": total, "validator": validator}))

    def discard(self) -> None:
        shutil.rmtree(self.path.parent)


def _receive_more(url: str, partial: _Partial) -> bool:
    """Download what is missing; False where it was interrupted after some bytes.

    Raises an error of requests, or ConnectionError, where no byte came.
    """
    size, server = partial.size(), partial.server()
    if size and size == server["total"]:
        return True
    headers = {}
    if size:
        headers["Range"] = f"bytes={size}-"
        if server["validator"]:
            headers["If-Range"] = server["validator"]
    try:
        with request(url, **headers) as response:
            if not _resumes(response, partial):
                length = response.headers.get("Content-Length", "")
                etag = response.headers.get("ETag", "W/")
                weak = etag.startswith("W/")  # the same for files that differ in a few bytes
                validator = response.headers.get("Last-Modified") if weak else etag
                partial.begin(int(length) if length.isdigit() else None, validator)
            size = partial.size()
            _append_body(url, response, partial)
    except requests.HTTPError as error:
        if error.response.status_code != _RANGE_NOT_SATISFIABLE:
            raise
        partial.discard()
        raise ConnectionError("the server's file is shorter than what came before") from error
    except ConnectionError:
        if partial.size() <= size:
            raise
        return False
    return True


def _resumes(response: requests.Response, partial: _Partial) -> bool:
    """Whether a response is the missing rest; otherwise it is the file from its beginning."""
    if response.status_code != requests.codes.partial_content:
        return False
    found = re.match(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    size, total = partial.size(), partial.server()["total"]
    if not found or int(found[1]) != size or (total and found[2] not in ("*", str(total))):
        partial.discard()
        raise ConnectionError("the server sent another part than the one that was asked for")
    return True


def _append_body(url: str, response: requests.Response, partial: _Partial) -> None:
    begun, total = partial.size(), partial.server()["total"]
    free = shutil.disk_usage(partial.path.parent).free
    if (total or 0) - begun > free:
        partial.discard()
        raise DatasetError(
            f"{url} needs {(total - begun) / 1e9:,.1f} GB, and {free / 1e9:,.1f} are free at "
            f"{partial.path.parents[2]}. Make room there, or give another destination."
        )
    bar = progress_bar(None, "Downloading", total, unit="B", unit_scale=True, initial=begun)
    with bar, partial.path.open("ab") as file:
        for chunk in read_body(response, total, begun):
            if file.tell() == 0 and chunk.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"<":
                partial.discard()
                raise DatasetError(
                    f"{url} is a web page, not an archive. Give the address of the download itself "
                    "(on most pages: right-click the download button, copy the link). A file on "
                    "Google Drive needs no address: mount Drive and give its path."
                )
            file.write(chunk)
            file.flush()
            bar.update(len(chunk))
