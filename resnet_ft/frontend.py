"""Who watches: somebody in a live notebook, a program that runs one unattended, or nobody."""

import sys
from typing import Any


def shell() -> Any:
    """The IPython shell that runs this code, or None."""
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython else None


def runs_headless() -> bool:
    """Whether this is the kernel of a notebook that runs unattended: papermill, nbconvert.

    Every request to run a cell says whether the kernel may ask its user for input. A live notebook
    allows that; programs that run notebooks do not.
    """
    request: dict = getattr(shell(), "get_parent", dict)()  # empty in a terminal
    return not request.get("content", {}).get("allow_stdin", True)


def is_live() -> bool:
    """Whether a person works in this notebook."""
    return shell() is not None and not runs_headless()
