"""A saved model put to use: one image, several, a folder."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm

from resnet_ft import engine
from resnet_ft.data.folders import find_images
from resnet_ft.data.images import open_image, upright_rgb
from resnet_ft.errors import DatasetError, ImageError
from resnet_ft.files import atomic_write
from resnet_ft.models.checkpoint import load_checkpoint

AnyFile = str | Path | Image.Image


class Predictor:
    """Images to class names with probabilities.

    `model` maps what `transform` makes of an RGB image to logits, one for each of `classes`.
    """

    def __init__(self, model: nn.Module, classes: Sequence[str], transform: Callable):
        self.model = model.to(engine.device()).eval()
        self.classes = list(classes)
        self.transform = transform

    @classmethod
    def load(
        cls, path: str | Path, model: nn.Module | None = None, *, transform: Callable | None = None
    ) -> "Predictor":
        """From a checkpoint file alone.

        A network that `build_model` does not make is handed in as `model`, an evaluation transform
        other than `eval_transform` as `transform`. Raises CheckpointError where one is needed.
        """
        checkpoint = load_checkpoint(path)
        transform = transform or checkpoint.transform()
        return cls(checkpoint.load_into(model), checkpoint.class_names(), transform)

    def predict(self, image: AnyFile, top_k: int = 5) -> pd.DataFrame:
        """The most probable classes of one image: columns `class_name` and `probability`.

        `image` is a path or a PIL image. Raises ImageError for a file that cannot be read.
        """
        return self.predict_batch([image], top_k)[0]

    def predict_batch(self, images: Sequence[AnyFile], top_k: int = 5) -> list[pd.DataFrame]:
        """`predict` for several images at once."""
        top = self._top([self.transform(_open(image)) for image in images], top_k)
        return [
            pd.DataFrame(
                {"class_name": [self.classes[i] for i in indices], "probability": values.numpy()}
            )
            for values, indices in zip(*top, strict=True)
        ]

    def predict_folder(
        self, folder: str | Path, csv: str | Path | None = None, *, batch_size: int = 32
    ) -> pd.DataFrame:
        """Every image below a folder: columns `path`, `predicted`, `confidence`, `error`.

        A file that cannot be read has its reason in `error` and no prediction. With `csv` the table
        is written there too, in place of an older one. Raises DatasetError for a folder without
        images, or without one that can be read.
        """
        paths = list(find_images(Path(folder)))
        if not paths:
            raise DatasetError(f"There are no images in {folder}. Check the path.")
        batches = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]
        progress = tqdm(batches, desc="Predicting", unit="batch", leave=False)
        table = pd.DataFrame([row for batch in progress for row in self._rows(batch)])
        if table["error"].notna().all():
            raise DatasetError(f"No image in {folder} can be read: {table['error'].iloc[0]}.")
        if csv is not None:
            with atomic_write(csv) as temporary:
                table.to_csv(temporary, index=False)
        return table

    def _rows(self, paths: Sequence[Path]) -> Iterator[dict[str, object]]:
        tensors, errors = {}, {}
        for path in paths:
            try:
                tensors[path] = self.transform(open_image(path))
            except ImageError as error:
                errors[path] = error.reason
        confidences, labels = self._top(list(tensors.values()), top_k=1)
        confidence_of = dict(zip(tensors, confidences[:, 0].tolist(), strict=True))
        label_of = dict(zip(tensors, labels[:, 0].tolist(), strict=True))
        for path in paths:
            yield {
                "path": str(path),
                "predicted": self.classes[label_of[path]] if path in label_of else None,
                "confidence": confidence_of.get(path, math.nan),
                "error": errors.get(path),
            }

    def _top(self, tensors: Sequence[Tensor], top_k: int) -> tuple[Tensor, Tensor]:
        """The highest probabilities and their labels, each (N, k), on the CPU."""
        if not tensors:
            return torch.empty(0, 1), torch.empty(0, 1, dtype=torch.long)
        batch = torch.stack(list(tensors)).to(engine.device())
        with torch.inference_mode(), engine.accelerator().autocast():
            probabilities = self.model(batch).float().softmax(dim=1).cpu()
        return probabilities.topk(min(top_k, len(self.classes)))


def _open(image: AnyFile) -> Image.Image:
    return upright_rgb(image) if isinstance(image, Image.Image) else open_image(image)
