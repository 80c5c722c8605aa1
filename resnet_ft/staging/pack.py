"""A data set as tar shards in the WebDataset layout, for data that is larger than a disk."""

import hashlib
import json
import os
import shutil
import tarfile
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import torch

from resnet_ft import engine
from resnet_ft.data.decisions import apply_decisions
from resnet_ft.data.folders import walk_images
from resnet_ft.data.images import open_resized
from resnet_ft.data.index import DatasetIndex, index_dataset
from resnet_ft.data.shards import INDEX, Shard, ShardIndex, list_samples, read_shard_index
from resnet_ft.errors import DatasetError, ImageError, ParameterError
from resnet_ft.files import atomic_write, fingerprint
from resnet_ft.notebook import progress_bar
from resnet_ft.staging.workfolder import RESUMABLE, unfinished

if TYPE_CHECKING:
    from webdataset import TarWriter


_BLOCK = 512  # bytes: what a tar file is made of
_SIDE = 64  # pixels: an image is decoded to know that it can be, if not at its full size


class _Sample(NamedTuple):
    key: str
    path: Path
    label: int


Plan = dict[str, list[_Sample]]  # by the name of the shard


def write_shards(index: DatasetIndex, folder: Path, max_shard_mb: float) -> Path:
    """Write the images of an index to train-000000.tar, ... and dataset.json in `folder`.

    The folder appears when all is written; a call that was killed is continued by the next one.
    Raises DatasetError where `folder` holds anything else and without the webdataset library,
    OSError where it cannot be written.
    """
    try:
        from webdataset import TarWriter
    except ImportError as error:
        raise DatasetError("Shards are written by webdataset: pip install webdataset") from error
    plan, identity = _plan(index, max_shard_mb * 1e6), index.fingerprint()
    with unfinished(folder) as work:
        if folder.exists() and any(folder.iterdir()):
            _check_same_shards(folder, index, identity, plan)
            return folder
        begun = work / RESUMABLE / fingerprint([identity, max_shard_mb])
        begun.mkdir(parents=True, exist_ok=True)
        for other in begun.parent.iterdir():
            if other != begun:  # the data set was another one when a call was killed
                shutil.rmtree(other)
        with progress_bar(None, f"Packing {folder.name}", len(index.images)) as progress:
            for name, samples in plan.items():
                if not (begun / name).exists():
                    with (work / name).open("wb") as file:
                        _write_shard(TarWriter(file, mtime=0), samples)
                    os.replace(work / name, begun / name)
                progress.update(len(samples))
        _describe(begun, index, identity, plan)
        if folder.exists():  # and is empty
            folder.rmdir()
        os.replace(begun, folder)
        begun.parent.rmdir()
    return folder


