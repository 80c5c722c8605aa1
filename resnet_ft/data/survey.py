"""Many images at a look: which cannot be read, and how large they are."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
from PIL import Image
from tqdm.auto import tqdm

from resnet_ft.data.images import orientation, unreadable_because, upright_rgb


def verify_images(paths: Sequence[str | Path]) -> pd.DataFrame:
    """Decode every file once, in parallel, and list those that cannot be read: `path`, `reason`.

    JPEGs are decoded at an eighth of their size, which still reads every byte of the file.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reasons = pool.map(_reason, paths)
        progress = tqdm(reasons, "Checking images", len(paths), leave=False, unit="image")
        reasons = list(progress)
    rows = [(str(path), reason) for path, reason in zip(paths, reasons, strict=True) if reason]
    return pd.DataFrame(rows, columns=["path", "reason"])


def _reason(path: str | Path) -> str | None:
    try:
        with Image.open(path) as image:
            image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
            if image.format != "JPEG":  # every mode of a JPEG can be converted
                upright_rgb(image)
    except Exception as error:
        return unreadable_because(path, error)
    return None


def image_sizes(paths: Sequence[str | Path]) -> pd.DataFrame:
    """Width and height of the upright images, in pixels, from the files' headers.

    Columns `path`, `width`, `height`; files that cannot be opened are left out.
    """
    rows = []
    for path in paths:
        try:
            with Image.open(path) as image:
                size = image.size[::-1] if orientation(image) >= 5 else image.size
        except Exception:
            continue
        rows.append((str(path), *size))
    return pd.DataFrame(rows, columns=["path", "width", "height"])
