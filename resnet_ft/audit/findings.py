"""From facts to findings: the rules of an audit, what they mean, and what to do about them."""

import os
import unicodedata
from collections.abc import Container, Iterator
from pathlib import Path

import pandas as pd
from PIL import Image

from resnet_ft.data.folders import is_hidden, walk_folders
from resnet_ft.data.index import SPLITS
from resnet_ft.data.layout import Remarks

Finding = tuple[str, str, str]  # path, issue, detail

_LEFT_OUT = "Training leaves the file out: replace or remove it."
_LOOK = "Check that the subject can be recognised, or remove it."
MEANINGS = {
    "refused": ("error", "Training refuses this data set until this is fixed."),
    "no readable image": ("error", "Training refuses a class without images: add some."),
    "leakage": ("error", "The score rewards memory: remove the copy from one of the splits."),
    "label conflict": ("error", "One image, two labels: keep the right one, remove the other."),
    "unreadable": ("error", _LEFT_OUT),
    "empty file": ("error", _LEFT_OUT),
    "not an image": ("error", _LEFT_OUT),
    "truncated": ("error", _LEFT_OUT),
    "decompression bomb": ("error", "Too many pixels to decode, so it is left out: shrink it."),
    "duplicate": ("warning", "Counts twice in its class: remove the copy."),
    "blank": ("warning", "Hardly anything to see: remove it."),
    "placeholder or page of text": ("warning", "Words in place of a photograph: remove it."),
    "very dark": ("warning", _LOOK),
    "very bright": ("warning", _LOOK),
    "blurred": ("warning", _LOOK),
    "tiny": ("warning", "Enlarged more than four times for the model: find a larger original."),
    "extreme aspect ratio": ("warning", "The model sees only a part of it: crop it yourself."),
    "few images": ("warning", "Too few to learn the class from, or to score it: add some."),
    "class imbalance": ("warning", "Less than a fifth of the largest class: add images to it."),
    "class in one split": ("warning", "Learned but never scored: add validation images of it."),
    "assumed": ("warning", "Not the plain layout: check that this is what you mean."),
    "outside of a class": ("warning", "Not used: move it into the folder of its class."),
    "unread format": ("warning", "Not used: convert it to JPEG or PNG."),
    "wrong extension": ("info", "Read by its content; its name may confuse other tools."),
    "rotated by EXIF": ("info", "Turned upright when it is read; other tools may not do so."),
    "animated": ("info", "Only its first frame is used."),
    "transparent": ("info", "Placed on white."),
    "CMYK": ("info", "Converted to RGB; colours for print may look a little different."),
    "colour profile": (
        "info",
        "Not applied, so their colours look a little different from those of others.",
    ),
    "several pages": ("info", "Only its first page is used: check that it is no thumbnail."),
    "no end marker": ("info", "The picture is whole and is used; the file was cut off at its end."),
    "more than 8 bits": ("info", "Scaled to 8 bits."),
    "grey among colour": ("info", "Used as RGB: check that they are not all of one class."),
    "junk": ("info", "Not used: made by a system, or hidden."),
    "other file": ("info", "Not used: it is no image."),
}


def find_issues(
    root: Path,
    images: pd.DataFrame,
    pairs: pd.DataFrame,
    problems: Remarks,
    notes: Remarks,
    image_size: int,
) -> pd.DataFrame:
    """Every finding as a table `path`, `issue`, `severity`, `detail`, the serious ones first.

    `images` has the columns of `DatasetIndex.table` and of `inspect_file`, `pairs` is what
    `find_duplicates` makes of them, `problems` and `notes` are those of `read_layout`.
    """
    folders = [(path, note) for path, note in notes if path.is_dir()]  # each file has its own line
    findings = [
        *((os.path.relpath(path, root), "refused", reason) for path, reason in problems),
        *((os.path.relpath(path, root), "assumed", note) for path, note in folders),
        *_stray_findings(root, set(images["path"]), {path for path, _ in folders} - {root}),
        *_image_findings(images, image_size),
        *_class_findings(images),
        *_pair_findings(pairs, images),
    ]
    table = pd.DataFrame(findings, columns=["path", "issue", "detail"], dtype=object)
    table.insert(2, "severity", [MEANINGS[issue][0] for issue in table["issue"]])
    place = table["issue"].map(list(MEANINGS).index)
    return table.iloc[place.argsort(kind="stable")].reset_index(drop=True)


_UNREAD_FORMATS = frozenset(
    {".svg", ".eps", ".jxl"}
    | {".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2"}  # cameras' raw formats
)


def _stray_findings(
    root: Path, images: Container[str], noted: Container[Path]
) -> Iterator[Finding]:
    """Every entry below `root` that is neither an image of a class nor a visible folder.

    Images in a folder that is `noted` as a whole have no line each.
    """
    for parent, found, others in walk_folders(root):
        prefix = parent.relative_to(root)
        if not any(folder in noted for folder in (parent, *parent.parents)):
            outside = ((prefix / name).as_posix() for name in found)
            yield from ((path, "outside of a class", "") for path in outside if path not in images)
        for name in others:
            is_unread = os.path.splitext(name)[1].lower() in _UNREAD_FORMATS
            issue = "unread format" if is_unread else "other file"
            yield (prefix / name).as_posix(), "junk" if is_hidden(name) else issue, ""


_FEW = 10  # images: with fewer of them for validation, one image is more than 10% of the score
_IMBALANCE = 5  # times as many images in the largest class

