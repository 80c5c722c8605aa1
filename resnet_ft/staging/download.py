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
    complete, partial = folder / "complete", folder / "partial"
    try:
        # When some bytes came, the next interruption gets as many tries again.
        while not complete.exists():
            if web_retry(_receive_more, url, partial):
                partial.rename(complete)
    except (requests.RequestException, ConnectionError, TimeoutError) as error:
        remedy = "Check the address and the network, and run it again: it resumes where it stopped."
        if isinstance(error, requests.HTTPError):
            default = "Check the address, and run it again later."
            remedy = _REMEDIES.get(error.response.status_code, default)
        raise DatasetError(
            f"{url} could not be downloaded: {reason_of(error)}. {remedy}"
        ) from error
    return complete


def _receive_more(url: str, partial: Path) -> bool:
    """Download what is missing; False where it was interrupted after some bytes.

    A note beside `partial` says which file of the server the bytes are from: its `total` size and
    `validator` (ETag or date), None where they are unknown. Raises an error of requests, or
    ConnectionError, where no byte came.
    """
    note = partial.with_name("server.json")
    try:
        begun, server = partial.stat().st_size, json.loads(note.read_text())
    except (OSError, ValueError):
        begun, server = 0, {"total": None, "validator": None}
    if begun and begun == server["total"]:
        return True
    headers = {}
    if begun:
        headers["Range"] = f"bytes={begun}-"
        if server["validator"]:
            headers["If-Range"] = server["validator"]
    try:
        with request(url, **headers) as response:
            if response.status_code == requests.codes.partial_content:
                content_range = response.headers.get("Content-Range", "")
                found = re.match(rf"bytes {begun}-\d+/(\d+|\*)", content_range)
                if not found or (server["total"] and found[1] not in ("*", str(server["total"]))):
                    shutil.rmtree(partial.parent)
                    raise ConnectionError("the server sent another part than the requested one")
            else:  # the file from its beginning
                length = response.headers.get("Content-Length", "")
                etag = response.headers.get("ETag", "W/")
                weak = etag.startswith("W/")  # the same for files that differ in a few bytes
                begun = 0
                server = {
                    "total": int(length) if length.isdigit() else None,
                    "validator": response.headers.get("Last-Modified") if weak else etag,
                }
                partial.parent.mkdir(parents=True, exist_ok=True)
                partial.write_bytes(b"")
                note.write_text(json.dumps(server))
            _append_body(url, response, partial, begun, server["total"])
    except requests.HTTPError as error:
        if error.response.status_code != _RANGE_NOT_SATISFIABLE:
            raise
        shutil.rmtree(partial.parent)
        raise ConnectionError("the server's file is shorter than what came before") from error
    except ConnectionError:
        if not partial.exists() or partial.stat().st_size <= begun:
            raise
        return False
    return True


def _append_body(
    url: str, response: requests.Response, partial: Path, begun: int, total: int | None
) -> None:
    free = shutil.disk_usage(partial.parent).free
    if total and total - begun > free:
        shutil.rmtree(partial.parent)
        raise DatasetError(
            f"{url} needs {(total - begun) / 1e9:,.1f} GB, and {free / 1e9:,.1f} are free at "
            f"{partial.parents[2]}. Make room there, or give another destination."
        )
    bar = progress_bar(None, "Downloading", total, unit="B", initial=begun)
    with bar, partial.open("ab") as file:
        for chunk in read_body(response, total, begun):
            if file.tell() == 0 and chunk.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"<":
                shutil.rmtree(partial.parent)
                raise DatasetError(
                    f"{url} is a web page, not an archive. Give the address of the download itself "
                    "(on most pages: right-click the download button, copy the link). A file on "
                    "Google Drive needs no address: mount Drive and give its path."
                )
            file.write(chunk)
            file.flush()
            bar.update(len(chunk))