def _plan(index: DatasetIndex, limit: float) -> Plan:
    """Which image goes to which shard: in a random order, so that no shard is of one class."""
    labels = {name: label for label, name in enumerate(index.classes)}
    sizes = [path.stat().st_size for path in index.paths()]
    taken = [(3 + -(-size // _BLOCK)) * _BLOCK for size in sizes]  # two headers and the label
    table = index.table.assign(key=_keys(index.images.paths), taken=taken)
    plan: Plan = {}
    for split in index.counts():
        rows = table[table["split"] == split]
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).numpy()
        rows = rows.iloc[order]
        shards = _filled(rows["taken"].to_numpy(), limit)
        for row, shard in zip(rows.itertuples(), shards, strict=True):
            sample = _Sample(row.key, index.root / row.path, labels[row.class_name])
            plan.setdefault(f"{split}-{shard:06d}.tar", []).append(sample)
    return plan


def _filled(sizes: np.ndarray, limit: float) -> list[int]:
    """The number of the shard of each, so that no shard is larger, unless by a single one."""
    shard, filled, shards = 0, 0, []
    for size in sizes.tolist():
        if filled and filled + size > limit:
            shard, filled = shard + 1, 0
        filled += size
        shards.append(shard)
    return shards


def _keys(paths: Iterable[str]) -> list[str]:
    """A name for each image, from its path, without dots: they part a key from what it is of."""
    keys: dict[str, None] = {}
    for path in paths:
        key = os.path.splitext(path)[0].replace(".", "_")
        while key in keys:
            key += "_"
        keys[key] = None
    return list(keys)


def _write_shard(tar: "TarWriter", samples: list[_Sample]) -> None:
    with ThreadPoolExecutor(engine.cpu_cores()) as pool, tar:
        for sample, content in zip(samples, pool.map(_content, samples), strict=True):
            if content is not None:
                extension = sample.path.suffix[1:].lower()
                tar.write({"__key__": sample.key, extension: content, "cls": str(sample.label)})


def _content(sample: _Sample) -> bytes | None:
    """The bytes of an image that can be read."""
    content = sample.path.read_bytes()
    try:
        open_resized(BytesIO(content), _SIDE)
    except ImageError:
        return None
    return content


def _describe(folder: Path, index: DatasetIndex, identity: str, plan: Plan) -> None:
    """Write dataset.json of the shards as they are, and say what is not in them."""
    splits: dict[str, list[Shard]] = {}
    left_out = []
    for name, samples in plan.items():
        with (folder / name).open("rb") as file:
            keys, size = set(list_samples(file, name)[0]), os.fstat(file.fileno()).st_size
        splits.setdefault(name.partition("-")[0], []).append(Shard(name, len(keys), size))
        left_out += [sample.path for sample in samples if sample.key not in keys]
    described = asdict(ShardIndex(index.classes, identity, splits))
    with atomic_write(folder / INDEX) as temporary:
        temporary.write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    if left_out:
        listing = "\n".join(f"  {path}" for path in left_out[:10])
        warnings.warn(
            f"{len(left_out)} of {len(index.images)} files cannot be read and are in no shard "
            f"(audit_dataset says why):\n{listing}" + "\n  ..." * (len(left_out) > 10),
            stacklevel=4,
        )


def _check_same_shards(folder: Path, index: DatasetIndex, identity: str, plan: Plan) -> None:
    found = read_shard_index(folder) if (folder / INDEX).is_file() else None
    names = [shard.name for shards in found.splits.values() for shard in shards] if found else []
    if not found or (found.fingerprint, names) != (identity, list(plan)):
        raise DatasetError(
            f"{folder} exists and holds something other than shards of {index.root}. Delete it if "
            "you do not need it, or give another name."
        )
    print(f"{folder} already holds the images of {index.root}: nothing to do.")


_KEY = "RESNET_FT.fingerprint"  # in a header for the whole archive: POSIX.1-2001, pax format


def pack_dataset(
    data_dir: str | Path,
    archive: str | Path,
    *,
    max_shard_mb: float | None = None,
    decisions: str | Path | pd.DataFrame | None = None,
) -> Path:
    """Write the images of a folder, in their folders, to one uncompressed .tar; return its path.

    Hidden files and whatever is not an image stay out; links become what they lead to.
    `stage_dataset` makes an equal data set of it, and equal data sets make equal files. Where
    `archive` holds this data set already, it is left as it is. Raises DatasetError where it holds
    anything else, where there are no images, and where it cannot be written.

    With `max_shard_mb`, `archive` is a folder for tar shards of up to so many megabytes, in the
    WebDataset layout, with a dataset.json, which `make_dataloaders` reads where they are: a few
    hundred megabytes are usual. Images go to the shards of their split in a random order, their
    files as they are; `decisions` (see `apply_decisions`) are carried out, and files that cannot be
    read are left out with a warning. What holds files of the same names and sizes is the same data
    set here. A call that was killed is continued. This needs the webdataset library.
    """
    data_dir, archive = Path(data_dir), Path(archive)
    _check_options(archive, max_shard_mb, decisions)
    try:
        if max_shard_mb is None:
            return _pack(data_dir, archive)
        index = index_dataset(data_dir)
        if decisions is not None:
            index = apply_decisions(index, decisions)
        return write_shards(index, archive, max_shard_mb)
    except OSError as error:
        raise DatasetError(
            f"{data_dir} could not be packed to {archive}: {error.strerror or error}. Is the disk "
            "or Drive full, may nothing be written there, or did the images change meanwhile?"
        ) from error


def _check_options(archive: Path, max_shard_mb: float | None, decisions: object) -> None:
    is_tar = archive.suffix.lower() == ".tar"
    if max_shard_mb is None and decisions is not None:
        raise ParameterError("decisions go with max_shard_mb: a single .tar holds every image.")
    if max_shard_mb is None and not is_tar:
        raise DatasetError(f"{archive} should be called something.tar: it is written uncompressed.")
    if max_shard_mb is not None and (is_tar or max_shard_mb <= 0):
        raise ParameterError(
            f"max_shard_mb={max_shard_mb} should be positive, and {archive} a folder for shards."
        )


def _pack(data_dir: Path, archive: Path) -> Path:
    with unfinished(archive) as work:
        folders = _folders(data_dir)
        identity = _identity(data_dir, folders)
        if archive.exists():
            _check_same(data_dir, archive, identity)
        else:
            _write(work / archive.name, data_dir, folders, identity)
            os.replace(work / archive.name, archive)
    return archive


def _folders(data_dir: Path) -> list[tuple[Path, list[Path]]]:
    folders = sorted(walk_images(data_dir)) if data_dir.is_dir() else []
    if not any(images for _, images in folders):
        raise DatasetError(
            f"There are no images in {data_dir} to pack. Give the folder that stage_dataset "
            "returned."
        )
    return folders


def _identity(data_dir: Path, folders: list[tuple[Path, list[Path]]]) -> str:
    """A fingerprint of all names and contents."""
    images = [path for _, images in folders for path in images]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        digests = list(progress_bar(pool.map(_digest, images), "Reading", len(images)))
    names = [path.relative_to(data_dir).as_posix() for path, _ in folders]
    contents = zip((path.relative_to(data_dir).as_posix() for path in images), digests, strict=True)
    return fingerprint([*names, *(part for pair in contents for part in pair)])


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _check_same(data_dir: Path, archive: Path, identity: str) -> None:
    try:
        with tarfile.open(archive, "r:") as file:  # reads no more than the first header
            found = file.pax_headers.get(_KEY)
    except tarfile.TarError:
        found = None
    if found != identity:
        raise DatasetError(
            f"{archive} exists and holds something other than {data_dir}. Delete it if you do not "
            "need it, or give another name."
        )
    print(f"{archive} already holds the images of {data_dir}: nothing to do.")


def _write(
    path: Path, data_dir: Path, folders: list[tuple[Path, list[Path]]], identity: str
) -> None:
    size = sum(image.stat().st_size for _, images in folders for image in images)
    bar = progress_bar(None, f"Packing {path.name}", size, unit="B", unit_scale=True)
    headers = {_KEY: identity}
    with bar, tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers=headers) as file:
        for folder, images in folders:
            if folder != data_dir:
                entry = tarfile.TarInfo(folder.relative_to(data_dir).as_posix())
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                file.addfile(entry)
            for image in images:
                with image.open("rb") as content:
                    entry = tarfile.TarInfo(image.relative_to(data_dir).as_posix())
                    entry.size = os.fstat(content.fileno()).st_size
                    file.addfile(entry, content)
                bar.update(entry.size)
