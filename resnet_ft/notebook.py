"""What notebooks need: a check of their parameters, and progress bars where somebody watches."""

import ast
import sys
from collections.abc import Iterable

from tqdm.auto import tqdm

from resnet_ft.errors import ParameterError


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


_INJECTED = "# Parameters"  # how papermill begins the cell that it adds


def check_parameters() -> None:
    """Raise ParameterError where papermill was given a parameter that the notebook does not have.

    papermill adds a cell after the one tagged `parameters` and only warns of names that are new in
    it. Call this in the next cell: it compares the names that both assign. Where nothing was
    injected, and outside of IPython, it does nothing.
    """
    try:
        from IPython import get_ipython
    except ImportError:
        return
    shell = get_ipython()
    cells = [cell for cell in shell.user_ns.get("In", []) if cell.strip()] if shell else []
    injected = [i for i, cell in enumerate(cells) if cell.startswith(_INJECTED)]
    if injected and injected[-1] > 0:
        known = _assigned(cells[injected[-1] - 1])
        unknown = sorted(_assigned(cells[injected[-1]]) - known)
        if unknown:
            raise ParameterError(
                f"This notebook has no parameter {', '.join(unknown)}. It has: "
                f"{', '.join(sorted(known))}. Correct the -p options of papermill."
            )


def _assigned(source: str) -> set[str]:
    statements = ast.parse(source).body
    targets = [
        target for node in statements if isinstance(node, ast.Assign) for target in node.targets
    ]
    return {target.id for target in targets if isinstance(target, ast.Name)}
