"""The house: arrows one way, short rooms, and every public name listed."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import resnet_ft

# A module imports only from those above it.
ORDER = """
errors files engine processes progress patience web
data.drive data.images data.resizing data.drawing data.flaws data.sample data.folders
data.paths data.table data.splitting data.layout data.index data.decisions data.decision_log
data.cache data.decoded data.filling
data.transforms data.dataset data.sampling data.exchange
data.fetching data.shards data.shard_files data.shard_order data.shard_loader data.loaders
staging.unfinished staging.manifest staging.listing staging.shrinking
staging.copying staging.entries staging.unpacking staging.archives staging.partial
staging.download staging.sharding staging.packing staging.stage
audit.appearance audit.facts audit.inspection audit.strays audit.resemblance audit.duplicates
audit.issues audit.findings audit.proposals audit.audit
models.weights models.build models.freezing models.synchronising models.checkpoint models.cutting
models.folding models.groups
features.stored features.dataset features.keys features.running features.precompute
evaluation.predictions evaluation.labels evaluation.scores
visualize.style visualize.images visualize.dataset visualize.issues visualize.plots
training.snapshots training.storing training.runs training.starting training.best training.state
training.checks training.callbacks training.validation training.steering training.budget
training.averaging training.watching training.tracking training.mixing training.balance
training.generators training.batches training.steps training.resuming training.interrupts
training.checkpointing training.epochs training.loop training.restoring training.range_test
training.finder training.head training.head_phase training.pace training.recipe
training.job training.launching
inference.predictor
widgets.picture widgets.browse widgets.review widgets.augmentation widgets.drop widgets.upload
notebook __main__
""".split()  # noqa: SIM905

MODULES = sorted(path for path in (ROOT / "resnet_ft").rglob("*.py") if path.name != "__init__.py")


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT / "resnet_ft").with_suffix("").parts)


def imported_modules(path: Path) -> set[str]:
    """The modules of this library that a file imports, as they stand in ORDER."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("resnet_ft")}
        if isinstance(node, ast.ImportFrom) and node.level:
            found.add("a relative import")
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("resnet_ft"):
            module = node.module.removeprefix("resnet_ft").lstrip(".")
            found |= {module} if module else {alias.name for alias in node.names}
    return found


def test_every_module_has_its_place_in_the_order():
    assert sorted(name_of(path) for path in MODULES) == sorted(ORDER)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_upwards(path):
    above = ORDER[: ORDER.index(name_of(path))]
    assert imported_modules(path) <= set(above)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_and_functions_are_short(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 165
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            code = [inner for inner in node.body if not is_docstring(inner)]
            lines = code[-1].end_lineno - code[0].lineno + 1 if code else 0
            assert lines <= 33, f"{node.name} has {lines} lines"


def is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


@pytest.mark.parametrize("name", resnet_ft.__all__)
def test_every_public_name_loads_and_is_documented(name):
    value = getattr(resnet_ft, name)
    if callable(value):
        assert value.__doc__


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_function_is_public_or_used_by_another_module(path):
    others = [other.read_text() for other in MODULES if other != path]
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            used = any(re.search(rf"\b{node.name}\b", text) for text in others)
            assert node.name in resnet_ft.__all__ or used, f"{node.name} is for nobody"


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
resnet_ft.check_parameters()
print(len(loaded))
"""
    assert int(run_python(code)) == len(resnet_ft.__all__) - 4


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="train_modle"):
        resnet_ft.train_modle  # noqa: B018
