"""A folder of images to a table in a file, which grows row by row, by one process or by several."""

import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from resnet_ft import distributed
from resnet_ft.data.folders import PathArray, find_images
from resnet_ft.errors import DatasetError, DriveError, ParameterError
from resnet_ft.files import atomic_write, fingerprint, user_path
from resnet_ft.inference.files import Answering, Answers, PredictedFiles, predict_files
from resnet_ft.inference.journal import Journal
from resnet_ft.notebook import as_unicode, progress_bar
from resnet_ft.reading import read_table

_ROW_BYTES = 80  # of a row without its path, about


@dataclass(frozen=True)
class Listing:
    """The files to predict: all images below a folder, or a list of files (`root` is None)."""

    paths: PathArray
    root: Path | None

    @classmethod
    def of(cls, folder: str | Path | Sequence[str | Path]) -> "Listing":
        """Raises ParameterError for what is neither, DatasetError where there are no images."""
        if isinstance(folder, str | Path):
            root = user_path(folder)
            listing = cls(PathArray(find_images(root)), root)
        elif isinstance(folder, Sequence) and all(isinstance(one, str | Path) for one in folder):
            listing = cls(PathArray(map(user_path, folder)), None)
        else:
            raise ParameterError(
                f"folder={folder!r} should be the path of a folder, or a list of files."
            )
        if not len(listing.paths):
            raise DatasetError(f"There are no images in {listing}. Check the path.")
        return listing

    def __str__(self) -> str:
        return str(self.root) if self.root else f"this list of {len(self.paths)} files"

    def shown(self, row: int) -> str:
        """A path as the table has it."""
        path = self.paths[row]
        return path.removeprefix(os.path.join(self.root, "")) if self.root else path

    def digest(self) -> str:
        """What changes with any of the files: their paths, sizes and times."""
        return fingerprint(self._identities())

    def size(self) -> int:
        """About how many bytes the table will have."""
        return sum(len(path) + _ROW_BYTES for path in self.paths)

    def _identities(self) -> Iterator[str]:
        for row, path in enumerate(self.paths):
            try:
                status = os.stat(path)
            except OSError:
                yield self.shown(row)
            else:
                yield f"{self.shown(row)}\0{status.st_size}\0{status.st_mtime_ns}"


