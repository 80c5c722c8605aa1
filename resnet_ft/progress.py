"""Progress bars where somebody watches, and none in log files and notebooks that run unattended."""

import sys
from collections.abc import Iterable

from tqdm.auto import tqdm


def progress_bar(
    iterable: Iterable | None = None,
    description: str | None = None,
    total: int | None = None,
    *,
    unit: str = "image",
    unit_scale: bool = False,
    initial: int = 0,
) -> tqdm:
    """A tqdm bar that goes away when it is done, and is not shown where nobody watches."""
    return tqdm(
        iterable,
        description,
        total,
        leave=False,
        unit=unit,
        unit_scale=unit_scale,
        initial=initial,
        disable=True if _runs_headless() else None,  # None: not unless it writes to a terminal
    )


def _runs_headless() -> bool:
    """Whether this is a notebook's kernel with nobody before it: papermill, nbconvert.

    Every request to run a cell says whether the kernel may ask its user for input. A live notebook
    allows that; what runs notebooks unattended does not.
    """
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if not hasattr(shell, "get_parent"):  # a terminal, or no IPython at all
        return False
    return not shell.get_parent().get("content", {}).get("allow_stdin", True)
