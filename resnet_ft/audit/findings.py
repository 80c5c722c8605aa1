"""From facts to findings: the rules of an audit."""

import unicodedata
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pandas as pd
from PIL import Image

Finding = tuple[str, str, str]  # path, issue, detail
_BLANK = 0.03  # contrast, as a share of the way from black to white
_GREY = 0.03  # colour, likewise
_FEW = 10  # images: with fewer of them for validation, one image is more than 10% of the score
_IMBALANCE = 5  # times as many images in the largest class


class _Rule(NamedTuple):
    """An issue of single images: the rows for which `applies`, and `detail`, which is filled in."""

    issue: str
    applies: Callable[[pd.DataFrame], pd.Series]
    detail: str


_RULES = [
    _Rule("blank", lambda i: i["contrast"] < _BLANK, "contrast {contrast:.0%}"),
    _Rule(
        "very dark",
        lambda i: i["brightest"] < 0.25,
        "98% of it is darker than {brightest:.0%} of white",
    ),
    _Rule(
        "very bright",
        lambda i: i["darkest"] > 0.75,
        "98% of it is brighter than {darkest:.0%} of white",
    ),
    _Rule(
        "blurred",
        lambda i: (i["sharpness"] < 0.3) & (i["contrast"] >= _BLANK),
        "sharpness {sharpness:.2f}",
    ),
    _Rule("tiny", lambda i: 4 * i["short"] < i["image_size"], "{width} x {height}"),
    _Rule("extreme aspect ratio", lambda i: i["long"] > 3 * i["short"], "{width} x {height}"),
    _Rule("wrong extension", lambda i: i["format"] != i["named"], "{format}"),
    _Rule("rotated by EXIF", lambda i: i["orientation"] > 1, "orientation {orientation}"),
    _Rule("animated", lambda i: i["animated"].eq(True), "{format}"),
    _Rule("transparent", lambda i: i["transparent"].eq(True), "mode {mode}"),
    _Rule("CMYK", lambda i: i["mode"] == "CMYK", "{format}"),
    _Rule("more than 8 bits", lambda i: i["mode"].str.startswith(("I", "F")), "mode {mode}"),
    _Rule("grey among colour", lambda i: _rare(i["colour"] < _GREY), "mode {mode}"),
]


def image_findings(images: pd.DataFrame, image_size: int) -> Iterator[Finding]:
    """What the facts of single files say; `images` has a row a file, as `inspect_file` tells it."""
    for row in images.dropna(subset="problem").itertuples():
        yield row.path, row.problem, row.reason
    seen = images[images["problem"].isna()]
    extensions = seen["path"].str.extract(r"(\.[^./]*)$", expand=False).str.lower()
    seen = seen.assign(
        short=seen[["width", "height"]].min(axis=1),
        long=seen[["width", "height"]].max(axis=1),
        image_size=image_size,
        format=seen["format"].replace("MPO", "JPEG"),  # a JPEG with a second picture behind it
        named=extensions.map(Image.registered_extensions()).fillna(seen["format"]),
    )
    for issue, applies, detail in _RULES:
        for row in seen[applies(seen).astype(bool)].to_dict("records"):
            yield row["path"], issue, detail.format(**row)


def _rare(mask: pd.Series) -> pd.Series:
    """What is true of less than half of the images."""
    return mask & (mask.mean() < 0.5)


def class_findings(images: pd.DataFrame) -> Iterator[Finding]:
    """What is wrong with the numbers of readable images in classes and splits."""
    groups = images.assign(readable=images["problem"].isna()).groupby(
        ["split", "class_name"], observed=True
    )
    table = groups.agg(count=("readable", "sum"), path=("path", "first"))
    classes_of = {
        split: set(rows["class_name"])
        for split, rows in table.reset_index().groupby("split", observed=True)
    }
    train = table["count"].get("train", pd.Series([0]))
    for (split, class_name), count, path in table.itertuples():
        folder = _class_folder(path, class_name)
        if count == 0:
            yield folder, "no readable image", f"{class_name}: none in {split}"
        elif count < _FEW:
            yield folder, "few images", f"{class_name}: {count} in {split}"
        if split == "train" and _IMBALANCE * count < train.max():
            detail = f"{class_name}: {count} for training, the largest class {train.max()}"
            yield folder, "class imbalance", detail
        if split == "train" and class_name not in classes_of.get("val", {class_name}):
            yield folder, "class in one split", f"{class_name}: only in train"


def _class_folder(path: str, class_name: str) -> str:
    parts = path.split("/")
    names = [unicodedata.normalize("NFC", part) for part in parts]
    return "/".join(parts[: names.index(class_name) + 1])


def pair_findings(pairs: pd.DataFrame, images: pd.DataFrame) -> Iterator[Finding]:
    """What pairs of copies mean: leakage between splits, conflicts of labels, or just a copy."""
    places = images.set_index("path")[["split", "class_name"]].astype(str)
    for pair in pairs.itertuples():
        split, class_name = places.loc[pair.path]
        other_split, other_class = places.loc[pair.other]
        detail = f"the same picture as {pair.other}" + " to the byte" * (pair.kind == "exact")
        if split != other_split:
            yield pair.path, "leakage", detail
        if class_name != other_class:
            yield pair.path, "label conflict", detail
        if (split, class_name) == (other_split, other_class):
            yield pair.path, "duplicate", detail
