"""Data sets of Kaggle and Hugging Face, by their own packages, which Colab has."""

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resnet_ft.errors import DatasetError, ParameterError

_NAME = re.compile(r"(kaggle|hf):([\w.-]+/[\w.-]+)")
_LIKE = re.compile(r"(kaggle|hf):", re.IGNORECASE)


def is_on_hub(source: object) -> bool:
    """Whether a source is "kaggle:owner/name" or "hf:owner/name".

    Raises ParameterError for one that begins so and continues in another way.
    """
    if not _LIKE.match(str(source)):
        return False
    if not _NAME.fullmatch(str(source)):
        raise ParameterError(
            f'{source!r} should be "kaggle:owner/name" or "hf:owner/name", as in the address of '
            "the data set."
        )
    return True


def download_from_hub(source: str) -> Path:
    """Download a data set of files, or find it in the cache of kagglehub or huggingface_hub.

    Private ones need the token that these packages look for: in Colab among its Secrets, elsewhere
    in the environment (KAGGLE_USERNAME and KAGGLE_KEY, HF_TOKEN) or the user's folder. Raises
    ParameterError where the package is missing, DatasetError where the download fails.
    """
    hub, name = source.split(":", 1)
    package, fetch, token = _HUBS[hub]
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        raise ParameterError(f"{source} needs {package}: pip install {package}") from error
    try:
        return Path(fetch(module, name))
    except Exception as error:  # each of them has many errors of its own
        said = str(error).strip().split("\n")[0][:200]
        raise DatasetError(
            f"{source} could not be downloaded ({type(error).__name__}: {said}). Check the name "
            f"and the connection; a private data set needs {token} (in Colab: Secrets, the key on "
            "the left, with access for this notebook)."
        ) from error


_HUBS: dict[str, tuple[str, Callable[[Any, str], str], str]] = {
    "kaggle": (
        "kagglehub",
        lambda module, name: module.dataset_download(name),
        "KAGGLE_USERNAME and KAGGLE_KEY",
    ),
    "hf": (
        "huggingface_hub",
        lambda module, name: module.snapshot_download(name, repo_type="dataset"),
        "HF_TOKEN",
    ),
}
