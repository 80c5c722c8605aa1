"""A saved model put to use: one image, several, a folder."""

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
        top = self._probabilities([_open(image) for image in images]).topk(
            min(top_k, len(self.classes))
        )
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
        images.
        """
        paths = list(find_images(Path(folder)))
        if not paths:
            raise DatasetError(f"There are no images in {folder}. Check the path.")
        batches = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]
        progress = tqdm(batches, desc="Predicting", unit="batch", leave=False)
        table = pd.DataFrame([row for batch in progress for row in self._rows(batch)])
        if csv is not None:
            with atomic_write(csv) as temporary:
                table.to_csv(temporary, index=False)
        return table

    def _rows(self, paths: Sequence[Path]) -> Iterator[dict[str, object]]:
        images, errors = {}, {}
        for path in paths:
            try:
                images[path] = open_image(path)
            except ImageError as error:
                errors[path] = error.reason
        best = dict(zip(images, self.predict_batch(list(images.values()), top_k=1), strict=True))
        for path in paths:
            name, confidence = best[path].iloc[0] if path in best else (None, None)
            row = {"path": str(path), "predicted": name, "confidence": confidence}
            yield {**row, "error": errors.get(path)}

    def _probabilities(self, images: Sequence[Image.Image]) -> Tensor:
        """Probabilities (N, C), on the CPU."""
        if not images:
            return torch.empty(0, len(self.classes))
        batch = torch.stack([self.transform(image) for image in images]).to(engine.device())
        with torch.inference_mode(), engine.accelerator().autocast():
            return self.model(batch).float().softmax(dim=1).cpu()


def _open(image: AnyFile) -> Image.Image:
    return upright_rgb(image) if isinstance(image, Image.Image) else open_image(image)
