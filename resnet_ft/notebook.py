"""What notebooks need: a check of their parameters, and progress bars that leave no trace."""

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
    """A tqdm bar that disappears when it is done, and that is not shown where nobody watches."""
    return tqdm(
        iterable,
        description,
        total,
        leave=False,
        unit=unit,
        unit_scale=unit_scale,
        initial=initial,
        disable=True if _runs_headless() else None,  # None: shown in a terminal only
    )


def _runs_headless() -> bool:
    """Whether this is the kernel of a notebook that runs unattended: papermill, nbconvert.

    Every request to run a cell says whether the kernel may ask its user for input. A live notebook
    allows that; programs that run notebooks do not.
    """
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if not (get_parent := getattr(shell, "get_parent", None)):  # a terminal, or no IPython
        return False
    return not get_parent().get("content", {}).get("allow_stdin", True)


def check_parameters() -> None:
    """Raise ParameterError if papermill was given a parameter that the notebook does not have.

    papermill adds a cell after the one tagged `parameters` and only warns of new names in it. Call
    this in the next cell: it compares the names that both assign. Where no cell was added, and
    outside of IPython, it does nothing.
    """
    try:
        from IPython import get_ipython
    except ImportError:
        return
    shell = get_ipython()
    cells = [cell for cell in shell.user_ns.get("In", []) if cell.strip()] if shell else []
    injected = [i for i, cell in enumerate(cells) if cell.startswith("# Parameters")]
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
