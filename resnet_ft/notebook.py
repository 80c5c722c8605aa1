"""What a notebook asks about its own parameters."""

import ast

from resnet_ft.errors import ParameterError

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
