"""`python -m resnet_ft train --config runs/first/config.json`: the library's verbs in a shell."""

import argparse
import sys

from resnet_ft import distributed
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
    options = parser.parse_args(arguments)
    try:
        _train(options)
    except ResnetFtError as error:
        sys.exit(f"{type(error).__name__}: {error}")


def _train(options: argparse.Namespace) -> None:
    from resnet_ft.training.launch import train_run

    _, history = train_run(
        options.config,
        data_dir=options.data_dir,
        num_workers=options.num_workers,
        save_minutes=options.save_minutes,
    )
    if distributed.is_main():
        best = history["val_accuracy"].max()
        print(f"Best validation accuracy {best:.1%} after {history['epoch'].max()} epochs")


if __name__ == "__main__":
    main()
