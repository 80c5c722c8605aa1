"""A model to hand on: in one .zip, or in a repository of the Hugging Face Hub."""

import json
import shutil
import tempfile
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path

from resnet_ft.errors import DatasetError, RunError, needed
from resnet_ft.files import atomic_write, user_path
from resnet_ft.inference.check import AnyModel, checkpoint_file
from resnet_ft.inference.export import export_onnx
from resnet_ft.models.checkpoint import load_checkpoint
from resnet_ft.reading import in_words
from resnet_ft.reporting.card import model_card
from resnet_ft.reporting.page import report


def bundle(
    model: AnyModel,
    path: str | Path | None = None,
    *,
    precision: str = "fp32",
    data_dir: str | Path | None = None,
) -> Path:
    """Write one .zip with best.pt, model.onnx, model_card.md, report.html and predict.py.

    `model` is the folder of a run or a checkpoint file; the .zip goes there by default. predict.py
    needs onnxruntime, Pillow and NumPy alone. A card or report that is there is taken as it is. The
    report shows photographs; a model without predictions has none. For `precision` and `data_dir`,
    see `export_onnx`.
    """
    file = checkpoint_file(model)
    folder, name = file.parent, file.parent.absolute().name
    with tempfile.TemporaryDirectory(prefix="resnet_ft-") as made:
        exported = Path(made, "model.onnx")
        export_onnx(model, exported, precision=precision, data_dir=data_dir)
        page = _beside(file, "report.html")
        if not page.exists():
            with suppress(DatasetError, RunError):  # no predictions, or no run
                report(folder)
        script = Path(__file__).with_name("predict.py")
        path = user_path(path or folder / f"{name}.zip")
        with (
            atomic_write(path) as temporary,
            zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as out,
        ):
            for one in (file, exported, _card(model), page, script):
                if one.exists():
                    out.write(one, f"{name}/{one.name}")
    return path


def push_to_hub(model: AnyModel, repo_id: str, *, private: bool = True) -> str:
    """Upload a model to the repository "user/name" of the Hugging Face Hub; returns its address.

    That is best.pt, the card (see `model_card`), config.json, which has no paths of yours, and
    model.onnx where the run's folder has one; never photographs. A new repository is private unless
    you say otherwise, and a public one is refused with `private`. `Predictor.from_hub` loads it.
    Raises RunError where the Hub refuses.
    """
    hub, file = needed("huggingface_hub", "hub"), checkpoint_file(model)
    known = vars(load_checkpoint(file))
    config = {name: known[name] for name in ("arch", "classes", "preprocessing", "scores")}
    with tempfile.TemporaryDirectory(prefix="resnet_ft-") as made:
        shutil.copyfile(file, Path(made, "best.pt"))
        shutil.copyfile(_card(model), Path(made, "README.md"))
        Path(made, "config.json").write_text(json.dumps(config, indent=2))
        if (exported := _beside(file, "model.onnx")).exists():
            shutil.copyfile(exported, Path(made, "model.onnx"))
        try:
            repository = hub.HfApi().create_repo(repo_id, private=private, exist_ok=True)
            if private and not hub.HfApi().repo_info(repository.repo_id).private:
                raise RunError(f"{repo_id} exists and is public: for that, give private=False.")
            hub.HfApi().upload_folder(repo_id=repository.repo_id, folder_path=made)
        except RunError:
            raise
        except Exception as error:  # of the package, of what it connects with, of the system
            raise RunError(
                f"{repo_id} could not be uploaded ({in_words(error)}). Check the name and the "
                "connection, and log in with a token that may write: hf auth login, or HF_TOKEN."
            ) from error
    return str(repository)


def _card(model: AnyModel) -> Path:
    card = _beside(checkpoint_file(model), "model_card.md")
    return card if card.exists() else model_card(model)


def _beside(file: Path, name: str) -> Path:
    """A file beside a checkpoint. Warns of one that is older, and may be of other weights."""
    found = file.with_name(name)
    if found.exists() and found.stat().st_mtime < file.stat().st_mtime:
        warnings.warn(
            f"{found} is older than {file.name}. If the model has changed since, make it again.",
            stacklevel=3,
        )
    return found