# Of single images: the issue, which rows of the facts have it, and its detail.
_RULES = [
    ("blank", "contrast < 0.03 and words == 0", "contrast {contrast:.0%}"),
    ("placeholder or page of text", "words > 0", "{words:.0%} is one colour"),
    ("very dark", "brightest < 0.25", "98% is darker than {brightest:.0%} of white"),
    ("very bright", "darkest > 0.75", "98% is brighter than {darkest:.0%} of white"),
    ("blurred", "sharpness < 0.3 and contrast >= 0.03", "sharpness {sharpness:.2f}"),
    ("tiny", "4 * short < image_size", "{width} x {height}"),
    ("extreme aspect ratio", "long > 3 * short", "{width} x {height}"),
    ("wrong extension", "format != named", "{format}"),
    ("rotated by EXIF", "orientation > 1", "orientation {orientation}"),
    ("animated", "animated", "{format}"),
    ("transparent", "transparent", "mode {mode}"),
    ("CMYK", "mode == 'CMYK'", "{format}"),
    ("more than 8 bits", "deep", "mode {mode}"),
    ("several pages", "pages > 1", "{pages} pages"),
    ("no end marker", "unended", "{format}"),
    ("grey among colour", "grey and grey_share < 0.5", "mode {mode}"),
]


def _image_findings(images: pd.DataFrame, image_size: int) -> Iterator[Finding]:
    """What the facts of single files say."""
    for row in images.dropna(subset="problem").itertuples():
        yield row.path, row.problem, row.reason
    seen = images[images["problem"].isna()]
    grey = seen["colour"] < 0.03
    extensions = seen["path"].str.extract(r"(\.[^./]*)$", expand=False).str.lower()
    seen = seen.assign(
        short=seen[["width", "height"]].min(axis=1),
        long=seen[["width", "height"]].max(axis=1),
        image_size=image_size,
        deep=seen["mode"].str.startswith(("I", "F")).astype(bool),
        grey=grey,
        grey_share=grey.mean(),  # where most images are grey, that is no issue
        format=seen["format"].replace("MPO", "JPEG"),  # a JPEG with a second image behind it
        named=extensions.map(Image.registered_extensions()).fillna(seen["format"]),
    )
    for name, count in seen["profile"].value_counts().items():  # cameras give it to all
        yield ".", "colour profile", f"{name}: {count:,} of {len(seen):,} images"
    for issue, rule, detail in _RULES:
        for facts in seen.query(rule, engine="python").to_dict("records"):
            yield facts["path"], issue, detail.format(**facts)


def _class_findings(images: pd.DataFrame) -> Iterator[Finding]:
    """What is wrong with the numbers of readable images in classes and splits."""
    groups = images.assign(readable=images["problem"].isna()).groupby(
        ["split", "class_name"], observed=True
    )
    table = groups.agg(count=("readable", "sum"), path=("path", "first"))
    splits = set(images["split"])
    largest = table["count"].get("train", pd.Series([0])).max()
    for (split, class_name), count, path in table.itertuples():
        parts = path.split("/")
        names = [unicodedata.normalize("NFC", part) for part in parts]
        folder = "/".join(parts[: names.index(class_name) + 1])
        if count == 0:
            yield folder, "no readable image", f"{class_name}: none in {split}"
        elif count < _FEW:
            yield folder, "few images", f"{class_name}: {count} in {split}"
        if split == "train" and _IMBALANCE * count < largest:
            detail = f"{class_name}: {count} for training, {largest} in the largest class"
            yield folder, "class imbalance", detail
        if split == "train" and "val" in splits and ("val", class_name) not in table.index:
            yield folder, "class in one split", f"{class_name}: only in train"


def _pair_findings(pairs: pd.DataFrame, images: pd.DataFrame) -> Iterator[Finding]:
    """What pairs of copies mean: leakage between splits, label conflicts, or just a copy."""
    places = images.set_index("path")[["split", "class_name"]].astype(str)
    for pair in pairs.itertuples():
        split, class_name = places.loc[pair.path]
        other_split, other_class = places.loc[pair.other]
        same = "the same file as" if pair.kind == "exact" else "the same image as"
        detail = f"{same} {pair.other}"
        if split != other_split:
            yield pair.path, "leakage", detail
        if class_name != other_class:
            yield pair.path, "label conflict", detail
        if (split, class_name) == (other_split, other_class):
            yield pair.path, "duplicate", detail


def propose_decisions(images: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """A first table of decisions from the `images` and `pairs` of an audit.

    Of an image in several splits, only the copies in the last of them stay, so that none is scored
    on what an earlier one has taught. Of an image with two labels, all copies are left out, since
    one label is wrong. Of equal files, one stays. The last images of a class in a split are never
    proposed: a person has to decide about them.
    """
    table = images.set_index("path")
    excluded: dict[str, str] = {}
    for original, copies in pairs.groupby("other", sort=False):
        group = table.loc[[original, *copies["path"]]]
        splits = group["split"].astype(str)
        last = max(splits, key=SPLITS.index)
        if group["class_name"].astype(str).nunique() > 1:
            excluded |= dict.fromkeys(group.index, "the same image has two labels")
            continue
        kept = splits.index[splits == last]
        reason = f"the same image is in {last}: {kept[0]}"
        excluded |= dict.fromkeys(splits.index[splits != last], reason)
        again = kept[group.loc[kept, "content"].duplicated().to_numpy()]
        excluded |= dict.fromkeys(again, f"the same file as {kept[0]}")
    for _, paths in table[table["problem"].isna()].groupby(["split", "class_name"], observed=True):
        if set(paths.index) <= excluded.keys():
            excluded = {path: why for path, why in excluded.items() if path not in paths.index}
    return pd.DataFrame(sorted(excluded.items()), columns=["path", "reason"]).assign(
        decision="exclude"
    )
