"""The house: folders that import one way, and every public name documented."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from conftest import ROOT

import resnet_ft

# A folder (or a module at the top level) imports only from itself and from those before it.
ORDER = """
frontend errors files reading engine distributed remote notebook choices data staging audit models
features evaluation visualize training inference reporting widgets __main__
""".split()  # noqa: SIM905

MODULES = sorted(path for path in (ROOT / "resnet_ft").rglob("*.py") if path.name != "__init__.py")


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT / "resnet_ft").with_suffix("").parts)


def imported_modules(path: Path) -> set[str]:
    """The modules of this library that a file imports, as `name_of` calls them."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, "a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {node.module, *names}
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    known = {name_of(module) for module in MODULES}
    return known & {name.removeprefix("resnet_ft.") for name in found if "resnet_ft" in name}


IMPORTS = {name_of(path): imported_modules(path) for path in MODULES}


def test_folders_import_one_way():
    def place(name: str) -> int:
        return ORDER.index(name.split(".", maxsplit=1)[0])

    for name, imported in IMPORTS.items():
        against = [other for other in imported if place(other) > place(name)]
        assert not against, f"{name} imports {against}"


def test_modules_import_without_circles():
    TopologicalSorter(IMPORTS).prepare()  # raises CycleError


@pytest.mark.parametrize("name", resnet_ft.__all__)
def test_every_public_name_loads_and_is_documented(name):
    value = getattr(resnet_ft, name)
    if callable(value):
        assert value.__doc__


def run_python(code: str) -> str:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return run.stdout.strip()


def test_importing_the_library_loads_nothing_heavy():
    code = """
import sys, resnet_ft
print({"torch", "matplotlib", "pandas", "ipywidgets", "IPython", "accelerate"} & set(sys.modules))
"""
    assert run_python(code) == "set()"


def test_the_library_works_without_jupyter_and_ipywidgets():
    code = """
import sys
sys.modules.update(dict.fromkeys(["IPython", "ipywidgets", "jupyter_client", "notebook"]))
import resnet_ft
loaded = [name for name, module in resnet_ft._MODULE_OF.items() if "widgets" not in module]
for name in loaded:
    getattr(resnet_ft, name)
resnet_ft.check_parameters("03_train")
print(len(loaded))
"""
    widgets = [name for name, module in resnet_ft._MODULE_OF.items() if "widgets" in module]
    assert len(widgets) >= 4
    assert int(run_python(code)) == len(resnet_ft.__all__) - len(widgets)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="train_modle"):
        resnet_ft.train_modle  # noqa: B018
