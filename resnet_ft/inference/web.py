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

from resnet_ft.errors import DatasetError, ImageError, ParameterError
from resnet_ft.files import atomic_write, default_cache_dir, user_path
from resnet_ft.inference.check import AnyModel, checkpoint_file, photograph_files
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
    model: AnyModel,
    folder: str | Path = "site",
    *,
    title: str | None = None,
    precision: str = "auto",
    data_dir: str | Path | None = None,
    examples: bool = True,
    offline: bool = True,
    allow_changes: bool = False,
) -> Path:
    """Write a web page on which the model answers in the visitor's browser; returns its folder.

    `model` is the folder of a run or a checkpoint file. Any static host can show the folder, and
    `python -m http.server --directory site` here. Images are prepared as `Predictor` does it, and
    sent nowhere. `precision` "auto" is "fp16" for up to 30 million weights, such as ResNet50, and
    "int8" for more: see `export_onnx`, which also takes `data_dir` and `allow_changes`.

    With `examples`, the page shows up to six validation images from the run's `data_source`, or
    from `data_dir`. **They are published with it**: give False where they should not be. `offline`
    puts ONNX Runtime Web into the folder, from the npm registry (the environment variable
    `npm_config_registry` names another one), with its hashes checked; without it, visitors load
    that from a CDN (jsdelivr), which is untried. Raises ParameterError for a folder that holds
    anything else, and DatasetError where the runtime cannot be had.
    """
    folder = user_path(folder)
    if folder.exists() and not (folder / "model.json").exists() and any(folder.iterdir()):
        raise ParameterError(f"{folder} holds other files. Choose a new folder for the page.")
    checkpoint = load_checkpoint(checkpoint_file(model))
    if precision == "auto":
        weights = sum(one.numel() for one in checkpoint.state_dict.values())
        precision = "fp16" if weights <= _SMALL else "int8"
    runtime = _runtime() if offline else None
    with tempfile.TemporaryDirectory(prefix="resnet_ft-") as made:
        site = shutil.copytree(_PAGE, Path(made, "site"))
        options: dict[str, Any] = {"data_dir": data_dir, "allow_changes": allow_changes}
        file = export_onnx(model, site / "model.onnx", precision=precision, **options)
        if runtime is not None:
            shutil.copytree(runtime, site, dirs_exist_ok=True)
        onnx: Any = import_module("onnx")
        known = {one.key: json.loads(one.value) for one in onnx.load(file).metadata_props}
        few = " or ".join(known["classes"]) if len(known["classes"]) <= 3 else ""
        shown = _write_examples(model, data_dir, site / "examples") if examples else []
        known |= {
            "title": title or (f"{few[0].upper()}{few[1:]}?" if few else "What is in the picture?"),
            "arch": checkpoint.arch,
            "precision": precision,
            "runtime": "./" if offline else _CDN,
            "bytes": {"model": file.stat().st_size, "runtime": _RUNTIME_BYTES},
            "examples": shown,
        }
        (site / "model.json").write_text(json.dumps(known, indent=1, ensure_ascii=False), "utf-8")
        shutil.rmtree(folder / "examples", ignore_errors=True)  # of an earlier page
        shutil.copytree(site, folder, dirs_exist_ok=True)
    if shown:
        print(
            f"Whoever opens the page sees {len(shown)} of your validation images; examples=False "
            "leaves them out."
        )
    print(f"To look at it: python -m http.server --directory {shlex.quote(str(folder))}")
    return folder


def _write_examples(model: AnyModel, data_dir: str | Path | None, folder: Path) -> list[str]:
    """Small copies of validation images, without what a camera noted in them; their names."""
    written = list[str]()
    try:
        files, _ = photograph_files(model, "val", _EXAMPLES, data_dir)
    except DatasetError as error:
        print(f"The page is without examples. {error}")
        return written
    folder.mkdir()
    for file in files:
        with suppress(ImageError):
            content = jpeg_thumbnail(file, _EXAMPLE_SIZE)
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
