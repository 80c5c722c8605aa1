"""A trained model as a web page that answers in the browser; the folder `web` is the page."""

import hashlib
import json
import os
import shlex
import shutil
import tarfile
import tempfile
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from resnet_ft.data.index import held_out_images
from resnet_ft.errors import DatasetError, ImageError, ParameterError
from resnet_ft.evaluation.predictions import load_predictions
from resnet_ft.files import atomic_write, default_cache_dir, user_path
from resnet_ft.inference.export import export_onnx
from resnet_ft.models.checkpoint import load_checkpoint
from resnet_ft.reading import reading
from resnet_ft.remote import fetch
from resnet_ft.visualize.images import jpeg_thumbnail

_PAGE = Path(__file__).with_name("web")
_VERSION = "1.30.0"  # of onnxruntime-web; below, SHA-256 of what a page on one thread needs of it
_RUNTIME = {
    "ort.wasm.bundle.min.mjs": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    "ort-wasm-simd-threaded.wasm": (
        "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2"
    ),
}
_RUNTIME_BYTES = 14_239_897  # of the second
_CDN = f"https://cdn.jsdelivr.net/npm/onnxruntime-web@{_VERSION}/dist/"
_SMALL = 30_000_000  # weights: a ResNet50 has 26 million, a ResNet101 45 million
_EXAMPLES, _EXAMPLE_SIZE = 6, (512, 512)


def export_web(
    model: str | os.PathLike[str],
    folder: str | Path = "site",
    *,
    title: str | None = None,
    precision: str = "auto",
    data_dir: str | Path | None = None,
    examples: bool = True,
    offline: bool = True,
) -> Path:
    """Write a web page on which the model answers in the visitor's browser; returns its folder.

    `model` is the folder of a run or a checkpoint file. Any static host can show the folder, and
    `python -m http.server --directory site` here. Images are prepared as `Predictor` does it, and
    sent nowhere. `precision` "auto" is "fp16" for up to 30 million weights, such as ResNet50, and
    "int8" for more: see `export_onnx`, which also takes `data_dir`.

    With `examples`, up to six validation images are on the page: from `data_dir`, or from where
    they were when notebook 4 evaluated the run. **They are published with the page**: give False
    where that should not be. `offline` puts ONNX Runtime Web into the folder, from the npm registry
    (the environment variable `npm_config_registry` names another one), with its hashes checked;
    without it, visitors load that from a CDN (jsdelivr), which is untried. Raises ParameterError
    for a folder that holds anything else, and DatasetError where the runtime cannot be had.
    """
    source, folder = user_path(model), user_path(folder)
    if folder.exists() and not (folder / "model.json").exists() and any(folder.iterdir()):
        raise ParameterError(f"{folder} holds other files. Choose a new folder for the page.")
    checkpoint = load_checkpoint(source / "best.pt" if source.is_dir() else source)
    if precision == "auto":
        weights = sum(one.numel() for one in checkpoint.state_dict.values())
        precision = "fp16" if weights <= _SMALL else "int8"
    runtime = _runtime() if offline else None
    shutil.rmtree(folder / "examples", ignore_errors=True)  # an earlier page may have had some
    shutil.copytree(_PAGE, folder, dirs_exist_ok=True)
    file = export_onnx(model, folder / "model.onnx", precision=precision, data_dir=data_dir)
    if runtime is not None:
        shutil.copytree(runtime, folder, dirs_exist_ok=True)
    onnx: Any = import_module("onnx")
    known = {one.key: json.loads(one.value) for one in onnx.load(file).metadata_props}
    few = " or ".join(known["classes"]) if len(known["classes"]) <= 3 else ""
    shown = _write_examples(source, data_dir, folder / "examples") if examples else []
    known |= {
        "title": title or (f"{few[0].upper()}{few[1:]}?" if few else "What is in the picture?"),
        "arch": checkpoint.arch,
        "precision": precision,
        "runtime": "./" if offline else _CDN,
        "bytes": {"model": file.stat().st_size, "runtime": _RUNTIME_BYTES},
        "examples": shown,
    }
    with atomic_write(folder / "model.json") as temporary:
        temporary.write_text(json.dumps(known, indent=1, ensure_ascii=False), "utf-8")
    if shown:
        print(f"{len(shown)} of your photographs are published with the page: examples=False.")
    print(f"To look at the page: python -m http.server --directory {shlex.quote(str(folder))}")
    return folder


def _write_examples(source: Path, data_dir: str | Path | None, folder: Path) -> list[str]:
    """Small copies of validation images of all classes, without what a camera noted in them."""
    table, written = (source if source.is_dir() else source.parent) / "evaluation.csv", list[str]()
    if data_dir is not None:
        paths = held_out_images(data_dir)
    else:
        paths = [*load_predictions(table).table["path"].map(Path)] if table.exists() else []
    folder.mkdir()
    for at in np.linspace(0, len(paths) - 1, min(_EXAMPLES, len(paths))).astype(int):
        with suppress(ImageError):  # it may not be there any more
            content = jpeg_thumbnail(paths[at], _EXAMPLE_SIZE)
            written.append(f"{folder.name}/{len(written) + 1}.jpg")
            (folder.parent / written[-1]).write_bytes(content)
    return written


def _runtime() -> Path:
    """The folder with the files of onnxruntime-web, in the user's cache."""
    folder = default_cache_dir() / f"onnxruntime-web-{_VERSION}"
    if all((folder / name).exists() for name in _RUNTIME):
        return folder  # atomically written, with its hash checked
    given = {name.lower(): value for name, value in os.environ.items()}
    registry = given.get("npm_config_registry") or "https://registry.npmjs.org"
    address = f"{registry.rstrip('/')}/onnxruntime-web/-/onnxruntime-web-{_VERSION}.tgz"
    remedy = "Try again, or have visitors load it from a CDN: offline=False."
    with tempfile.TemporaryDirectory() as made, reading(address, DatasetError, remedy):
        fetch(address, archive := Path(made, "runtime.tgz"))
        with tarfile.open(archive) as content:
            for name, expected in _RUNTIME.items():
                member: Any = content.extractfile(f"package/dist/{name}")
                if hashlib.sha256(found := member.read()).hexdigest() != expected:
                    raise ValueError(f"{name} has another hash than version {_VERSION}")
                with atomic_write(folder / name) as temporary:
                    temporary.write_bytes(found)
    return folder
