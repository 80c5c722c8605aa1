"""What comes from outside is read here: JSON, tables, tar headers, files that `torch.save` wrote.

Somebody may have edited such a file, a disk may have damaged it, a stranger may have made it.
Whatever is wrong with one becomes the caller's error, before it takes much memory.
"""

import argparse
import json
import os
import pickle
import re
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, TYPE_CHECKING, Any, Self

from resnet_ft.errors import ResnetFtError
from resnet_ft.files import user_path

if TYPE_CHECKING:  # imported where they are used: staging needs none of them
    import pandas as pd
    from torch import Tensor

_LARGEST_JSON = 16 << 20  # bytes: a thousand times what the library writes
_SLACK = 16 << 20  # bytes that small files may take in memory
LONGEST_NAME = 1 << 20  # bytes; tarfile reads a name into memory, however long its header says
_IDENTIFIER = re.compile(r"\w[\w-]{0,63}", re.ASCII)
_FORMULA = re.compile("'*[=+@\t\r-]")  # how text begins that a spreadsheet takes for a formula


@contextmanager
def reading(place: object, error: type[ResnetFtError], remedy: str) -> Iterator[None]:
    """Turn whatever goes wrong in the block into `error`, with place, reason and remedy."""
    try:
        yield
    except ResnetFtError:
        raise
    except Exception as failure:  # parsers of damaged content raise anything
        raise error(f"{place} cannot be read ({in_words(failure)}). {remedy}") from failure


def in_words(failure: BaseException) -> str:
    """Why something failed: the first line of the message, without control characters."""
    text = getattr(failure, "strerror", None) or str(failure)
    if code := re.search(r"GLOBAL (\S+)|unrecognized function (.+)", text):
        text = (
            f"it holds {code[1] or code[2]}, which is more than plain data. For a whole model, "
            "call torch.save(model.state_dict(), path) where it was made"
        )
    elif isinstance(failure, pickle.UnpicklingError) or "weights_only" in text:
        text = "it is damaged, or no file of torch.save"  # PyTorch says how to run code in it
    elif not text or not isinstance(failure, OSError | ValueError | RuntimeError):
        text = f"{type(failure).__name__} {text}"
    line = text.strip().partition("\n")[0][:500]
    return "".join(one if one.isprintable() else " " for one in line)


def checked_identifier(text: object) -> str:
    """An identifier from a file, which may become part of a path. Raises ValueError for others."""
    if not _IDENTIFIER.fullmatch(str(text)):
        raise ValueError(f"{str(text)[:80]!r} is no identifier: letters, digits, _ and - alone")
    return str(text)


