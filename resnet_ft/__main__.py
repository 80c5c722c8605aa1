"""`python -m resnet_ft train --config runs/first/config.json`: the library's verbs in a shell."""

import argparse
import sys
from typing import Any

from resnet_ft.errors import ResnetFtError


def main(arguments: list[str] | None = None) -> None:
    """Run a verb; an error that the user can solve is one line, and the exit status 1."""
    parser = argparse.ArgumentParser(prog="resnet_ft", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="verb")
    train = verbs.add_parser("train", help="train or resume the run that a config.json describes")
    train.add_argument("--config", required=True, help="the file; the run is kept in its folder")
    train.add_argument("--data_dir", help="where the images are, if not at the file's data_source")
    train.add_argument("--num_workers", type=int, help="processes that read images")
    train.add_argument("--save_minutes", type=float, default=5.0, help="time between two saves")
    train.add_argument(
        "--drop_resume_state",
        dest="keep_resume_state",
        action="store_false",
        help="of a finished run, keep only the model: it takes a sixth of the space",
    )
    train.set_defaults(verb=_train)
    predict = verbs.add_parser("predict", help="write what a model says of a folder into a table")
    predict.add_argument("model", help="the folder of a run, or a checkpoint file")
    predict.add_argument("folder", help="all images below it are predicted")
    predict.add_argument("--csv", default="predictions.csv", help="the table, .csv or .parquet")
    predict.add_argument("--top_k", type=int, default=1, help="how many classes a row names")
    predict.add_argument("--batch_size", type=int, default=32, help="images at a time")
    predict.add_argument("--num_workers", type=int, help="processes that read images")
    predict.add_argument("--cache_dir", help="where to keep the decoded images, if at all")
    predict.add_argument(
        "--overwrite", action="store_true", help="replace a table of something else"
    )
    predict.set_defaults(verb=_predict)
    report = verbs.add_parser(
        "report", help="write report.html, a page about a run, into its folder"
    )
    report.add_argument("run", help="the folder of a run that notebook 4 has evaluated")
    report.add_argument("--data_dir", help="where its images are, to audit and to show them")
    report.set_defaults(verb=_report)
    options = vars(parser.parse_args(arguments))
    try:
        options.pop("verb")(**options)
    except ResnetFtError as error:
        sys.exit(f"{type(error).__name__}: {error}")


# The verbs load torch, which --help does not need.
def _train(config: str, **options: Any) -> None:
    from resnet_ft import distributed
    from resnet_ft.evaluation.scores import scored_weights
    from resnet_ft.training.launch import train_run

    _, history = train_run(config, **options)
    if distributed.is_main():
        kept = scored_weights(history).query("kept").iloc[0]
        found = f"{kept['val_accuracy']:.1%}, {kept['weights']}"
        print(f"Best of {history['epoch'].max()} epochs: validation accuracy {found}")


def _predict(model: str, folder: str, **options: Any) -> None:
    from resnet_ft import distributed
    from resnet_ft.inference.predictor import Predictor

    table = Predictor.load(model).predict_folder(folder, **options)
    if distributed.is_main():
        unread = int(table["error"].notna().sum())
        print(f"{len(table):,} rows in {options['csv']}, {unread:,} of files that cannot be read")


def _report(run: str, **options: Any) -> None:
    from resnet_ft.reporting.page import report

    print(report(run, **options))


if __name__ == "__main__":
    main()
