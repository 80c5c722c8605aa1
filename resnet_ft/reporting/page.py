"""report: one page to hand on, in one file; `page.html` beside this one says how it looks."""

import base64
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
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
from resnet_ft.training.run import load_run
from resnet_ft.visualize.images import jpeg_thumbnail
from resnet_ft.visualize.learning_curve import plot_learning_curve
from resnet_ft.visualize.plots import plot_confusion_matrix, plot_history

_SIDE = 300  # pixels of a photograph
_PHOTOGRAPHS = 12
_CONFUSED = 8  # pairs of classes
_FILES = {  # predictions in the folder of a run
    **{"val": "evaluation", "test": "evaluation_test", "train": "evaluation_train"},
    "heads": "head_predictions",
}


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
    files = {split: run.folder / f"{name}.csv" for split, name in _FILES.items()}
    saved = {split: load_predictions(file) for split, file in files.items() if file.exists()}
    heads = saved.pop("heads", None)
    found = dict(predictions or saved)
    if "val" not in found:
        raise DatasetError(f"There is no {files['val']}. Evaluate the run with notebook 04.")
    audit = None if data_dir is None else audit_dataset(data_dir)
    if audit is not None:
        found = {split: _moved(one, audit.root) for split, one in found.items()}
    val, history, table = found["val"], run.history, found["val"].table
    if curve is None and (run.folder / curves.FEATURES_FILE).exists():
        curve = curves.learning_curve(curves.pretrained_features(run))
    share, beside = scores.largest_class_share(table["label"]), run.folder / "calibration.json"
    with reading(beside, RunError, "Delete it, or calibrate the run again."):
        calibration = read_json(beside) if beside.exists() else None
    learned = plot_history(history, baseline=share, num_val=len(table))
    charts = {"history": _png(learned), "history_on_phones": _png(_tall(learned))}
    charts |= {"curve": _png(plot_learning_curve(curve).figure)} if curve else {}
    charts["confusion"] = _png(plot_confusion_matrix(val).figure)
    classes = scores.class_scores(val).iloc[:-1].sort_values("f1", kind="stable").reset_index()
    wilson = [scores.wilson_interval(row.recall, row.images or 1) for row in classes.itertuples()]
    wrong = table[table["label"] != table["predicted"]].sort_values("confidence", ascending=False)
    some = np.unique(np.linspace(0, len(table) - 1, _PHOTOGRAPHS).astype(int))
    advice = advise(found, heads=heads, history=history, audit=audit, curve=curve)
    content: dict[str, object] = {
        "name": run.folder.absolute().name,
        "config": run.config,
        "splits": scores.accuracy_summary(found).reset_index(names="split").to_dict("records"),
        "share": share,
        "verdict": scores.verdict(val, "validation"),
        "confidence": table["confidence"].mean(),
        "calibration": calibration,
        "advice": advice.to_dict("records"),
        "classes": classes.assign(interval=wilson).to_dict("records"),
        "confused": wrong.value_counts(["label", "predicted"])[:_CONFUSED].to_dict(),
        "wrong": wrong.to_dict("records"),
        "photographs": _photographs(table.iloc[some]),
        "mistakes": _photographs(wrong[:_PHOTOGRAPHS]),
        "kept": scores.scored_weights(history).query("kept").to_dict("records"),
        "curve": curve,
        "audit": audit and audit.summary().to_dict("records"),
        "charts": charts,
        "figures": {file.stem: _base64(file.read_bytes()) for file in run.figures.glob("*.png")},
    }
    page = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    page.filters.update(percent=percent, share="{:.1%}".format)
    html = as_unicode(page.get_template("page.html").render(content))
    run.write("report.html", lambda path: path.write_text(html, "utf-8"))
    return run.folder / "report.html"


def _moved(predictions: Predictions, root: Path) -> Predictions:
    """Predictions whose paths (split/class/file) lead to a data set that lies elsewhere now."""
    paths = [str(root.joinpath(*Path(str(path)).parts[-3:])) for path in predictions.table["path"]]
    return replace(predictions, table=predictions.table.assign(path=paths))


def _photographs(table: pd.DataFrame) -> list[dict]:
    """The rows whose image can be read, with a small copy of it."""
    shown = []
    for row in table.to_dict("records"):
        with suppress(ImageError, OSError, TypeError):  # it lies elsewhere, or nobody knows where
            image = _base64(jpeg_thumbnail(Path(row["path"]), (_SIDE, _SIDE)))
            shown.append({**row, "image": image})
    return shown


def _tall(figure: Any) -> Any:
    """A figure with its plots and the entries of its legend below each other, for phones."""
    from matplotlib.gridspec import GridSpec

    grid = GridSpec(len(figure.axes), 1, figure)
    for row, ax in enumerate(figure.axes):
        ax.set_subplotspec(grid[row])
    for legend in [*figure.legends]:
        legend.remove()
        figure.legend(
            *figure.axes[0].get_legend_handles_labels(), loc="outside lower left", frameon=False
        )
    figure.set_size_inches(4.6, 3.6 * len(figure.axes))
    return figure


def _png(figure: Any) -> str:
    import matplotlib.pyplot as plt

    file = BytesIO()
    figure.savefig(file, dpi=140)
    plt.close(figure)  # a notebook would show it
    return _base64(file.getvalue())


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
