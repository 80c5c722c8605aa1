"""What is wrong with a data set: every file, every class, and every pair of copies."""

import html
import shutil
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from resnet_ft.audit.duplicates import find_duplicates
from resnet_ft.audit.findings import (
    class_findings,
    find_strays,
    image_findings,
    issue_table,
    pair_findings,
    propose_decisions,
    summarise,
)
from resnet_ft.audit.inspect import inspect_files
from resnet_ft.data.decisions import write_decisions
from resnet_ft.data.index import SPLITS, DatasetIndex, Problems, read_layout
from resnet_ft.errors import ParameterError
from resnet_ft.files import default_cache_dir

_INTEGERS = ["width", "height", "orientation", "bytes"]
_NUMBERS = ["brightness", "darkest", "brightest", "contrast", "colour", "sharpness"]
_ANSWERS = ["animated", "transparent"]
_TEXTS = ["format", "mode", "content", "perceptual_hash", "problem", "reason"]
_FACTS = {
    **dict.fromkeys(_TEXTS, "object"),
    **dict.fromkeys(_INTEGERS, "Int64"),
    **dict.fromkeys(_NUMBERS, "float64"),
    **dict.fromkeys(_ANSWERS, "boolean"),
}


@dataclass(frozen=True, eq=False, repr=False)
class Audit:
    """What `audit_dataset` found; shown, it is its summary.

    Paths are relative to `root`. `issues` has a row a finding: `path`, `issue`, `severity` ("error"
    is left out of training or breaks the honesty of a score, "warning" is worth a look, "info" the
    library deals with) and `detail`. `images` has a row a file and its facts (see `inspect_file`),
    `pairs` the copies (see `find_duplicates`).
    """

    root: Path
    issues: pd.DataFrame
    images: pd.DataFrame
    pairs: pd.DataFrame

    def summary(self) -> pd.DataFrame:
        """A row an issue that was found: `issue`, `severity`, `count`, and what it means."""
        return summarise(self.issues)

    @property
    def unreadable(self) -> list[Path]:
        """The files that cannot be read."""
        return [self.root / path for path in self.images.dropna(subset="problem")["path"]]

    def write_decisions(self, file: str | Path) -> Path:
        """Write a first file of decisions (see `propose_decisions`), unless there is one already.

        It is a CSV file for `make_dataloaders(decisions=file)`, to be read and changed: what was
        decided in an existing one stays as it is.
        """
        if not Path(file).exists():
            write_decisions(propose_decisions(self.images, self.pairs), file)
        return Path(file)

    def _headline(self) -> str:
        counts = self.images["split"].value_counts()
        splits = ", ".join(f"{counts[split]} {split}" for split in SPLITS if counts.get(split))
        classes = self.images["class_name"].nunique()
        found = "" if len(self.issues) else ". Nothing was found"
        return f"{self.root}: {len(self.images)} images ({splits}) of {classes} classes{found}."

    def __repr__(self) -> str:
        lines = [self._headline()]
        width = max(40, shutil.get_terminal_size().columns - 38)
        for row in self.summary().itertuples():
            first, *others = textwrap.wrap(row.meaning, width)
            lines.append(f"{row.severity:8} {row.issue:20} {row.count:6}  {first}")
            lines += [" " * 38 + line for line in others]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        headline = f"<p>{html.escape(self._headline())}</p>"
        if self.issues.empty:
            return headline
        with pd.option_context("display.max_colwidth", None):
            table = self.summary().to_html(index=False, justify="left", border=0)
        for cell in ("th", "td"):  # notebooks align to the right
            table = table.replace(f"<{cell}>", f"<{cell} style='text-align: left'>")
        return headline + table


def audit_dataset(
    data_dir: str | Path,
    *,
    image_size: int = 224,
    num_workers: int | None = None,
    cache_dir: str | Path | None = None,
) -> Audit:
    """Look at every file below a folder, at its classes and splits, and for copies of images.

    Finds what `index_dataset` would refuse, files that cannot be read, images that hardly show
    anything or that the library has to convert, copies within a class, between classes and between
    splits, small classes, and what does not belong into the folder. `image_size` is that of the
    training. Every file is read once, by `num_workers` threads (one a core); `cache_dir` (the
    user's cache folder) keeps what was found for the next time.
    Raises DatasetError where there is no such folder, ParameterError for sizes below one.
    """
    if image_size < 1 or (num_workers is not None and num_workers < 0):
        raise ParameterError(
            f"image_size={image_size} must be positive, num_workers={num_workers} not negative."
        )
    index, problems = read_layout(data_dir)
    images = _inspect(index, num_workers, cache_dir)
    pairs = find_duplicates(images[images["problem"].isna()])
    findings = [
        *_layout_findings(index, problems),
        *image_findings(images, image_size),
        *class_findings(images),
        *pair_findings(pairs, images),
    ]
    images = images.drop(columns=["thumbnail", "perceptual_hash"])
    return Audit(index.root, issue_table(findings), images, pairs)


def _inspect(
    index: DatasetIndex, num_workers: int | None, cache_dir: str | Path | None
) -> pd.DataFrame:
    """The index's table, training images first, with the facts of every file."""
    table = index.table.sort_values("split", kind="stable", ignore_index=True)
    paths = [index.root / path for path in table["path"]]
    facts = inspect_files(
        paths, num_workers=num_workers, cache_dir=cache_dir or default_cache_dir()
    )
    facts = pd.DataFrame(facts, index=table.index, columns=[*_FACTS, "thumbnail"], dtype=object)
    return pd.concat([table, facts.astype(_FACTS)], axis=1)


def _layout_findings(index: DatasetIndex, problems: Problems) -> Iterator[tuple[str, str, str]]:
    for path, message in problems:
        yield path.relative_to(index.root).as_posix(), "refused", message
    for name, issue in find_strays(index.root, index.images):
        yield name, issue, ""
