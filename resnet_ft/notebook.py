"""What notebooks need: progress bars that leave no trace, and the cells that were executed."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm


def progress_bar(
    iterable: Iterable | None = None,
    description: str | None = None,
    total: int | None = None,
    *,
    unit: str = "image",
    initial: int = 0,
) -> tqdm:
    """A tqdm bar that disappears when it is done, and that is not shown where nobody watches."""
    return tqdm(
        iterable,
        description,
        total,
        leave=False,
        unit=unit,
        unit_scale=unit == "B",  # bytes: 1.5M rather than 1500000
        initial=initial,
        disable=_runs_headless() or None,  # None: shown in a terminal only
    )


def executed_cells() -> tuple[dict[str, Any], list[str]]:
    """The variables of the notebook that runs this code, and the sources of its cells so far.

    Nothing outside of IPython.
    """
    if (shell := _shell()) is None:
        return {}, []
    return shell.user_ns, [cell for cell in shell.user_ns.get("In", []) if cell.strip()]


def _runs_headless() -> bool:
    """Whether this is the kernel of a notebook that runs unattended: papermill, nbconvert.

    Every request to run a cell says whether the kernel may ask its user for input. A live notebook
    allows that; programs that run notebooks do not.
    """
    request: dict = getattr(_shell(), "get_parent", dict)()  # empty in a terminal
    return not request.get("content", {}).get("allow_stdin", True)


def _shell() -> Any:
    """The IPython shell that runs this code, or None."""
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython else None
