"""A saved model predicts one image, several, or a folder of them."""

import tempfile
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn

from resnet_ft import distributed, engine
from resnet_ft.data.batches import worker_processes
from resnet_ft.data.cache import DecodedImages, decode_once
from resnet_ft.data.folders import PathArray
from resnet_ft.data.images import Opener, read_image, resized, upright_rgb
from resnet_ft.data.ranges import Ranges
from resnet_ft.data.transforms import prepare, preprocessing_in
from resnet_ft.errors import CheckpointError, ImageError, ParameterError, needed
from resnet_ft.files import user_path
from resnet_ft.inference.files import Answering, PredictedFiles, answers
from resnet_ft.inference.folder import FolderTable, Listing, write_parquet
from resnet_ft.inference.inputs import AnyImage, Several, as_source, normalised_tensor
from resnet_ft.inference.prediction import Prediction, small_jpeg
from resnet_ft.models.calibration import Calibration
from resnet_ft.models.checkpoint import (
    Checkpoint,
    load_checkpoint,
    tensors_digest,
    weights_digest,
)
from resnet_ft.models.cutting import WithFeatures
from resnet_ft.notebook import shorten
from resnet_ft.reading import in_words
from resnet_ft.remote import is_address, masked, reason_of
from resnet_ft.training.describe import described
from resnet_ft.training.options import checked

_AT_ONCE = 32  # images of a list


