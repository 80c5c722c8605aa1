"""What is wrong with a data set: every file, every class, and every pair of copies."""

import html
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from resnet_ft.audit.duplicates import find_duplicates
from resnet_ft.audit.findings import MEANINGS, find_issues, propose_decisions
from resnet_ft.audit.inspect import inspect_files
from resnet_ft.data.decisions import write_decisions
from resnet_ft.data.index import SPLITS, read_layout
from resnet_ft.errors import ParameterError
from resnet_ft.files import default_cache_dir, user_path
from resnet_ft.notebook import NO_FORMULAS, show_table

_TYPES = {  # of the columns that hold the facts of `inspect_file`
    "object": "format mode profile content perceptual_hash problem reason thumbnail",
    "Int64": "width height orientation pages bytes",
    "float64": "brightness darkest brightest contrast colour sharpness words",
    "boolean": "animated transparent unended",
}
_FACTS = {name: kind for kind, names in _TYPES.items() for name in names.split()}


@dataclass(frozen=True, eq=False, repr=False)
class Audit:
    """What `audit_dataset` found; its summary when it is displayed.

    Paths are relative to `root`. `issues` has a row per finding: `path`, `issue`, `severity`
    ("error" is left out of training or makes a score dishonest, "warning" is worth a look, "info"
    is handled by the library) and `detail`. `images` has a row per file with its facts (see
    `inspect_file`), `pairs` the copies (see `find_duplicates`).
    """

    root: Path
    issues: pd.DataFrame
    images: pd.DataFrame
    pairs: pd.DataFrame

    def summary(self) -> pd.DataFrame:
        """A row per issue that was found: `issue`, `severity`, `count` and its `meaning`."""
        counts = self.issues["issue"].value_counts()
        rows = [
            (issue, severity, int(counts[issue]), meaning)
            for issue, (severity, meaning) in MEANINGS.items()
            if issue in counts
        ]
        return pd.DataFrame(rows, columns=["issue", "severity", "count", "meaning"])

    def write_decisions(self, file: str | Path) -> Path:
        """Write a first file of decisions (see `propose_decisions`), unless it exists already.

        It is a CSV file for `make_dataloaders(decisions=file)`, to be read and edited.
        """
        file = user_path(file)
        if not file.exists():
            write_decisions(propose_decisions(self.images, self.pairs), file)
        return file

    def _headline(self) -> str:
        counts = self.images["split"].value_counts()
        splits = ", ".join(f"{counts[split]} {split}" for split in SPLITS if counts.get(split))
        classes = self.images["class_name"].nunique()
        found = "" if len(self.issues) else ". Nothing was found"
        return f"{self.root}: {len(self.images)} images ({splits}) of {classes} classes{found}."

    def __repr__(self) -> str:
        lines = [
            f"{row.severity:8} {row.issue:20} {row.count:6}  {row.meaning}"
            for row in self.summary().itertuples()
        ]
        return "\n".join([self._headline(), *lines])

    def _repr_html_(self) -> str:
        headline = f"<p class='{NO_FORMULAS}'>{html.escape(self._headline())}</p>"
        if self.issues.empty:
            return headline
        table = show_table(self.summary(), index=False).html
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

    Finds what `index_dataset` would refuse, files that cannot be read, images that show hardly
    anything or that the library converts, copies within and between classes and splits, small
    classes, and what does not belong into the folder. `image_size` is that of the training.
    `num_workers` threads (one per core) read every file once; `cache_dir` (the user's cache folder)
    keeps the facts for the next time. Raises DatasetError for a missing folder, ParameterError for
    sizes below one.
    """
    if image_size < 1 or (num_workers is not None and num_workers < 0):
        raise ParameterError(
            f"image_size={image_size} must be positive, num_workers={num_workers} not negative."
        )
    index, problems, notes = read_layout(data_dir)
    table = index.table.sort_values("split", kind="stable", ignore_index=True)  # training first
    facts = inspect_files(
        [index.root / path for path in table["path"]],
        num_workers=num_workers,
        cache_dir=cache_dir or default_cache_dir(),
    )
    columns = pd.DataFrame(facts, table.index, [*_FACTS], dtype=object).astype(_FACTS)
    images = pd.concat([table, columns], axis=1)
    pairs = find_duplicates(images[images["problem"].isna()])
    issues = find_issues(index.root, images, pairs, problems, notes, image_size)
    images = images.drop(columns=["thumbnail", "perceptual_hash"])
    return Audit(index.root, issues, images, pairs)
