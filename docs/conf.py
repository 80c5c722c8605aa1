"""Sphinx: the pages of this folder, the notebooks as `make demo` executed them, the API."""

import shutil
from pathlib import Path

import resnet_ft

DOCS = Path(__file__).parent
EXECUTED = DOCS.parent / "runs" / "demo" / "notebooks"

for generated in ("notebooks", "reference"):
    shutil.rmtree(DOCS / generated, ignore_errors=True)
shutil.copytree(EXECUTED, DOCS / "notebooks", ignore=shutil.ignore_patterns("*.html"))

project = "resnet_ft"
author = copyright = "the resnet_ft authors"
release = resnet_ft.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary"]
exclude_patterns = ["_build"]

nb_execution_mode = "off"  # the demo has executed them
nb_merge_streams = True
myst_heading_anchors = 3

default_role = "py:obj"  # `name` in a docstring links to what has that name
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
templates_path = ["_templates"]
maximum_signature_line_length = 88
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = "resnet_ft"
html_static_path = ["_static"]
html_css_files = ["style.css"]


def readable_defaults(app, what, name, obj, options, signature, returns):
    """Sphinx cannot parse a signature that says `<factory>`, as those of dataclasses do."""
    return signature and signature.replace("<factory>", "..."), returns


def setup(app):
    app.connect("autodoc-process-signature", readable_defaults)
