"""Remote files, on a mounted Drive and on the web, with retries after transient errors."""

import errno
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TypeVar

import requests
import urllib3
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from resnet_ft.errors import DatasetError

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

# A mount that is overloaded or reconnects. ENOENT: a listing that is older than what it lists.
_TRANSIENT = frozenset(
    {errno.EIO, errno.ETIMEDOUT, errno.ENOTCONN, errno.ESTALE, errno.ENOENT, errno.EAGAIN}
    | {errno.EBUSY, errno.ECONNABORTED, errno.ECONNRESET, errno.EHOSTUNREACH, errno.ENETUNREACH}
)
_TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_WAIT = wait_exponential(0.2, exp_base=4)  # 0.2, 0.8 and 3.2 seconds between four tries
_TRIES = stop_after_attempt(4)
_TIMEOUT_S = 60
_CHUNK = 1 << 14  # bytes: a slow download that is killed loses no more than this


def is_transient(error: BaseException) -> bool:
    """Whether the same call to a mounted folder may succeed a moment later."""
    return isinstance(error, OSError) and error.errno in _TRANSIENT


def means_full_disk(error: OSError) -> bool:
    """Whether there is no space left, so that no other file can be written either."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


class DriveRetry:
    """Calls a function again, after growing waits, while a mounted folder gives transient errors.

    After 64 failed calls in a row the mount counts as lost: until a call succeeds, there are no
    retries, which would cost hours.
    """

    def __init__(self) -> None:
        self._failed_in_a_row = 0
        self._retrying = Retrying(
            retry=retry_if_exception(is_transient),
            wait=_WAIT,
            stop=lambda state: self._failed_in_a_row >= 64 or _TRIES(state),
            reraise=True,
        )

    def __call__(self, function: Callable[..., _Result], *arguments: object) -> _Result:
        """Return the function's result. Raises its last OSError, or one that is not transient."""
        try:
            result = self._retrying(function, *arguments)
        except OSError:
            self._failed_in_a_row += 1
            raise
        self._failed_in_a_row = 0
        return result


def in_parallel(
    function: Callable[[_Item], _Result], items: Iterable[_Item], workers: int
) -> Iterator[tuple[_Item, _Result]]:
    """Yield each item with its result as they finish; when the loop ends, the rest is cancelled."""
    with ThreadPoolExecutor(workers) as pool:
        futures = {pool.submit(function, item): item for item in items}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def request(url: str, **headers: str) -> requests.Response:
    """Open a file on the web; `read_body` reads it. Raises the errors of requests."""
    headers = {"User-Agent": "resnet_ft", "Accept-Encoding": "identity", **headers}
    response = requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT_S)
    response.raise_for_status()
    return response


def read_body(response: requests.Response, expected: int | None, begun: int = 0) -> Iterator[bytes]:
    """Yield the bytes as the server sends them: an archive stays compressed.

    Raises ConnectionError where the connection is interrupted, or where these and the `begun` bytes
    that came earlier are not `expected` bytes.
    """
    came = begun
    try:
        for chunk in response.raw.stream(_CHUNK, decode_content=False):
            came += len(chunk)
            yield chunk
    except urllib3.exceptions.HTTPError as error:
        if expected is None:
            raise ConnectionError(f"the connection was interrupted: {error}") from error
    if expected not in (None, came):
        raise ConnectionError(f"only {came:,} of {expected:,} bytes came")


def _is_transient_on_web(error: BaseException) -> bool:
    if isinstance(error, requests.HTTPError):
        return error.response.status_code in _TRANSIENT_STATUS
    if isinstance(error, OSError) and error.errno is None:
        return not isinstance(error, ValueError)  # requests: an invalid address
    return is_transient(error)


web_retry = Retrying(
    retry=retry_if_exception(_is_transient_on_web), wait=_WAIT, stop=_TRIES, reraise=True
)


def reason_of(error: BaseException) -> str:
    """What went wrong, for a person: the first cause of an error of requests."""
    if isinstance(error, requests.HTTPError):
        return f"the server answered {error.response.status_code} {error.response.reason}"
    wrappers = (requests.RequestException, urllib3.exceptions.HTTPError)
    while isinstance(error, wrappers) and error.__context__:
        error = error.__context__
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def is_address(location: object) -> bool:
    """Whether this is an address ("https://...", "gs://...", "pipe:...") and not a path."""
    return re.match(r"pipe:|[a-z][a-z0-9+.-]+://", str(location)) is not None


def fetch(address: str, path: Path, size: int | None = None) -> None:
    """Copy the file at an address to `path`, with retries after transient errors.

    Raises DatasetError, with the address, the reason and a remedy, where it cannot be read or is
    not `size` bytes long.
    """
    try:
        web_retry(_fetch, address, path, size)
    except (OSError, ValueError) as error:
        path.unlink(missing_ok=True)
        raise DatasetError(
            f"{address} could not be read: {reason_of(error)}. Check the address, whether it opens "
            f"without a login, the network, and the free space in {path.parent}; then run it again."
        ) from error


def _fetch(address: str, path: Path, size: int | None) -> None:
    if address.startswith(("http://", "https://")):
        with request(address) as response, path.open("wb") as file:
            file.writelines(read_body(response, size))
        return
    try:
        from webdataset.gopen import gopen
    except ImportError as error:
        raise DatasetError(f"{address} needs webdataset: pip install webdataset") from error
    with gopen(address) as source, path.open("wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)
        if size not in (None, file.tell()):
            raise ConnectionError(f"only {file.tell():,} of {size:,} bytes came")
