"""A file from the web: an interrupted download is resumed, also by a later call."""

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import requests

from resnet_ft.errors import DatasetError
from resnet_ft.notebook import progress_bar
from resnet_ft.remote import masked, read_body, reason_of, request, web_retry

_RANGE_NOT_SATISFIABLE = 416
_MOST_STARTS = 4
_LEAST_PROGRESS = 1 << 14  # bytes of a try that count as progress
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

    An interruption is followed by further tries. They resume where the server shows by an ETag or a
    date that it still has the same file, else they start anew.
    Raises DatasetError with the address, the reason and a remedy for what the server refuses, for a
    web page, and where the file does not fit on the disk.
    """
    complete, partial = folder / "complete", folder / "partial"
    starts = itertools.count(1)
    try:
        # When some bytes came, the next interruption gets as many tries again.
        while not complete.exists():
            if web_retry(_receive_more, url, partial, starts):
                partial.rename(complete)
    except (requests.RequestException, ConnectionError, TimeoutError) as error:
        remedy = "Check the address and the network, and run it again: it resumes where it stopped."
        if isinstance(error, requests.HTTPError):
            default = "Check the address, and run it again later."
            remedy = _REMEDIES.get(error.response.status_code, default)
        reason = masked(reason_of(error))
        raise DatasetError(
            f"{masked(url)} could not be downloaded: {reason}. {remedy}"
        ) from None  # the error of requests has the whole address
    return complete


def _receive_more(url: str, partial: Path, starts: Iterator[int]) -> bool:
    """Download what is missing; False where it was interrupted after some bytes.

    A note beside `partial` says which file of the server the bytes are from, as `_identity` does.
    Raises an error of requests, ConnectionError or TimeoutError where hardly any byte came.
    """
    note = partial.with_name("server.json")
    try:
        begun, server = partial.stat().st_size, json.loads(note.read_text())
        validator = server["ETag"] or server["Last-Modified"]
        total = server["total"]
    except (OSError, ValueError, LookupError, TypeError):
        begun, validator, total = 0, None, None
    if begun and begun == total:
        return True
    if not validator:  # nothing would tell whether the rest is of the same file
        begun = 0
    try:
        headers = {"Range": f"bytes={begun}-", "If-Range": validator} if begun else {}
        with request(url, **headers) as response:
            identity = _identity(response)
            if response.status_code == requests.codes.partial_content:
                # Servers may ignore If-Range, and send a part of another file.
                if not (begun and _continues(response, begun, server, identity)):
                    shutil.rmtree(partial.parent, ignore_errors=True)
                    raise ConnectionError("the server sent a part of another file, or no such part")
            else:  # the file from its beginning
                begun, total = 0, identity["total"]
                if next(starts) > _MOST_STARTS:
                    raise DatasetError(
                        f"{masked(url)} was interrupted, and began anew, {_MOST_STARTS} times: the "
                        "server cannot resume, or has another file each time. Download it in a "
                        "browser, put it on Drive and give its path."
                    )
                partial.parent.mkdir(parents=True, exist_ok=True)
                partial.write_bytes(b"")
                note.write_text(json.dumps(identity))
            _append_body(url, response, partial, begun, total)
    except requests.HTTPError as error:
        if not begun or error.response.status_code != _RANGE_NOT_SATISFIABLE:
            raise
        shutil.rmtree(partial.parent)
        raise ConnectionError("the server's file is shorter than what came before") from error
    except (ConnectionError, TimeoutError):
        if not partial.exists() or partial.stat().st_size < begun + _LEAST_PROGRESS:
            raise
        return False
    return True


def _identity(response: requests.Response) -> dict[str, str | int | None]:
    """What tells a file of the server from others: `total` bytes, ETag and date; None: unknown."""
    headers = response.headers
    is_part = response.status_code == requests.codes.partial_content
    total = headers.get("Content-Range" if is_part else "Content-Length", "").rpartition("/")[2]
    etag = headers.get("ETag", "W/")
    return {
        "total": int(total) if total.isdigit() else None,
        "ETag": None if etag.startswith("W/") else etag,  # weak: also of files that differ slightly
        "Last-Modified": headers.get("Last-Modified"),
    }


def _continues(
    response: requests.Response,
    begun: int,
    server: dict[str, str | int | None],
    identity: dict[str, str | int | None],
) -> bool:
    """Whether a part starts at byte `begun` and says that it is of the same file."""
    starts_there = response.headers.get("Content-Range", "").startswith(f"bytes {begun}-")
    validator = "ETag" if server["ETag"] else "Last-Modified"
    is_same = all(
        None in (server[name], identity[name]) or server[name] == identity[name] for name in server
    )
    return starts_there and is_same and identity[validator] is not None


def _append_body(
    url: str, response: requests.Response, partial: Path, begun: int, total: int | None
) -> None:
    free = shutil.disk_usage(partial.parent).free
    if total and total - begun > free:
        shutil.rmtree(partial.parent)
        raise DatasetError(
            f"{masked(url)} needs {(total - begun) / 1e9:,.1f} GB, and {free / 1e9:,.1f} are free "
            f"at {partial.parents[2]}. Make room there, or give another destination."
        )
    bar = progress_bar(None, "Downloading", total, unit="B", initial=begun)
    with bar, partial.open("ab") as file:
        for chunk in read_body(response, total, begun):
            if file.tell() == 0 and chunk.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"<":
                shutil.rmtree(partial.parent)
                raise DatasetError(
                    f"{masked(url)} is a web page, not an archive. Give the address of the "
                    "download itself (on most pages: right-click the download button, copy the "
                    "link). A file on Google Drive needs no address: mount Drive and give its path."
                )
            file.write(chunk)
            file.flush()
            bar.update(len(chunk))
