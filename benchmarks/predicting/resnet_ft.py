"""This library: Predictor.predict_folder."""

from collections.abc import Callable, Sequence
from pathlib import Path

from predicting import BATCH_SIZE, CLASSES, IMAGE_SIZE, NUM_WORKERS, Weights
from resnet_ft import Predictor, eval_transform


def _predict_folder(weights: Weights) -> Callable:
    predictor = Predictor(weights.network(), CLASSES, eval_transform(IMAGE_SIZE))

    def predict(files: Sequence[Path], csv: Path) -> None:
        predictor.predict_folder(files, csv, batch_size=BATCH_SIZE, num_workers=NUM_WORKERS)

    return predict


CONFIGURATIONS = {"predict_folder": _predict_folder}
