"""report: one page to hand on, in one file; `page.html` beside this one says how it looks."""

import base64
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader

from resnet_ft.audit.audit import audit_dataset
from resnet_ft.errors import ImageError
from resnet_ft.evaluation import learning_curve as curves
from resnet_ft.evaluation import scores
from resnet_ft.evaluation.advice import advise
from resnet_ft.evaluation.predictions import Predictions, load_predictions
from resnet_ft.notebook import as_unicode, percent
from resnet_ft.reading import read_json
from resnet_ft.training.run import load_run
from resnet_ft.visualize.images import jpeg_thumbnail
from resnet_ft.visualize.learning_curve import plot_learning_curve
from resnet_ft.visualize.plots import plot_confusion_matrix, plot_history

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

_SIDE = 300  # pixels of a photograph
_PHOTOGRAPHS = 12
_CONFUSED = 8  # pairs of classes


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
    found = dict(predictions or _saved(run.folder))
    audit = None if data_dir is None else audit_dataset(data_dir)
    if audit is not None:
        found = {split: _moved(one, audit.root) for split, one in found.items()}
    val, history, table = found["val"], run.history, found["val"].table
    if curve is None and (run.folder / curves.FEATURES_FILE).exists():
        curve = curves.learning_curve(curves.pretrained_features(run))
    answers, beside = run.folder / "head_predictions.csv", run.folder / "calibration.json"
    heads = load_predictions(answers) if answers.exists() else val
    trusted = scores.beats_largest_class(heads.accuracy, heads.table["label"])
    errors = scores.find_label_errors(heads) if trusted else None
    share = scores.largest_class_share(table["label"])
    learned = plot_history(history, baseline=share, num_val=len(table))
    charts = {"history": _png(learned), "history_on_phones": _png(_tall(learned))}
    charts |= {"curve": _png(plot_learning_curve(curve).figure)} if curve else {}
    charts["confusion"] = _png(plot_confusion_matrix(val).figure)
    classes = scores.class_scores(val).iloc[:-1].sort_values("f1", kind="stable").reset_index()
    wilson = [scores.wilson_interval(row.recall, row.images or 1) for row in classes.itertuples()]
    wrong = table[table["label"] != table["predicted"]].sort_values("confidence", ascending=False)
    some = np.unique(np.linspace(0, len(table) - 1, _PHOTOGRAPHS).astype(int))
    advice = advise(found, history=history, audit=audit, label_errors=errors, curve=curve)
    content: dict[str, object] = {
        "name": run.folder.absolute().name,
        "config": run.config,
        "splits": scores.accuracy_summary(found).reset_index(names="split").to_dict("records"),
        "share": share,
        "verdict": scores.verdict(val, "validation"),
        "confidence": table["confidence"].mean(),
        "calibration": read_json(beside) if beside.exists() else None,
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


def _saved(folder: Path) -> dict[str, Predictions]:
    """The predictions that notebook 4 saved in a run's folder."""
    others = [split for split in ("test", "train") if (folder / f"evaluation_{split}.csv").exists()]
    files = {"val": "evaluation.csv"} | {split: f"evaluation_{split}.csv" for split in others}
    return {split: load_predictions(folder / name) for split, name in files.items()}


def _moved(predictions: Predictions, root: Path) -> Predictions:
    """Predictions whose paths (split/class/file) lead to a data set that lies elsewhere now."""
    paths = [str(root.joinpath(*Path(path).parts[-3:])) for path in predictions.table["path"]]
    return replace(predictions, table=predictions.table.assign(path=paths))


def _photographs(table: pd.DataFrame) -> list[dict]:
    """The rows whose image can be read, with a small copy of it."""
    shown = []
    for row in table.to_dict("records"):
        with suppress(ImageError, OSError, TypeError):  # it lies elsewhere, or nobody knows where
            image = _base64(jpeg_thumbnail(Path(row["path"]), (_SIDE, _SIDE)))
            shown.append({**row, "image": image})
    return shown


def _tall(figure: "Figure") -> "Figure":
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


def _png(figure: "Figure | SubFigure") -> str:
    import matplotlib.pyplot as plt

    file = BytesIO()
    figure.figure.savefig(file, dpi=140)
    plt.close(figure.figure)  # a notebook would show it
    return _base64(file.getvalue())


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
