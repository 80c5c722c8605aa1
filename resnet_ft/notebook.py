"""What notebooks need: a check of their parameters, and progress bars that leave no trace."""

import ast
import sys
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from tqdm.auto import tqdm

from resnet_ft.errors import ParameterError


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


def check_parameters() -> None:
    """Raise ParameterError if papermill was given a parameter that the notebook does not have.

    papermill adds a cell after the one tagged `parameters` and only warns of new names in it. Call
    this in the next cell: it compares the names that both assign. Where no cell was added, and
    outside of IPython, it does nothing.
    """
    shell = _shell()
    cells = [cell for cell in shell.user_ns.get("In", []) if cell.strip()] if shell else []
    pairs = [pair for pair in pairwise(cells) if pair[1].startswith("# Parameters")]
    known, given = map(_assigned, pairs[-1] if pairs else ("", ""))
    if unknown := sorted(given - known):
        raise ParameterError(
            f"This notebook has no parameter {', '.join(unknown)}. It has: "
            f"{', '.join(sorted(known))}. Correct the -p options of papermill."
        )


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


def _assigned(source: str) -> set[str]:
    """The names that a cell assigns."""
    nodes = (node for node in ast.parse(source).body if isinstance(node, ast.Assign))
    targets = (target for node in nodes for target in node.targets)
    return {target.id for target in targets if isinstance(target, ast.Name)}
