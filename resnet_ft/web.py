"""A file of the web: how it is asked for, and what an answer that is none means."""

import http.client
import urllib.error
import urllib.request
from urllib.parse import quote

_TIMEOUT_S = 60
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


def open_address(address: str, **headers: str) -> http.client.HTTPResponse:
    """The answer of a server, as urllib gives it, which raises its errors."""
    address = quote(address, safe="%/:=&?~#+!$,;'@()*[]")
    headers = {"User-Agent": "resnet_ft", **headers}
    return urllib.request.urlopen(
        urllib.request.Request(address, headers=headers), timeout=_TIMEOUT_S
    )


def may_pass(error: Exception) -> bool:
    """Whether the same request may well succeed a moment later; also where none was answered."""
    return getattr(error, "code", 503) in _PASSING


def reason_of(error: Exception) -> str:
    """What went wrong, for a person."""
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answered {error.code} {error.reason}"
    return str(getattr(error, "reason", error) or type(error).__name__)
