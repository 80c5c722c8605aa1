"""`python -m resnet_ft train --config runs/first/config.json`: the library's verbs in a shell."""

import argparse
import sys

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
    options = vars(parser.parse_args(arguments))
    # These load torch, which --help does not need.
    from resnet_ft import distributed
    from resnet_ft.evaluation.scores import scored_weights
    from resnet_ft.training.launch import train_run

    try:
        _, history = train_run(options.pop("config"), **options)
    except ResnetFtError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    if distributed.is_main():
        kept = scored_weights(history).query("kept").iloc[0]
        found = f"{kept['val_accuracy']:.1%}, {kept['weights']}"
        print(f"Best of {history['epoch'].max()} epochs: validation accuracy {found}")


if __name__ == "__main__":
    main()
