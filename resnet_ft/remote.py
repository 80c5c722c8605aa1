"""What is far away: files of the web and of a mounted Drive, with second tries for what passes."""

import errno
import http.client
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import IO, TypeVar
from urllib.parse import quote

from resnet_ft.errors import DatasetError

_TIMEOUT_S = 60
_PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})


def open_address(address: str, **headers: str) -> http.client.HTTPResponse:
    """The answer of a server, as urllib gives it, which raises its errors."""
    address = quote(address, safe="%/:=&?~#+!$,;'@()*[]")
    headers = {"User-Agent": "resnet_ft", **headers}
    return urllib.request.urlopen(
        urllib.request.Request(address, headers=headers), timeout=_TIMEOUT_S
    )


def may_pass(error: Exception) -> bool:
    """Whether the same request may well succeed a moment later; also where none was answered."""
    return getattr(error, "code", 503) in _PASSING_STATUS


def reason_of(error: Exception) -> str:
    """What went wrong, for a person."""
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answered {error.code} {error.reason}"
    return str(getattr(error, "reason", error) or type(error).__name__)


Item = TypeVar("Item")
Result = TypeVar("Result")

WAITS = (0.2, 0.8, 3.2)  # seconds before the second, third and fourth try
_IN_A_ROW = 64
# A mount that is overloaded or connects anew. ENOENT: a listing that is older than what it lists.
_PASSING = frozenset(
    {errno.EIO, errno.ETIMEDOUT, errno.ENOTCONN, errno.ESTALE, errno.ENOENT, errno.EAGAIN}
    | {errno.EBUSY, errno.ECONNABORTED, errno.ECONNRESET, errno.EHOSTUNREACH, errno.ENETUNREACH}
)
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class Patience:
    """Calls a function again, after growing waits, while it raises errors that a mount gives.

    Once 64 calls in a row have failed for good, nobody answers any more: from then on, until a call
    succeeds, there are no second tries, so that a lost connection does not cost hours.
    """

    def __init__(self):
        self._failed_in_a_row = 0

    def __call__(self, function: Callable[..., Result], *arguments: object) -> Result:
        """The function's result. Raises its last OSError, or at once one that does not pass."""
        for wait in (*WAITS, None):
            try:
                result = function(*arguments)
            except OSError as error:
                if wait is None or not passes(error) or self._failed_in_a_row >= _IN_A_ROW:
                    self._failed_in_a_row += 1
                    raise
                time.sleep(wait)
            else:
                self._failed_in_a_row = 0
                return result


def passes(error: OSError) -> bool:
    """Whether the same call may well succeed a moment later."""
    return error.errno in _PASSING


def means_full_disk(error: OSError) -> bool:
    """Whether there is no space left, so that no other file can be written either."""
    return error.errno in _FULL


def in_parallel(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[tuple[Item, Result]]:
    """Each item with its result, as they come; what has not begun is dropped when the loop ends."""
    with ThreadPoolExecutor(workers) as pool:
        futures = {pool.submit(function, item): item for item in items}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def is_address(location: object) -> bool:
    """Whether this is no path: "https://...", "gs://...", "pipe:..."."""
    return re.match(r"pipe:|[a-z][a-z0-9+.-]+://", str(location)) is not None


def fetch(address: str, path: Path, size: int | None = None) -> None:
    """Copy what is at an address to `path`, with further tries where that may pass.

    Raises DatasetError, with the address, the reason and a remedy, for what cannot be read, or is
    not `size` bytes long.
    """
    for wait in (*WAITS, None):
        try:
            with _opened(address) as source, path.open("wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
            found = path.stat().st_size
            if size not in (None, found):
                raise ConnectionError(f"{found:,} bytes came of {size:,}")
        except (OSError, http.client.HTTPException, ValueError) as error:
            if wait is None or not _passes(error):
                path.unlink(missing_ok=True)
                raise DatasetError(
                    f"{address} could not be read: {reason_of(error)}. Check the address, whether "
                    f"it opens without a login, the network, and the room in {path.parent}; then "
                    "run it again."
                ) from error
            time.sleep(wait)
        else:
            return


def _opened(address: str) -> IO[bytes]:
    if address.startswith(("http://", "https://")):
        return open_address(address)
    try:
        from webdataset.gopen import gopen
    except ImportError as error:
        raise DatasetError(f"{address} needs webdataset: pip install webdataset") from error
    return gopen(address)


def _passes(error: Exception) -> bool:
    if isinstance(error, ValueError) or getattr(error, "errno", None) == errno.ENOSPC:
        return False
    return may_pass(error)
