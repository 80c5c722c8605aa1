"""A file from elsewhere, whole or not at all: http(s), and what the webdataset library opens."""

import errno
import http.client
import re
import shutil
import time
from pathlib import Path
from typing import IO

from resnet_ft.errors import DatasetError
from resnet_ft.patience import WAITS
from resnet_ft.web import may_pass, open_address, reason_of


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
