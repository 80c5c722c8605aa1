"""Run the five notebooks on the sample data set and leave one page that links what they made."""

import shutil
import sys
import time
from datetime import datetime
from html import escape
from pathlib import Path
from urllib.parse import quote

import nbformat
import papermill
from nbconvert import HTMLExporter

from resnet_ft import load_checkpoint, load_run

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "runs" / "demo"
TRAINING = {"image_size": 64, "batch_size": 16, "epochs": 6, "lr_finder_steps": 20}
PARAMETERS = {
    "01_mount_drive": {},
    "02_explore_data": {},
    "03_train": {"run_name": "demo", **TRAINING},
    "04_visualize": {"run_name": "demo"},
    "05_infer": {"run_name": "demo"},
}

FIGURES = {
    "history": "How it learned",
    "predictions": "What it says of validation images",
    "confusion_matrix": "Which classes it confuses",
    "mistakes": "Where it is wrong, or least sure",
    "prediction": "One photograph",
}


def main() -> None:
    started = time.perf_counter()
    keep_earlier_demo()
    pages = DEMO / "notebooks"
    pages.mkdir(parents=True)
    for name, parameters in PARAMETERS.items():
        print(f"Running {name}", file=sys.stderr)
        executed = pages / f"{name}.ipynb"
        papermill.execute_notebook(
            ROOT / "notebooks" / f"{name}.ipynb",
            executed,
            parameters,
            cwd=ROOT,
            extra_arguments=["--IPKernelApp.log_level=ERROR"],  # no word about its network sockets
        )
        html, _ = HTMLExporter().from_notebook_node(nbformat.read(executed, as_version=4))
        executed.with_suffix(".html").write_text(html, encoding="utf-8")
    (DEMO / "index.html").write_text(index_page(), encoding="utf-8")
    summarise(time.perf_counter() - started)


def keep_earlier_demo() -> None:
    """Move an earlier demo aside: it may have been changed since."""
    if DEMO.exists():
        earlier = DEMO.with_name(f"demo-before-{datetime.now():%Y%m%d-%H%M%S}")
        shutil.move(DEMO, earlier)
        print(f"The earlier demo is now in {earlier}")


def index_page() -> str:
    notebooks = "".join(
        f'<li><a href="notebooks/{name}.html">{name}</a> '
        f'(<a href="notebooks/{name}.ipynb">ipynb</a>)'
        for name in PARAMETERS
    )
    figures = "".join(
        f'<figure><figcaption>{caption}</figcaption><img src="figures/{name}.png"></figure>'
        for name, caption in FIGURES.items()
    )
    files = "".join(
        f'<li><a href="{quote(path.name)}">{escape(path.name)}</a>, '
        f"{path.stat().st_size / 1e6:.2f} MB"
        for path in sorted(DEMO.iterdir())
        if path.is_file()
    )
    return PAGE.format(
        lead=escape(result()),
        notebooks=notebooks,
        figures=figures,
        files=files,
    )


def result() -> str:
    """One sentence about the model."""
    run = load_run(DEMO)
    accuracy = load_checkpoint(run.best).scores["val_accuracy"]
    training = run.config["training"]
    origin = "pretrained" if training["pretrained"] else "trained from random weights"
    return f"{training['arch']}, {origin}: validation accuracy {accuracy:.1%}."


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>resnet_ft demo</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 3rem auto; padding: 0 1rem;
  color: #111827 }}
h1 {{ margin-bottom: 0 }} .lead {{ font-size: 1.25rem; color: #374151; margin-top: .25rem }}
a {{ color: #0072b2 }} figure {{ margin: 2rem 0 }} img {{ max-width: 100% }}
figcaption {{ color: #6b7280; margin-bottom: .5rem }}
</style>
<h1>resnet_ft demo</h1><p class="lead">{lead}</p>
<h2>Notebooks</h2><ol>{notebooks}</ol>
<h2>Figures</h2>{figures}
<h2>Files of the run</h2><ul>{files}</ul>
</html>
"""


def summarise(seconds: float) -> None:
    print(
        f"\nDone in {seconds / 60:.1f} minutes.\n"
        f"Result:   {result()}\n"
        f"Look at:  {DEMO / 'index.html'}\n"
        f"Model:    {DEMO / 'best.pt'}"
    )


if __name__ == "__main__":
    main()