class Predictor:
    """Images to class names with probabilities.

    `model` maps what `transform` makes of an RGB image to logits, one for each of `classes`.
    `ranges` and `open_image` are how files were read for its training: see `open_image` and
    `make_dataloaders`. A `calibration` (see `calibrate`) corrects the probabilities, and may flag
    answers as unsure and images as unfamiliar.
    """

    def __init__(
        self,
        model: nn.Module,
        classes: Sequence[str],
        transform: Callable,
        *,
        ranges: Ranges | None = None,
        open_image: Opener | None = None,
        calibration: Calibration | None = None,
    ):
        self.ranges: Ranges = ranges or {}
        self.opener = open_image
        self.model = model.to(engine.device()).eval()
        self.classes = list(classes)
        self.calibration = calibration or Calibration(1.0, "", 0, {}, {})
        net = self.model if self.calibration.strangest is None else WithFeatures(self.model)
        self._network, self._twice = (
            Answering(net, len(self.classes), self.calibration, tta=tta).to(engine.device()).eval()
            for tta in (False, True)
        )
        self.transform = transform
        wanted = preprocessing_in(transform)
        self._resizing = (wanted.side, wanted.interpolation) if wanted else None
        self._image_size = wanted.image_size if wanted else None

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

        The folder of a run stands for its best.pt. Another model is handed in as `model`, an
        evaluation transform other than `eval_transform` as `transform`, and the `open_image` of
        `make_dataloaders` again. Raises CheckpointError where a model or a transform is needed, and
        warns of a calibration that is of other weights, which does not count.
        """
        path = user_path(path)
        path = path / "best.pt" if path.is_dir() else path
        checkpoint = load_checkpoint(path)
        transform = transform or checkpoint.transform()
        return cls(
            checkpoint.load_into(model),
            checkpoint.class_names(),
            transform,
            ranges=checkpoint.ranges(),
            open_image=open_image,
            calibration=_calibration(path, checkpoint),
        )

    @classmethod
    def from_hub(cls, repo_id: str, *, revision: str | None = None) -> "Predictor":
        """Load the best.pt that `push_to_hub` uploaded to "user/name", or find it in the cache.

        A private repository needs `hf auth login` or HF_TOKEN. Raises CheckpointError where there
        is no such file, and for one that cannot be read.
        """
        hub = needed("huggingface_hub", "hub")
        try:
            file = hub.hf_hub_download(repo_id, "best.pt", revision=revision)
        except Exception as error:  # of the package, of what it connects with, of the system
            raise CheckpointError(
                f"{repo_id} has no best.pt that can be downloaded ({in_words(error)}). Check the "
                "name and the connection; a private one needs hf auth login, or HF_TOKEN."
            ) from error
        return cls.load(file)

    @overload
    def predict(
        self, image: AnyImage, top_k: int = 5, *, tta: bool = False, normalised: bool = False
    ) -> Prediction: ...
    @overload
    def predict(
        self, image: Several, top_k: int = 5, *, tta: bool = False, normalised: bool = False
    ) -> list[Prediction]: ...
    def predict(
        self, image: Any, top_k: int = 5, *, tta: bool = False, normalised: bool = False
    ) -> Prediction | list[Prediction]:
        """The `top_k` most probable classes of an image, or of each image of a list.

        `image` is the path of a file, an http or https address (up to 20 MB within 10 seconds, of
        an image type), bytes or an open binary file, a PIL image of any mode, an array (H, W),
        (H, W, 3) or (H, W, 4), or a tensor (3, H, W); arrays and tensors are of uint8 or of floats
        from 0 to 1. With `normalised`, it is a tensor (3, H, W) as `transform` makes it. With `tta`
        (test-time augmentation), the probabilities are the mean of those of the image and of its
        mirror image, in twice the time.

        The same pixels have the same probabilities within 1e-5, whatever holds them, alone or with
        others; on a GPU, in half precision, within about 5e-3. A large JPEG file is decoded at a
        reduced size, which may change them by about 1e-3. Raises ImageError for what cannot be
        read, with address or path and reason, and ParameterError for what is no image.
        """
        given = {"top_k": top_k, "tta": tta, "normalised": normalised}
        top_k, tta, normalised = checked(given).values()
        is_one = not isinstance(image, list | tuple)
        prepared = (
            self._prepared(one, "image" if is_one else f"images[{i}]", normalised=normalised)
            for i, one in enumerate([image] if is_one else image)
        )
        found: list[Prediction] = []
        while batch := list(islice(prepared, _AT_ONCE)):
            found += self._said(batch, top_k, tta=tta)
        return found[0] if is_one else found

    def predict_folder(
        self,
        folder: str | Path | Sequence[str | Path],
        csv: str | Path | None = None,
        *,
        top_k: int = 1,
        batch_size: int = 32,
        num_workers: int | None = None,
        cache_dir: str | Path | None = None,
        overwrite: bool = False,
        tta: bool = False,
    ) -> pd.DataFrame:
        """Every image below a folder: columns `path`, `predicted`, `confidence`, `error`.

        Paths are relative to the folder; of a list of files, which may take its place, they are as
        given. A file that cannot be read has its reason in `error` and no prediction. With `top_k`
        above 1, `class_2`, `confidence_2` and so on are the next classes. `unsure` and `unfamiliar`
        are columns too, where the calibration has a threshold for that. `num_workers` processes
        (one per core) decode the images; with `cache_dir`, a cache keeps them as for
        `make_dataloaders`. `tta` is that of `predict`.

        `csv` is a file to write the table to, row by row: the same call continues an interrupted
        one, and reads the table of a finished one. A name that ends in ".parquet" gets that format
        at the end (which needs pyarrow), and has its rows in a CSV file beside it before. What the
        rows depend on is in a JSON file beside it. A file with predictions of another model,
        transform or `top_k`, or of other files, is a ParameterError before any image is read, or,
        with `overwrite`, replaced. Several processes that call this write parts, which become one
        table at the end.

        Raises DatasetError for a folder without images, or without one that can be read, and
        DriveError, before any image is read, where `csv` cannot be written. Where that fails later,
        the table goes to a temporary folder, which a warning names.
        """
        given = {"top_k": top_k, "batch_size": batch_size, "num_workers": num_workers, "tta": tta}
        top_k, batch_size, num_workers, tta = checked(given).values()
        listing, flags = Listing.of(folder), self._network.flags
        table = FolderTable(listing, self.classes, min(top_k, len(self.classes)), batch_size, flags)
        with tempfile.TemporaryDirectory(prefix="resnet_ft-") as made:
            place = user_path(csv or Path(distributed.from_main(made), "predictions.csv"))
            is_parquet = place.suffix.lower() == ".parquet"
            if is_parquet and find_spec("pyarrow") is None:
                raise ParameterError(f"{place} needs pyarrow: pip install pyarrow")
            journal_file = place.with_name(f"{place.name}.csv") if is_parquet else place
            journal = table.journal(journal_file, self._about(tta=tta))
            journal.check(overwrite=overwrite)
            is_complete = table.is_complete(journal)
            if not is_complete:
                journal.try_to_write(listing.size())
                images = self._decoded(listing.paths, cache_dir, num_workers)
                files = PredictedFiles(images, self.transform)
                network = self._twice if tta else self._network
                journal = table.fill(journal, network, files, num_workers)
            found = table.read(journal)
            if is_parquet and distributed.is_main() and not (is_complete and place.exists()):
                write_parquet(found, place)
            distributed.wait()
        return found

    def _about(self, *, tta: bool) -> dict[str, object]:
        """What answers depend on, beside the files: plain data."""
        about: dict[str, object] = {
            "model": weights_digest(self.model)[:16],
            "classes": self.classes,
            "transform": described(self.transform),
        }
        known = self.calibration
        own = {
            "ranges": self.ranges,
            "open_image": self.opener and described(self.opener),
            "temperature": known.temperature if known.temperature != 1 else None,
            "unsure below": known.threshold,
            "unfamiliar above": known.strangest,
            "tta": tta,
        }
        return {**about, **{name: value for name, value in own.items() if value}}

    def _decoded(
        self, paths: PathArray, cache_dir: str | Path | None, num_workers: int | None
    ) -> DecodedImages:
        """The images of files, and their cache where there is to be one."""
        images = self._images(paths)
        if cache_dir is None or images.side is None:
            return images
        images, _ = decode_once(
            paths,
            images.side,
            interpolation=images.interpolation,
            ranges=self.ranges,
            opener=self.opener,
            cache_dir=cache_dir,
            num_workers=worker_processes(num_workers),
        )
        return images

    def _images(self, paths: PathArray) -> DecodedImages:
        side, interpolation = self._resizing or (None, "bilinear")
        return DecodedImages(
            paths, side, interpolation=interpolation, ranges=self.ranges, opener=self.opener
        )

    def _pixels(self, image: Any, name: str = "image") -> np.ndarray:
        """One image as the data loaders read it: (H, W, 3), uint8."""
        is_web = isinstance(image, str | Path) and is_address(image)
        name = shorten(masked(image) or "''", 300) if isinstance(image, str | Path) else name
        try:
            read, resizing = as_source(image, name), self._resizing or ()
            if not isinstance(read, Image.Image):
                read = read_image(read, *resizing, ranges=self.ranges, opener=self.opener)
            else:
                read = upright_rgb(read, self.ranges)
                read = resized(read, *resizing) if resizing else read
        except ParameterError:
            raise
        except Exception as error:  # a decoder can fail in any way
            reason = (getattr(error, "reason", "") or masked(reason_of(error))).rstrip(".")
            cause = None if is_web else error  # it may hold the whole address
            raise ImageError(f"{name}: {reason}. Give another image.", reason) from cause
        return np.array(read)

    def _prepared(self, image: Any, name: str, *, normalised: bool) -> tuple[Tensor, bytes | None]:
        """One image for the network, and as a small picture."""
        if normalised:
            return normalised_tensor(image, name, self._image_size), None
        pixels = self._pixels(image, name)
        return torch.as_tensor(prepare(pixels, self.transform)), small_jpeg(pixels)

    def _said(
        self, prepared: list[tuple[Tensor, bytes | None]], top_k: int, *, tta: bool
    ) -> list[Prediction]:
        """What the network says of a batch of images."""
        images, pictures = zip(*prepared, strict=True)
        network = self._twice if tta else self._network
        is_even = len({one.shape for one in images}) == 1
        batches = [torch.stack(images)] if is_even else [one[None] for one in images]
        found = torch.cat([answers(network, batch.to(engine.device())) for batch in batches])
        shares, flags = found.tensor_split([len(self.classes)], dim=1)
        best = shares.topk(min(top_k, len(self.classes)))
        predictions = []
        for *top, flagged, picture in zip(
            *map(Tensor.tolist, best), flags.bool().tolist(), pictures, strict=True
        ):
            named = [(self.classes[label], share) for share, label in zip(*top, strict=True)]
            by_name = dict(zip(network.flags, flagged, strict=True))
            predictions.append(Prediction(named, **by_name, picture=picture))
        return predictions


def _calibration(path: Path, checkpoint: Checkpoint) -> Calibration | None:
    """The checkpoint's, unless it is about other weights, as the file beside a new best.pt is."""
    is_stale = path.name == "best.pt" and path.with_name("calibration.json").exists()
    if checkpoint.calibration is not None:
        found = Calibration.of(checkpoint.calibration)
        if found.weights == tensors_digest(checkpoint.state_dict)[:16]:
            return found
        is_stale = True
    if is_stale:
        warnings.warn(
            f"The calibration of {path} is of other weights, so confidence is as the model gives "
            "it. Evaluate the model again and call calibrate(run).",
            stacklevel=3,
        )
    return None
