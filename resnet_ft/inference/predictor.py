"""A saved model predicts one image, several, or a folder of them."""

import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn

from resnet_ft import engine
from resnet_ft.data.batches import worker_processes
from resnet_ft.data.cache import DecodedImages, decode_once
from resnet_ft.data.folders import find_images
from resnet_ft.data.images import Opener, resized, upright_rgb
from resnet_ft.data.ranges import Ranges
from resnet_ft.data.transforms import prepare, preprocessing_in
from resnet_ft.errors import CheckpointError, DatasetError, DriveError, ImageError, ParameterError
from resnet_ft.files import atomic_write, user_path
from resnet_ft.models.checkpoint import load_checkpoint
from resnet_ft.notebook import progress_bar
from resnet_ft.reading import write_table
from resnet_ft.training.options import checked

AnyFile = str | Path | Image.Image


class Predictor:
    """Images to class names with probabilities.

    `model` maps what `transform` makes of an RGB image to logits, one for each of `classes`.
    `ranges` and `open_image` are how files were read for its training: see `open_image` and
    `make_dataloaders`.
    """

    def __init__(
        self,
        model: nn.Module,
        classes: Sequence[str],
        transform: Callable,
        *,
        ranges: Ranges | None = None,
        open_image: Opener | None = None,
    ):
        self.ranges: Ranges = ranges or {}
        self.opener = open_image
        self.model = model.to(engine.device()).eval()
        self.classes = list(classes)
        self.transform = transform
        wanted = preprocessing_in(transform)
        self._resizing = (wanted.side, wanted.interpolation) if wanted else None

    @classmethod
    def load(
        cls,
        path: str | Path,
        model: nn.Module | None = None,
        *,
        transform: Callable | None = None,
        open_image: Opener | None = None,
    ) -> "Predictor":
        """Load a checkpoint file, which alone is enough for a model that `build_model` makes.

        Another model is handed in as `model`, an evaluation transform other than `eval_transform`
        as `transform`, and the `open_image` of `make_dataloaders` again. Raises CheckpointError
        where a model or a transform is needed.
        """
        checkpoint = load_checkpoint(path)
        transform = transform or checkpoint.transform()
        return cls(
            checkpoint.load_into(model),
            checkpoint.class_names(),
            transform,
            ranges=checkpoint.ranges(),
            open_image=open_image,
        )

    def predict(self, image: AnyFile, top_k: int = 5) -> pd.DataFrame:
        """The most probable classes of one image: columns `class_name` and `probability`.

        `image` is a path or a PIL image. Raises ImageError for a file that cannot be read, and
        ParameterError for what is neither.
        """
        return self.predict_batch([image], top_k)[0]

    def predict_batch(self, images: Sequence[AnyFile], top_k: int = 5) -> list[pd.DataFrame]:
        """`predict` for several images at once."""
        top_k = checked({"top_k": top_k})["top_k"]
        if isinstance(images, AnyFile):
            raise ParameterError("predict_batch takes a list of images; predict takes one.")
        for image in images:
            if not isinstance(image, AnyFile):
                raise ParameterError(
                    f"An image is the path of a file or a PIL image, not {type(image).__name__}. "
                    "PIL.Image.fromarray makes one of an array of bytes (H, W, 3)."
                )
        top = self._top([self._tensor(self._pixels(image)) for image in images], top_k)
        return [
            pd.DataFrame({"class_name": names, "probability": probabilities})
            for names, probabilities in zip(*top, strict=True)
        ]

    def predict_folder(
        self,
        folder: str | Path | Sequence[str | Path],
        csv: str | Path | None = None,
        *,
        batch_size: int = 32,
        num_workers: int | None = None,
        cache_dir: str | Path | None = None,
    ) -> pd.DataFrame:
        """Every image below a folder: columns `path`, `predicted`, `confidence`, `error`.

        A list of files may take the folder's place. A file that cannot be read has its reason in
        `error` and no prediction. `csv` is a file to write the table to as well; an older one is
        replaced. `num_workers` processes (one per core) decode the images, and `cache_dir` keeps
        them as for `make_dataloaders`. Raises DatasetError for a folder without images, or without
        one that can be read, and DriveError, before any image is read, where `csv` cannot be
        written. Where that fails at the end, the table goes to a temporary folder, which a warning
        names.
        """
        is_folder = isinstance(folder, str | Path)
        files: Any = [folder] if is_folder else folder
        if not isinstance(files, Sequence) or not all(isinstance(one, str | Path) for one in files):
            raise ParameterError(
                f"folder={folder!r} should be the path of a folder, or a list of files."
            )
        batch_size, num_workers = checked(
            {"batch_size": batch_size, "num_workers": num_workers}
        ).values()
        paths = list(map(user_path, files))
        paths = list(find_images(paths[0])) if is_folder else paths
        named = str(folder) if is_folder else f"this list of {len(paths)} files"
        if not paths:
            raise DatasetError(f"There are no images in {named}. Check the path.")
        if csv is not None:
            _try_to_write(user_path(csv), size=sum(len(str(path)) + 80 for path in paths))
        workers = worker_processes(num_workers)
        images, errors = self._images(paths), dict[int, str]()
        if self._resizing:
            side, interpolation = self._resizing
            images, errors = decode_once(
                paths,
                side,
                interpolation=interpolation,
                ranges=self.ranges,
                opener=self.opener,
                cache_dir=cache_dir,
                num_workers=workers,
            )
        answers: dict[int, tuple[str, float]] = {}
        starts = range(0, len(paths), batch_size)
        for start in progress_bar(starts, "Predicting", unit="batch"):
            tensors = {}
            for row in range(start, min(start + batch_size, len(paths))):
                try:
                    if row not in errors:
                        tensors[row] = self._tensor(images[row])
                except ImageError as error:
                    errors[row] = error.reason
            names, probabilities = self._top(list(tensors.values()), top_k=1)
            found = zip(names[:, 0], probabilities[:, 0].tolist(), strict=True)
            answers |= zip(tensors, found, strict=True)
        if not answers:
            raise DatasetError(f"No image in {named} can be read: {errors[0]}.")
        table = pd.DataFrame.from_dict(answers, "index", columns=["predicted", "confidence"])
        table = table.reindex(range(len(paths))).assign(error=pd.Series(errors, dtype=object))
        table.insert(0, "path", [str(path) for path in paths])
        if csv is not None:
            try:
                with atomic_write(csv) as temporary:
                    write_table(table, temporary)
            except OSError as error:
                instead = Path(tempfile.mkdtemp(prefix="resnet_ft-"), Path(csv).name)
                write_table(table, instead)
                warnings.warn(
                    f"{csv} could not be written ({error}). The table is in {instead}, on this "
                    "machine: move it from there.",
                    stacklevel=2,
                )
        return table

    def _images(self, paths: Sequence[str | Path]) -> DecodedImages:
        side, interpolation = self._resizing or (None, "bilinear")
        return DecodedImages(
            paths, side, interpolation=interpolation, ranges=self.ranges, opener=self.opener
        )

    def _pixels(self, image: AnyFile) -> np.ndarray:
        """One image as the data loaders read it: (H, W, 3), uint8."""
        if not isinstance(image, Image.Image):
            return self._images([image])[0]
        image = upright_rgb(image, self.ranges)
        return np.array(resized(image, *self._resizing) if self._resizing else image)

    def _tensor(self, pixels: np.ndarray) -> Tensor:
        return torch.as_tensor(prepare(pixels, self.transform))

    def _top(self, images: Sequence[Tensor], top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """The most probable classes and their probabilities, each (N, k)."""
        if not images:
            return np.empty((0, 1), object), np.empty((0, 1))
        batch = torch.stack(list(images)).to(engine.device())
        with torch.inference_mode(), engine.accelerator().autocast():
            probabilities = self.model(batch).float().softmax(dim=1).cpu()
        if not probabilities.isfinite().all():
            raise CheckpointError(
                "The model's probabilities are not numbers: its weights are damaged, or too large "
                "for the precision. Load another checkpoint, or compute in full precision: "
                'configure_engine(mixed_precision="no").'
            )
        values, labels = probabilities.topk(min(top_k, len(self.classes)))
        return np.array(self.classes, dtype=object)[labels.numpy()], values.numpy()


def _try_to_write(csv: Path, *, size: int) -> None:
    """Raise DriveError where a file of about `size` bytes cannot be written."""
    try:
        if csv.is_dir():
            raise IsADirectoryError("it is a folder")
        csv.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=csv.parent) as trial:
            trial.write(bytes(size))
    except OSError as error:
        raise DriveError(
            f"{csv} cannot be written ({error}). Choose another place for the table, or make room."
        ) from error
