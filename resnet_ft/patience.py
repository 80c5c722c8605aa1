"""How to work on a mounted Drive: many threads at once, and second tries for what passes."""

import errno
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

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
