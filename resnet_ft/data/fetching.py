"""A file from elsewhere, whole or not at all: http(s), and what the webdataset library opens."""

import errno
import http.client
import re
import shutil
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO
from urllib.parse import quote

from resnet_ft.errors import DatasetError

_WAITS = (0.2, 0.8, 3.2)  # seconds before the second, third and fourth try
_TIMEOUT_S = 60
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})


def is_address(location: object) -> bool:
    """Whether this is no path: "https://...", "gs://...", "pipe:..."."""
    return re.match(r"pipe:|[a-z][a-z0-9+.-]+://", str(location)) is not None


def fetch(address: str, path: Path, size: int | None = None) -> None:
    """Copy what is at an address to `path`, with further tries where that may pass.

    Raises DatasetError, with the address, the reason and a remedy, for what cannot be read, or is
    not `size` bytes long.
    """
    for wait in (*_WAITS, None):
        try:
            with _opened(address) as source, path.open("wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
            found = path.stat().st_size
            if size not in (None, found):
                raise ConnectionError(f"{found:,} bytes came of {size:,}")
        except (OSError, http.client.HTTPException, ValueError) as error:
            if wait is None or not _may_pass(error):
                path.unlink(missing_ok=True)
                raise DatasetError(
                    f"{address} could not be read: {_reason(error)}. Check the address, whether it "
                    f"opens without a login, the network, and the room in {path.parent}; then run "
                    "it again."
                ) from error
            time.sleep(wait)
        else:
            return


def _opened(address: str) -> IO[bytes]:
    if address.startswith(("http://", "https://")):
        address = quote(address, safe="%/:=&?~#+!$,;'@()*[]")
        request = urllib.request.Request(address, headers={"User-Agent": "resnet_ft"})
        return urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    try:
        from webdataset.gopen import gopen
    except ImportError as error:
        raise DatasetError(f"{address} needs webdataset: pip install webdataset") from error
    return gopen(address)


def _may_pass(error: Exception) -> bool:
    if isinstance(error, ValueError) or getattr(error, "errno", None) == errno.ENOSPC:
        return False
    return getattr(error, "code", 503) in _AGAIN


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answered {error.code} {error.reason}"
    return str(getattr(error, "reason", error) or type(error).__name__)
