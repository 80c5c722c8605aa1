"""A saved model put to use: one image, several, a folder."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn

from resnet_ft import engine
from resnet_ft.data.cache import DecodedImages, decode_once
from resnet_ft.data.folders import find_images
from resnet_ft.data.images import resized, upright_rgb
from resnet_ft.data.transforms import prepare, side_for
from resnet_ft.errors import DatasetError, ImageError
from resnet_ft.files import atomic_write
from resnet_ft.models.checkpoint import load_checkpoint
from resnet_ft.notebook import progress_bar

AnyFile = str | Path | Image.Image


class Predictor:
    """Images to class names with probabilities.

    `model` maps what `transform` makes of an RGB image to logits, one for each of `classes`.
    """

    def __init__(self, model: nn.Module, classes: Sequence[str], transform: Callable):
        self.model = model.to(engine.device()).eval()
        self.classes = list(classes)
        self.transform = transform
        self._side = side_for(transform)

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
        top = self._top([prepare(self._pixels(image), self.transform) for image in images], top_k)
        return [
            pd.DataFrame(
                {"class_name": [self.classes[i] for i in indices], "probability": values.numpy()}
            )
            for values, indices in zip(*top, strict=True)
        ]

    def predict_folder(
        self,
        folder: str | Path,
        csv: str | Path | None = None,
        *,
        batch_size: int = 32,
        num_workers: int | None = None,
        cache_dir: str | Path | None = None,
    ) -> pd.DataFrame:
        """Every image below a folder: columns `path`, `predicted`, `confidence`, `error`.

        A file that cannot be read has its reason in `error` and no prediction. With `csv` the table
        is written there too, in place of an older one. Images are decoded by a worker a core, and
        kept in `cache_dir` as `make_dataloaders` keeps them. Raises DatasetError for a folder
        without images, or without one that can be read.
        """
        paths = list(find_images(Path(folder)))
        if not paths:
            raise DatasetError(f"There are no images in {folder}. Check the path.")
        images, errors = DecodedImages(paths), {}
        if self._side:
            workers = engine.cpu_cores() if num_workers is None else num_workers
            images, errors = decode_once(
                paths, self._side, cache_dir=cache_dir, num_workers=workers
            )
        starts = range(0, len(paths), batch_size)
        batches = [range(start, min(start + batch_size, len(paths))) for start in starts]
        progress = progress_bar(batches, "Predicting", unit="batch")
        table = pd.DataFrame([row for rows in progress for row in self._rows(images, rows, errors)])
        if table["error"].notna().all():
            raise DatasetError(f"No image in {folder} can be read: {table['error'].iloc[0]}.")
        if csv is not None:
            with atomic_write(csv) as temporary:
                table.to_csv(temporary, index=False)
        return table

    def _rows(
        self, images: DecodedImages, rows: Sequence[int], errors: dict[int, str]
    ) -> Iterator[dict[str, object]]:
        tensors = {}
        for row in rows:
            try:
                if row not in errors:
                    tensors[row] = prepare(images[row], self.transform)
            except ImageError as error:
                errors[row] = error.reason
        confidences, labels = self._top(list(tensors.values()), top_k=1)
        answers = zip(tensors, labels[:, 0].tolist(), confidences[:, 0].tolist(), strict=True)
        answer_of = {row: (self.classes[label], sure) for row, label, sure in answers}
        for row in rows:
            predicted, confidence = answer_of.get(row, (None, math.nan))
            yield {
                "path": images.paths[row],
                "predicted": predicted,
                "confidence": confidence,
                "error": errors.get(row),
            }

    def _pixels(self, image: AnyFile) -> np.ndarray:
        """One image as the data loaders read it: (H, W, 3), uint8."""
        if not isinstance(image, Image.Image):
            return DecodedImages([image], self._side)[0]
        image = upright_rgb(image)
        return np.array(resized(image, self._side) if self._side else image)

    def _top(self, tensors: Sequence[Tensor], top_k: int) -> tuple[Tensor, Tensor]:
        """The highest probabilities and their labels, each (N, k), on the CPU."""
        if not tensors:
            return torch.empty(0, 1), torch.empty(0, 1, dtype=torch.long)
        batch = torch.stack(list(tensors)).to(engine.device())
        with torch.inference_mode(), engine.accelerator().autocast():
            probabilities = self.model(batch).float().softmax(dim=1).cpu()
        return probabilities.topk(min(top_k, len(self.classes)))
