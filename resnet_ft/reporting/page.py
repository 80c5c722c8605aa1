"""report: one page to hand on, in one file; `page.html` beside this one says how it looks."""

import base64
import os
from collections.abc import Mapping
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader

from resnet_ft.audit.audit import audit_dataset
from resnet_ft.errors import DatasetError, ImageError, RunError
from resnet_ft.evaluation import learning_curve as curves
from resnet_ft.evaluation import scores
from resnet_ft.evaluation.advice import advise
from resnet_ft.evaluation.predictions import Predictions, load_predictions
from resnet_ft.notebook import as_unicode, percent
from resnet_ft.reading import read_json, reading
from resnet_ft.training.evaluate import EVALUATIONS
from resnet_ft.training.run import load_run
from resnet_ft.visualize.calibration import plot_calibration, plot_coverage
from resnet_ft.visualize.curves import plot_history, plot_learning_curve
from resnet_ft.visualize.images import jpeg_thumbnail
from resnet_ft.visualize.map import plot_map
from resnet_ft.visualize.plots import plot_confusion_matrix

_SIDE = 300  # pixels of a photograph
_PHOTOGRAPHS = 12
_CONFUSED = 8  # pairs of classes
_FILES = {**EVALUATIONS, "heads": "head_predictions.csv"}  # predictions in the folder of a run


def report(
    run: str | os.PathLike[str],
    *,
    data_dir: str | Path | None = None,
    predictions: Mapping[str, Predictions] | None = None,
    curve: curves.LearningCurve | None = None,
) -> Path:
    """Write report.html into the folder of a run, one file that needs no other; returns its path.

    `predictions` ("val", perhaps "test" and "train") are by default those that notebook 4 saved.
    With `data_dir`, the images are audited and shown from there; without it, they are shown where
    they still are where they were. The `curve` of `learning_curve` is computed where it is not
    given, and figures that notebook 4 saved are part of the page. Raises RunError and DatasetError
    where the run or its predictions are missing.
    """
    run = load_run(run)
    files = {split: run.folder / name for split, name in _FILES.items()}
    needed = ["heads"] if predictions else [*files]
    saved = {split: load_predictions(files[split]) for split in needed if files[split].exists()}
    heads, found = saved.pop("heads", None), {**(predictions or saved)}
    if "val" not in found:
        raise DatasetError(
            f"There is no {files['val']}. Evaluate the run with notebook 04 or resnet_ft evaluate."
        )
    audit = None if data_dir is None else audit_dataset(data_dir)
    val, history, table = found["val"], run.history, found["val"].table
    if curve is None and (run.folder / curves.FEATURES_FILE).exists():
        curve = curves.learning_curve(curves.pretrained_features(run))
    share, beside = scores.largest_class_share(table["label"]), run.folder / "calibration.json"
    with reading(beside, RunError, "Delete it, or calibrate the run again."):
        calibration = read_json(beside) if beside.exists() else {}
        calibration = calibration if calibration.get("weights") == val.weights else {}
        temperature = float(calibration.get("temperature", 1))
    learned = plot_history(history, baseline=share, num_val=len(table))
    charts = {"history": learned, "confusion": plot_confusion_matrix(val).figure}
    charts |= {"curve": plot_learning_curve(curve).figure} if curve else {}
    raw = val if val.logits is None else val.calibrated(1)
    if raw.logits is not None:
        charts["calibration"] = plot_calibration(raw).figure
        charts["coverage"] = plot_coverage(raw.calibrated(temperature)).figure
    if seen := {split: one for split, one in found.items() if one.features is not None}:
        charts["map"] = plot_map(seen).figure
    classes = scores.class_scores(val).iloc[:-1].sort_values("f1", kind="stable").reset_index()
    wrong = table[table["label"] != table["predicted"]].sort_values("confidence", ascending=False)
    root = audit.root if audit else None
    some = np.unique(np.linspace(0, len(table) - 1, _PHOTOGRAPHS).astype(int))
    advice = advise(found, heads=heads, history=history, audit=audit, curve=curve)
    drawn = {name: run.folder / "figures" / f"{name}.png" for name in ("attention", "neighbours")}
    content: dict[str, object] = {
        "name": run.folder.absolute().name,
        "config": run.config,
        "splits": scores.accuracy_summary(found).reset_index(names="split").to_dict("records"),
        "share": share,
        "verdict": scores.verdict(val, "validation"),
        "confidence": raw.table["confidence"].mean(),
        "calibration": calibration,
        "advice": advice.to_dict("records"),
        "classes": classes.to_dict("records"),
        "confused": scores.confused_pairs(val)[:_CONFUSED].to_dict("records"),
        "wrong": wrong.to_dict("records"),
        "photographs": _photographs(table.iloc[some], root),
        "mistakes": _photographs(wrong[:_PHOTOGRAPHS], root),
        "kept": scores.scored_weights(history).query("kept").to_dict("records"),
        "curve": curve,
        "audit": audit and audit.summary().to_dict("records"),
        "charts": {name: _png(figure) for name, figure in charts.items()},
        "figures": {name: _jpeg(file) for name, file in drawn.items() if file.exists()},
    }
    page = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    page.filters.update(percent=percent, share="{:.1%}".format)
    html = as_unicode(page.get_template("page.html").render(content))
    run.write("report.html", lambda path: path.write_text(html, "utf-8"))
    return run.folder / "report.html"


def _photographs(table: pd.DataFrame, root: Path | None) -> list[dict]:
    """The rows whose image can be read, with a small copy of it.

    Where it is not there any more, it is looked for as split, class and file below `root`.
    """
    shown = []
    for row in table.to_dict("records"):
        file = Path(str(row["path"]))
        if root is not None and not file.exists():
            file = root.joinpath(*file.parts[-3:])
        with suppress(ImageError):
            shown.append({**row, "image": _jpeg(file, _SIDE)})
    return shown


def _jpeg(file: Path, side: int = 900) -> str:
    return _base64(jpeg_thumbnail(file, (side, 2 * side)))


def _png(figure: Any) -> str:
    import matplotlib.pyplot as plt

    file = BytesIO()
    figure.savefig(file, dpi=140, bbox_inches="tight")
    plt.close(figure)  # a notebook would show it
    return _base64(file.getvalue())


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
