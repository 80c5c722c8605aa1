"""evaluate_run: what notebook 4 measures of a run, without a notebook."""

import os
from pathlib import Path

from resnet_ft.data.batches import unshuffled
from resnet_ft.data.loaders import describe_loaders, make_dataloaders
from resnet_ft.evaluation.predictions import Predictions, evaluate
from resnet_ft.models.checkpoint import load_checkpoint
from resnet_ft.staging.drive import project_root
from resnet_ft.staging.stage import stage_dataset
from resnet_ft.training.calibrate import calibrate
from resnet_ft.training.options import checked
from resnet_ft.training.run import load_run

_SPLITS = {"val": "", "test": "_test", "train": "_train"}
EVALUATIONS = {
    split: f"evaluation{name}.csv" for split, name in _SPLITS.items()
}  # in a run's folder


def evaluate_run(
    run: str | os.PathLike[str],
    *,
    data_dir: str | Path | None = None,
    batch_size: int = 32,
    num_workers: int | None = None,
    accuracy: float = 0.95,
) -> dict[str, Predictions]:
    """What a run's best model says of "val", "train" and, where there are any, "test" images.

    The tables are kept in the run's folder, and calibrate best.pt, with a threshold for `accuracy`
    (see `calibrate`). The images are those of the run, or in `data_dir`. Raises RunError where
    there is no trained run.
    """
    given = {"data_dir": data_dir, "batch_size": batch_size, "num_workers": num_workers}
    data_dir, batch_size, num_workers = checked(given).values()
    run = load_run(run)
    checkpoint = load_checkpoint(run.best)
    dataloaders = make_dataloaders(
        images_of(run, data_dir),
        batch_size=batch_size,
        train=checkpoint.transform(),
        val=checkpoint.transform(),
        num_workers=num_workers,
        decisions=run.decisions if data_dir is None else None,
    )
    print(describe_loaders(dataloaders))
    model = checkpoint.load_into()
    predictions = {}
    for split, loader in dataloaders.items():
        predictions[split] = evaluate(model, unshuffled(loader), features=True)
        predictions[split].save(run.folder / EVALUATIONS[split])
    print(calibrate(run, predictions, accuracy=accuracy))
    return predictions


def images_of(run: str | os.PathLike[str], data_dir: str | Path | None = None) -> Path:
    """The images of a run, or those in `data_dir`, on this machine."""
    return stage_dataset(data_dir or load_run(run).data_source, project_root() / "data")