def read_json(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ValueError for anything else, and whatever reading does."""
    with user_path(path).open("rb") as file:
        content = file.read(_LARGEST_JSON + 1)
    if len(content) > _LARGEST_JSON:
        raise ValueError(f"it has more than {_LARGEST_JSON >> 20} MB")
    found = json.loads(content)
    if not isinstance(found, dict):
        raise ValueError(f"it holds a {type(found).__name__} where an object {{...}} should be")
    return found


def read_table(
    path: str | Path, columns: Sequence[str], *, is_number: Callable[[str], bool]
) -> "pd.DataFrame":
    """A table that `write_table` wrote, with these columns and perhaps others.

    Those that `is_number` names are floats, empty cells NaN; the others are text. Raises ValueError
    for anything else, and whatever reading does.
    """
    import pandas as pd

    encoding: Any = {"encoding": "utf-8-sig", "encoding_errors": "surrogateescape"}
    names = [*pd.read_csv(path, nrows=0, index_col=False, **encoding)]
    if missing := [name for name in columns if name not in names]:
        found = ", ".join(map(str, names))[:200]
        raise ValueError(f"it has no column {', '.join(missing)}, but {found}")
    numbers = [name for name in names if is_number(name)]
    read = partial(
        pd.read_csv,
        path,
        keep_default_na=False,  # "NA" may be a class
        na_values={name: ["", "nan", "NaN"] for name in numbers},
        index_col=False,
        **encoding,
    )
    try:
        table = read(dtype={name: float if name in numbers else str for name in names})
    except UnicodeEncodeError:  # pyarrow, where pandas finds it, holds no names of other bytes
        table = read(dtype={name: float if name in numbers else object for name in names})
    for name in [name for name in names if name not in numbers]:
        formulas = [bool(text and text[0] == "'" and _FORMULA.match(text)) for text in table[name]]
        table.loc[formulas, name] = table.loc[formulas, name].str[1:]
    return table


def write_table(table: "pd.DataFrame", path: str | Path) -> None:
    """Write a CSV file that spreadsheets read as UTF-8, and whose texts they take for no formulas.

    See `as_text`, which `read_table` takes back.
    """
    table = table.copy()
    for name in table.select_dtypes(exclude="number"):
        table[name] = table[name].map(as_text)
    table.to_csv(path, index=False, encoding="utf-8-sig", errors="surrogateescape")


def as_text(cell: object) -> object:
    """A cell, with an apostrophe before a text that a spreadsheet would take for a formula."""
    return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell


class StrictTarInfo(tarfile.TarInfo):
    """tarfile takes a damaged or missing header for the end of an archive; here it is an error."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        """The next entry. Raises tarfile.ReadError for one that is damaged."""
        try:
            entry = super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # typeshed does not list it
            raise  # the block of zeros that ends an archive
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"it ends or is damaged at byte {archive.offset:,}") from error
        if entry.size < 0:  # the next entry would be this one, for ever
            raise tarfile.ReadError(f"its entry {entry.name!r} has a size below zero")
        return entry

    @classmethod
    def frombuf(cls, block: bytes | bytearray, encoding: str, errors: str) -> Self:
        """An entry from its header. Raises tarfile.ReadError for a name that fills the memory."""
        info = super().frombuf(block, encoding, errors)
        # Headers whose content is the name of the next entry, or more about it.
        is_name = info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
        is_more = info.type in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
        if (is_name or is_more) and not 0 <= info.size <= LONGEST_NAME:
            raise tarfile.ReadError(f"an entry's name takes {info.size:,} bytes")
        return info


def read_saved(file: IO[bytes]) -> Any:
    """What `torch.save` wrote, tensors on the CPU: plain data, and no code is run.

    Raises ValueError for code, for content that takes more memory than the file is long, and
    whatever reading damaged content does.
    """
    import torch

    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            records = archive.infolist()
            unpacked = sum(record.file_size for record in records)
            if unpacked > size:  # torch.save does not compress
                raise ValueError(f"its {size:,} bytes unpack to {unpacked:,}")
            if any(record.filename.endswith("constants.pkl") for record in records):
                raise ValueError(
                    "it is a TorchScript archive: save torch.jit.load(path).state_dict() instead"
                )
            for record in records:
                if record.filename.endswith(".pkl") and b"\nbytearray\n" in archive.read(record):
                    raise ValueError("it holds a bytearray, which may take any amount of memory")
    file.seek(0)
    known = torch.serialization.get_safe_globals()  # of the user: they stay
    harmless = [one for one in _harmless() if one not in known]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(harmless):
            warnings.simplefilter("ignore")  # of old protocols and of what is deprecated
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(in_words(error)) from None  # what PyTorch advises would run its code
    promised = sum(tensor.numel() * tensor.element_size() for tensor in _tensors(content))
    if promised > 4 * size + _SLACK:
        raise ValueError(f"its tensors promise {promised:,} bytes, but it has {size:,}")
    return content


def _harmless() -> list[Any]:
    """Plain data that training scripts put beside tensors, by the names that pickles give it."""
    import numpy as np

    def scalar(dtype: np.dtype, content: bytes) -> np.generic:
        return np.frombuffer(content, dtype, count=1)[0]

    codes = f"?SU{np.typecodes['AllInteger']}{np.typecodes['AllFloat']}"
    names: dict[str, Any] = {
        f"numpy.{core}.multiarray.scalar": scalar for core in ("core", "_core")
    }
    for path, system in ((PurePosixPath, "Posix"), (PureWindowsPath, "Windows")):
        for name in (f"{system}Path", f"Pure{system}Path"):
            names |= {f"{module}.{name}": path for module in ("pathlib", "pathlib._local")}
    kinds = {type(np.dtype(code)) for code in codes}
    return [argparse.Namespace, np.dtype, *kinds, *((one, name) for name, one in names.items())]


def _tensors(content: object) -> "Iterator[Tensor]":
    """The tensors in nested containers, each container once: they may hold themselves."""
    from torch import Tensor

    waiting, seen = [content], set[int]()
    while waiting:
        one = waiting.pop()
        if isinstance(one, Tensor):
            yield one
        elif isinstance(one, dict | list | tuple | set) and id(one) not in seen:
            seen.add(id(one))
            waiting += [*one.keys(), *one.values()] if isinstance(one, dict) else one


def check_finite(tensors: "dict[str, Tensor]") -> None:
    """Raise ValueError for weights with which a model would predict nothing."""
    floats = {name: one for name, one in tensors.items() if one.is_floating_point()}
    if wrong := [name for name, one in floats.items() if not bool(one.isfinite().all())]:
        raise ValueError(f"{len(wrong)} of its tensors are not finite, such as {wrong[0]}")
    if wrong := [name for name in floats if "running_var" in name and (floats[name] < 0).any()]:
        raise ValueError(f"{wrong[0]}, a variance, is below zero")
