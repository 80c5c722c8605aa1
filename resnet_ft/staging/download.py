"""A file from the web: what breaks off is continued, also by a later call."""

import http.client
import json
import re
import shutil
import time
import urllib.error
from pathlib import Path

from resnet_ft.errors import DatasetError
from resnet_ft.notebook import progress_bar
from resnet_ft.remote import WAITS, may_pass, open_address, reason_of


class Partial:
    """What has come so far, and a note of which state of the file at the server it is."""

    def __init__(self, folder: Path):
        self.path = folder / "partial"
        self._note = folder / "server.json"

    def size(self) -> int:
        """Bytes that are there."""
        return self.path.stat().st_size if self.path.exists() else 0

    def server(self) -> dict:
        """The file's `total` size and `validator` (ETag or date), None where nobody told."""
        try:
            return json.loads(self._note.read_text())
        except (OSError, ValueError):
            return {"total": None, "validator": None}

    def begin(self, total: int | None, validator: str | None) -> None:
        """Forget what came; what comes now is of this state."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_bytes(b"")
        self._note.write_text(json.dumps({"total": total, "validator": validator}))

    def discard(self) -> None:
        """Leave nothing: it is not what was wanted."""
        shutil.rmtree(self.path.parent)


_BROKEN_OFF = (http.client.HTTPException, urllib.error.URLError, ConnectionError, TimeoutError)
_ANOTHER_FILE = 416  # what was asked for lies behind its end
_NEEDS_LOGIN = (
    "It asks for a login or a permission. Use a link that opens without one, or download the file "
    "in a browser, put it on Drive and give its path."
)
_REMEDIES = {
    401: _NEEDS_LOGIN,
    403: _NEEDS_LOGIN,
    404: "Check the address: is the file still there?",
    410: "The file was removed: look for its new address.",
    429: "The server limits how often it is asked. Wait an hour, and run it again.",
}


def download(url: str, folder: Path) -> Path:
    """Fetch a file into `folder` and return its path there; what an earlier call left is continued.

    A break is followed by further tries that continue where it broke off, if the server still has
    the same file. Raises DatasetError with the address, the reason and a remedy for what the server
    refuses, for a web page, and where the file does not fit on the disk.
    """
    complete, partial = folder / "complete", Partial(folder)
    waits = list(WAITS)
    while not complete.exists():
        before = partial.size()
        try:
            _fetch(url, partial)
            partial.path.rename(complete)
        except _BROKEN_OFF as error:
            if partial.size() > before:
                waits = list(WAITS)  # it got on: this is another break, not the same one
            passes = may_pass(error) or error.code == _ANOTHER_FILE
            if not waits or not passes:
                raise _refused(url, error) from error
            time.sleep(waits.pop(0))
    return complete


def _fetch(url: str, partial: Partial) -> None:
    """Get what is missing, or raise one of _BROKEN_OFF."""
    if partial.size() and partial.size() == partial.server()["total"]:
        return
    try:
        response = open_address(url, **_headers(partial))
    except urllib.error.HTTPError as error:
        if error.code == _ANOTHER_FILE:
            partial.begin(None, None)
        raise
    with response:
        if not _continues(response, partial):
            partial.begin(_length(response), _validator(response))
        _receive(url, response, partial)
    total = partial.server()["total"]
    if total is not None and partial.size() != total:
        raise ConnectionError(f"only {partial.size():,} of {total:,} bytes came")


def _headers(partial: Partial) -> dict[str, str]:
    headers = {"Accept-Encoding": "identity"}
    if partial.size():
        headers["Range"] = f"bytes={partial.size()}-"
        if validator := partial.server()["validator"]:
            headers["If-Range"] = validator
    return headers


def _continues(response: http.client.HTTPResponse, partial: Partial) -> bool:
    """Whether a response is the rest of what came; otherwise it is the file from its beginning."""
    if response.status != 206:
        return False
    found = re.match(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    size, total = partial.size(), partial.server()["total"]
    if not found or int(found[1]) != size or (total and found[2] not in ("*", str(total))):
        partial.begin(None, None)
        raise ConnectionError("the server sent another part than the one that was asked for")
    return True


def _length(response: http.client.HTTPResponse) -> int | None:
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None


def _validator(response: http.client.HTTPResponse) -> str | None:
    etag = response.headers.get("ETag", "W/")
    return response.headers.get("Last-Modified") if etag.startswith("W/") else etag


def _receive(url: str, response: http.client.HTTPResponse, partial: Partial) -> None:
    begun, total = partial.size(), partial.server()["total"]
    _check_space(url, partial, (total or 0) - begun)
    bar = progress_bar(None, "Downloading", total, unit="B", unit_scale=True, initial=begun)
    with bar, partial.path.open("ab") as file:
        while chunk := response.read1(1 << 18):
            if file.tell() == 0 and chunk.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"<":
                partial.discard()
                raise _is_a_page(url)
            file.write(chunk)
            file.flush()
            bar.update(len(chunk))


def _check_space(url: str, partial: Partial, size: int) -> None:
    free = shutil.disk_usage(partial.path.parent).free
    if size > free:
        partial.discard()
        raise DatasetError(
            f"{url} needs {size / 1e9:,.1f} GB, and {free / 1e9:,.1f} are free at "
            f"{partial.path.parents[2]}. Make room there, or give another destination."
        )


def _is_a_page(url: str) -> DatasetError:
    return DatasetError(
        f"{url} is a web page, not an archive. Give the address of the download itself (on most "
        "pages: right-click the download button, copy the link). A file on Google Drive needs no "
        "address: mount Drive and give its path."
    )


def _refused(url: str, error: Exception) -> DatasetError:
    if isinstance(error, urllib.error.HTTPError):
        remedy = _REMEDIES.get(error.code, "Check the address, and run it again later.")
    else:
        remedy = "Check the address and the network, and run it again: it continues where it was."
    return DatasetError(f"{url} could not be downloaded: {reason_of(error)}. {remedy}")
