"""Remote files, on a mounted Drive and on the web, with retries after transient errors."""

import errno
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests
import urllib3
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from resnet_ft.errors import DatasetError
from resnet_ft.files import fingerprint

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
_CHUNK = 1 << 14  # bytes: a slow download that is killed loses no more than this
_PATIENCE_S = 60.0  # a server that sends less than a chunk in this time is given up


def is_transient(error: BaseException) -> bool:
    """Whether the same call to a mounted folder may succeed a moment later."""
    return isinstance(error, OSError) and error.errno in _TRANSIENT


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


def in_background(function: Callable[..., _Result], *given: Any, **options: Any) -> Future[_Result]:
    """The result of a call in a thread that nobody has to wait for, not even the end of Python."""
    answer: Future[_Result] = Future()

    def call() -> None:
        try:
            answer.set_result(function(*given, **options))
        except Exception as error:
            answer.set_exception(error)

    Thread(target=call, daemon=True).start()
    return answer


def request(url: str, **headers: str) -> requests.Response:
    """Open a file on the web; `read_body` reads it.

    Raises the errors of requests, DatasetError for an address that was stored masked, and
    TimeoutError where no whole answer begins in time: the limit of requests counts
    from byte to byte.
    """
    if "***" in url:
        raise DatasetError(
            f"{url} was stored without its password or signature. Give the whole address."
        )
    headers = {"User-Agent": "resnet_ft", "Accept-Encoding": "identity", **headers}
    answer = in_background(requests.get, url, headers=headers, stream=True, timeout=60)
    try:
        response = answer.result(_PATIENCE_S)
    except TimeoutError:
        answer.add_done_callback(_close)
        raise TimeoutError(f"no answer began within {_PATIENCE_S:.0f} seconds") from None
    response.raise_for_status()
    return response


def _close(answer: Future[requests.Response]) -> None:
    if not answer.exception():
        answer.result().close()


def read_body(response: requests.Response, expected: int | None, begun: int = 0) -> Iterator[bytes]:
    """Yield the bytes as the server sends them: an archive stays compressed.

    Raises ConnectionError where the connection is interrupted, or where fewer or more than
    `expected` bytes came, with the `begun` bytes of earlier tries, and TimeoutError where hardly
    any come.
    """
    came, ended, too_slow = begun, Event(), Event()

    def watch() -> None:
        """End a read that brings too little: it may wait for a line that never ends."""
        mark = begun
        while not ended.wait(_PATIENCE_S):
            if came - mark < _CHUNK and came != expected:
                too_slow.set()
                with suppress(OSError, RuntimeError, ValueError):  # it has just ended by itself
                    response.raw.shutdown()
                return
            mark = came

    Thread(target=watch, daemon=True).start()
    try:
        while chunk := response.raw.read1(_CHUNK, decode_content=False):  # what is there by now
            came += len(chunk)
            yield chunk
    except (urllib3.exceptions.HTTPError, OSError) as error:
        if expected is None and not too_slow.is_set():
            raise ConnectionError(f"the connection was interrupted: {error}") from error
    finally:
        ended.set()
    if too_slow.is_set():
        raise TimeoutError(
            f"the server sent fewer than {_CHUNK:,} bytes in {_PATIENCE_S:.0f} seconds"
        )
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
    return (
        re.match(r"\s*(pipe:|https?:/|[a-z][a-z0-9+.-]+://)", str(location), re.IGNORECASE)
        is not None
    )


_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/{1,2}[^\s'\"<>]+", re.IGNORECASE)
_ADDRESS_ALONE = re.compile(r"\s*[a-z][a-z0-9+.-]+:/{1,2}\S+\s*", re.IGNORECASE)
_SECRET = re.compile(
    r"([?&;#][^=&;#]*(?:key|sig|token|secret|passw|pwd|credential|auth|policy|session|code|jwt"
    r"|access|hdnea)"
    r"[^=&;#]*=)(?!\*\*\*)([^&;#]+)",
    re.IGNORECASE,
)
_LOGIN = re.compile(  # in a command of "pipe:"
    r"([\w-]*(?:authorization|token|key):\s*|\s(?:-u|--user|--oauth2-bearer)[\s=])((?:(?:basic|bearer)\s+)?[^\s'\"]+)",
    re.IGNORECASE,
)


def masked(text: object) -> str:
    """The text with "***" for each password and signature in its addresses, to show and to store.

    Four digits of a digest tell signatures apart, since they can be what two files differ in.
    """

    def without_secrets(address: re.Match[str]) -> str:
        shown = re.sub(r"(:/{1,2})[^/?#]+@", r"\1***@", address[0], count=1)
        return _SECRET.sub(lambda found: f"{found[1]}***{fingerprint([found[2]])[:4]}", shown)

    # Where all of it is an address, also quotes and brackets belong to it.
    pattern = _ADDRESS_ALONE if _ADDRESS_ALONE.fullmatch(str(text)) else _ADDRESS
    return _LOGIN.sub(r"\1***", pattern.sub(without_secrets, str(text)))


def check_address(address: str, schemes: tuple[str, ...] = ("http", "https")) -> None:
    """Raise DatasetError, before any request, for what cannot be an address of these schemes."""
    reason = None
    if re.search(r"[\s\0-\x1f\x7f]", address):
        reason = "has a space or a line break in it; in an address, a space is %20"
    try:
        parts = urlsplit(address)
        if parts.scheme not in schemes:
            reason = reason or f"does not begin with {' or '.join(f'{s}://' for s in schemes)}"
        elif not parts.hostname or parts.port == 0:
            reason = reason or "names no server"
    except ValueError as error:
        reason = reason or f"is not valid: {masked(error)}"
    if reason:
        # It may not be clear where the password ends: what is before the last @ is not shown.
        shown = masked(re.sub(r"(:/{1,2}).*@", r"\1***@", "".join(address.split())))
        raise DatasetError(f"The address {shown} {reason}. Copy the address again.")


def fetch(address: str, path: Path, size: int | None = None) -> None:
    """Copy the file at an address to `path`, with retries after transient errors.

    Raises DatasetError, with the address, the reason and a remedy, where it cannot be read or is
    not `size` bytes long.
    """
    is_http = address.lower().startswith(("http://", "https://"))
    if is_http:
        check_address(address)
    else:
        try:
            from webdataset.gopen import gopen
        except ImportError as error:
            raise DatasetError(
                f"{masked(address)} needs webdataset: pip install webdataset"
            ) from error
    try:
        for attempt in web_retry:
            with attempt, path.open("wb") as file:
                if is_http:
                    with request(address) as response:
                        file.writelines(read_body(response, size))
                    continue
                with gopen(address) as source:
                    shutil.copyfileobj(source, file, 1 << 20)
                if size not in (None, file.tell()):
                    raise ConnectionError(f"only {file.tell():,} of {size:,} bytes came")
    except (OSError, ValueError) as error:
        path.unlink(missing_ok=True)
        raise DatasetError(
            f"{masked(address)} could not be read: {masked(reason_of(error))}. Check the address, "
            "whether it opens without a login, the network, and the free space in "
            f"{path.parent}; then run it again."
        ) from None  # the error of requests has the whole address