@dataclass(frozen=True)
class FolderTable:
    """How the files of a listing become rows: a batch at a time, `top_k` of the classes each."""

    listing: Listing
    classes: list[str]
    top_k: int
    batch_size: int
    flags: list[str]

    @property
    def columns(self) -> list[str]:
        """The first class is `predicted`, with its `confidence`; flags are True or False."""
        others = [
            f"{name}_{k}" for k in range(2, self.top_k + 1) for name in ("class", "confidence")
        ]
        return ["path", "predicted", "confidence", *others, *self.flags, "error"]

    def journal(self, path: Path, about: dict[str, object]) -> Journal:
        """The table's CSV file; `about` is what the answers depend on beside the files."""
        return Journal(
            path,
            self.columns,
            {
                **about,
                "top_k": self.top_k,
                "number of files": len(self.listing.paths),
                "list of files": self.listing.digest(),
            },
        )

    def is_complete(self, journal: Journal) -> bool:
        """Whether the journal has all rows; what is not whole in it is cut off."""
        total = len(self.listing.paths)
        return distributed.from_main(
            distributed.is_main() and journal.keep_whole(total, self.batch_size) == total
        )

    def fill(
        self, journal: Journal, model: Answering, files: PredictedFiles, num_workers: int | None
    ) -> Journal:
        """Compute what the journal lacks; each of several processes computes a part of it.

        Returns the journal, which is in a temporary folder where it could not be written any more.
        """
        total, count, rank = len(self.listing.paths), distributed.count(), distributed.rank()
        if count == 1:
            return self._fill(journal, range(total), model, files, num_workers)
        parts = [journal.part(number, count) for number in range(count)]
        share = range(total * rank // count, total * (rank + 1) // count)
        self._fill(parts[rank], share, model, files, num_workers)
        distributed.wait()
        if distributed.is_main():
            journal.join(parts)
        distributed.wait()
        return journal

    def _fill(
        self,
        journal: Journal,
        rows: range,
        model: Answering,
        files: PredictedFiles,
        num_workers: int | None,
    ) -> Journal:
        """Compute the rows that the journal, which is of these rows, lacks."""
        done = journal.keep_whole(len(rows), self.batch_size)
        if not rows:
            journal.append([])  # the part of a process that got no rows
        answers = predict_files(
            *(model, files, rows[done:]),
            batch_size=self.batch_size,
            num_workers=num_workers,
            weights=str(journal.about.get("model", "")),
        )
        with progress_bar(None, "Predicting", len(rows), initial=done) as progress:
            for answer in answers:
                try:
                    journal.append(self._cells(answer))
                except OSError as error:
                    if not journal.may_move:
                        raise DriveError(
                            f"{journal.path} could not be written ({error}). Make room, and call "
                            "this again: it continues."
                        ) from error
                    instead = _elsewhere(journal, error)
                    return self._fill(instead, rows, model, files, num_workers)
                progress.update(len(answer.rows))
        return journal

    def _cells(self, answers: Answers) -> Iterator[list[object]]:
        """The rows of some answers: the most probable classes, or the reason why there are none."""
        shares, flags = answers.found.tensor_split([len(self.classes)], dim=1)
        most = shares.topk(min(self.top_k, shares.shape[1]))
        found = zip(most.values.numpy(), most.indices.tolist(), flags.bool().tolist(), strict=True)
        for row, reason in zip(answers.rows, answers.reasons, strict=True):
            path = self.listing.shown(row)
            if reason is not None:
                empty = ("",) * (2 * self.top_k + len(self.flags))
                yield [path, *empty, " ".join(reason.split())]
                continue
            cells: list[object] = [path]
            *best, flagged = next(found)
            for probability, label in zip(*best, strict=True):
                cells += [self.classes[label], probability]
            yield [*cells, *flagged, ""]

    def read(self, journal: Journal) -> pd.DataFrame:
        """The table in a journal. Raises DatasetError where not one file could be read."""
        numbers = {name for name in self.columns if name.startswith("confidence")}
        table = read_table(journal.path, self.columns, is_number=numbers.__contains__)
        for name in [name for name in self.columns if name not in {"path", *numbers}]:
            table[name] = table[name].where(table[name] != "")
        for name in self.flags:
            table[name] = table[name].map({"True": True, "False": False}).astype("boolean")
        if table["predicted"].isna().all():
            distributed.wait()
            if distributed.is_main():
                journal.remove()
            raise DatasetError(f"No image in {self.listing} can be read: {table['error'][0]}.")
        return table


def _elsewhere(journal: Journal, error: OSError) -> Journal:
    """A journal in a temporary folder, with the rows so far if they can still be read."""
    path = _temporary_place(journal.path, error)
    instead = Journal(path, journal.columns, journal.about, may_move=False)
    if journal.path.is_file():
        try:
            shutil.copyfile(journal.path, instead.path)
        except OSError:
            instead.remove()
    return instead


def write_parquet(table: pd.DataFrame, path: Path) -> None:
    """Write a table in the format Parquet; where that fails, to a temporary folder."""
    texts = table.select_dtypes(exclude=["number", "boolean"])
    table = table.assign(
        **{name: texts[name].map(as_unicode, na_action="ignore") for name in texts}
    )
    try:
        with atomic_write(path) as temporary:
            table.to_parquet(temporary, index=False)
    except OSError as error:
        table.to_parquet(_temporary_place(path, error), index=False)


def _temporary_place(path: Path, error: OSError) -> Path:
    """Where a table goes that could not be written; a warning says so."""
    instead = Path(tempfile.mkdtemp(prefix="resnet_ft-"), path.name)
    warnings.warn(
        f"{path} could not be written ({error}). The table is in {instead}, on this machine: move "
        "it from there.",
        stacklevel=2,
    )
    return instead
