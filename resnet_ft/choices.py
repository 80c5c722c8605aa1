"""What was chosen last, data set and run, kept beside the runs for the notebooks that follow."""

import json
from pathlib import Path

from resnet_ft.files import atomic_write, user_path
from resnet_ft.frontend import is_live
from resnet_ft.reading import read_json
from resnet_ft.remote import is_address, masked

_FILE = "last_choices.json"
_USUAL = {"data_dir": "sample", "run_name": "resnet101"}  # where nothing was chosen


def last_choice(runs_dir: str | Path, name: str, given: str | None) -> str:
    """`given`, or in place of None what `remember` kept last in this folder; a line says which.

    `name` is "data_dir" or "run_name". Where nothing was kept, and always where a program runs the
    notebook, the last choice is "sample" and "resnet101".
    """
    if given is not None:
        return str(given)
    kept = _read(runs_dir).get(name) if is_live() else None
    choice = kept or _USUAL[name]
    print(f"{name} is empty: {choice!r} is used, {'the last choice' if kept else 'by default'}.")
    return choice


def remember(runs_dir: str | Path, **chosen: str) -> None:
    """Keep the choices of a live notebook, `data_dir` or `run_name`, for `last_choice`.

    Not those of a program that runs the notebook, and no address with a password.
    """
    if not is_live():
        return
    safe = {
        name: value
        for name, value in chosen.items()
        if not is_address(value) or masked(value) == value
    }
    file = user_path(runs_dir) / _FILE
    try:
        with atomic_write(file) as temporary:
            text = json.dumps(_read(runs_dir) | safe, indent=2, ensure_ascii=False)
            temporary.write_text(text + "\n", "utf-8", "surrogatepass")
    except OSError as error:  # nothing depends on it
        print(f"The choice could not be remembered in {file}: {error.strerror or error}.")


def _read(runs_dir: str | Path) -> dict[str, str]:
    """What the file holds; nothing where there is none, or none that can be read."""
    try:
        kept = read_json(user_path(runs_dir) / _FILE)
    except (OSError, ValueError):
        return {}
    return {name: one for name, one in kept.items() if name in _USUAL and isinstance(one, str)}
