"""A data set as one file, or as tar shards in the WebDataset layout for one larger than a disk."""

import hashlib
import json
import os
import shutil
import tarfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from resnet_ft import engine
from resnet_ft.data.decisions import apply_decisions
from resnet_ft.data.folders import walk_images
from resnet_ft.data.images import IMAGE_EXTENSIONS, open_resized
from resnet_ft.data.index import DatasetIndex, index_dataset
from resnet_ft.data.shards import INDEX, Shard, ShardIndex, list_samples, read_shard_index
from resnet_ft.errors import DatasetError, ImageError, ParameterError
from resnet_ft.files import fingerprint
from resnet_ft.notebook import progress_bar
from resnet_ft.staging.workfolder import RESUMABLE, unfinished

_KEY = "RESNET_FT.fingerprint"  # in the global header of the tar (POSIX.1-2001, pax format)


def pack_dataset(
    data_dir: str | Path,
    archive: str | Path,
    *,
    max_shard_mb: float | None = None,
    decisions: str | Path | pd.DataFrame | None = None,
) -> Path:
    """Write the images of a folder, in their folders, to one uncompressed .tar; return its path.

    Hidden files and files that are not images stay out; links become what they lead to.
    `stage_dataset` makes an equal data set of it, and equal data sets make equal files. Where
    `archive` already holds this data set, it stays as it is. Raises DatasetError where it holds
    anything else, where there are no images, and where it cannot be written.

    With `max_shard_mb`, `archive` is a folder for tar shards of up to that many megabytes (a few
    hundred are usual) in the WebDataset layout, with a dataset.json; `make_dataloaders` reads them.
    The shards of a split hold its image files, unchanged, in a random order. `decisions` (see
    `apply_decisions`) are applied; a warning names files that cannot be read and are left out.
    Files of the same names and sizes count as the same data set here. The next call resumes a
    killed one. This needs the webdataset library.
    """
    data_dir, archive = Path(data_dir), Path(archive)
    is_tar = archive.suffix.lower() == ".tar"
    if max_shard_mb is None and decisions is not None:
        raise ParameterError("decisions go with max_shard_mb: a single .tar holds every image.")
    if max_shard_mb is None and not is_tar:
        raise DatasetError(f"{archive} should be called something.tar: it is written uncompressed.")
    if max_shard_mb is not None and (is_tar or max_shard_mb <= 0):
        raise ParameterError(
            f"max_shard_mb={max_shard_mb} should be positive, and {archive} a folder for shards."
        )
    try:
        if max_shard_mb is None:
            return _pack(data_dir, archive)
        index = index_dataset(data_dir)
        if decisions is not None:
            index = apply_decisions(index, decisions)
        return _write_shards(index, archive, max_shard_mb)
    except OSError as error:
        raise DatasetError(
            f"{data_dir} could not be packed to {archive}: {error.strerror or error}. Is the disk "
            "or Drive full or read-only, or did the images change meanwhile?"
        ) from error


def _leave(place: Path, content: str, *, is_same: bool) -> None:
    """Say that there is nothing to do, or refuse to overwrite anything else."""
    if not is_same:
        raise DatasetError(
            f"{place} exists and holds something other than {content}. Delete it if you do not "
            "need it, or give another name."
        )
    print(f"{place} already holds {content}: nothing to do.")


def _pack(data_dir: Path, archive: Path) -> Path:
    folders = sorted(walk_images(data_dir))
    images = [folder / name for folder, names in folders for name in names]

    def name_of(path: Path) -> str:
        return path.relative_to(data_dir).as_posix()

    def digest_of(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    with unfinished(archive) as work:
        if not images:
            raise DatasetError(
                f"There are no images in {data_dir} to pack. Give the folder that stage_dataset "
                "returned."
            )
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            digests = list(progress_bar(pool.map(digest_of, images), "Reading", len(images)))
        contents = zip(map(name_of, images), digests, strict=True)
        identity = fingerprint(chain((name_of(folder) for folder, _ in folders), *contents))
        if archive.exists():
            found = None
            with suppress(tarfile.TarError), tarfile.open(archive, "r:") as file:
                found = file.pax_headers.get(_KEY)  # reads no more than the first header
            _leave(archive, f"the images of {data_dir}", is_same=found == identity)
            return archive
        size = sum(image.stat().st_size for image in images)
        bar = progress_bar(None, f"Packing {archive.name}", size, unit="B")
        made = work / archive.name
        headers = {_KEY: identity}
        with bar, tarfile.open(made, "w", format=tarfile.PAX_FORMAT, pax_headers=headers) as file:
            for folder, names in folders:
                if folder != data_dir:
                    entry = tarfile.TarInfo(name_of(folder))
                    entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                    file.addfile(entry)
                for image in (folder / name for name in names):
                    with image.open("rb") as content:
                        entry = tarfile.TarInfo(name_of(image))
                        entry.size = os.fstat(content.fileno()).st_size
                        file.addfile(entry, content)
                    bar.update(entry.size)
        os.replace(made, archive)
    return archive


class _Sample(NamedTuple):
    key: str
    path: Path
    label: int


_Plan = dict[str, list[_Sample]]  # by the name of the shard


def _write_shards(index: DatasetIndex, folder: Path, max_shard_mb: float) -> Path:
    """Write train-000000.tar, ... and dataset.json to `folder`, which appears when all is written.

    The finished shards of a killed call are kept for the next one.
    """
    try:
        from webdataset import TarWriter
    except ImportError as error:
        raise DatasetError("Shards are written by webdataset: pip install webdataset") from error
    plan, identity = _plan(index, max_shard_mb * 1e6), index.fingerprint()
    with unfinished(folder) as work:
        if folder.exists() and any(folder.iterdir()):
            is_same = False
            if (folder / INDEX).is_file():
                found = read_shard_index(folder)
                names = [shard.name for shards in found.splits.values() for shard in shards]
                is_same = (found.fingerprint, names) == (identity, list(plan))
            _leave(folder, f"shards of {index.root}", is_same=is_same)
            return folder
        begun = work / RESUMABLE / fingerprint([identity, max_shard_mb])
        begun.mkdir(parents=True, exist_ok=True)
        for other in begun.parent.iterdir():
            if other != begun:  # the data set was another one when a call was killed
                shutil.rmtree(other)
        with (
            progress_bar(None, f"Packing {folder.name}", len(index.images)) as progress,
            ThreadPoolExecutor(engine.cpu_cores()) as pool,
        ):
            for name, samples in plan.items():
                if not (begun / name).exists():
                    contents = zip(samples, pool.map(_content, samples), strict=True)
                    with (work / name).open("wb") as file, TarWriter(file, mtime=0) as tar:
                        for (key, path, label), content in contents:
                            if content is not None:
                                extension = path.suffix[1:].lower()
                                if f".{extension}" not in IMAGE_EXTENSIONS:
                                    extension = "jpg"  # readers go by the content
                                tar.write({"__key__": key, extension: content, "cls": str(label)})
                    os.replace(work / name, begun / name)
                progress.update(len(samples))
        _describe(begun, index, identity, plan)
        if folder.exists():  # and is empty
            folder.rmdir()
        os.replace(begun, folder)
        begun.parent.rmdir()
    return folder


def _plan(index: DatasetIndex, limit: float) -> _Plan:
    """Which image goes to which shard: in a random order, so that no shard is of one class.

    No shard is larger than `limit` bytes, unless by a single image.
    """
    keys: dict[str, None] = {}  # one per image: its path without dots, which end a key in a shard
    for path in index.images:
        key = os.path.splitext(path)[0].replace(".", "_")
        while key in keys:
            key += "_"
        keys[key] = None
    labels = {name: label for label, name in enumerate(index.classes)}
    block = tarfile.BLOCKSIZE  # two of them are headers, one is the label
    taken = [(3 + -(-path.stat().st_size // block)) * block for path in index.paths()]
    table = index.table.assign(key=list(keys), taken=taken)
    plan: _Plan = {}
    for split in index.counts():
        rows = table[table["split"] == split]
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).numpy()
        shard, filled = 0, 0
        for row in rows.iloc[order].itertuples():
            if filled and filled + row.taken > limit:
                shard, filled = shard + 1, 0
            filled += row.taken
            sample = _Sample(row.key, index.root / row.path, labels[row.class_name])
            plan.setdefault(f"{split}-{shard:06d}.tar", []).append(sample)
    return plan


def _content(sample: _Sample) -> bytes | None:
    """The bytes of an image, or None where it cannot be read."""
    content = sample.path.read_bytes()
    try:
        open_resized(BytesIO(content), 64)  # pixels: a decoder need not give its full size
    except ImageError:
        return None
    return content


def _describe(folder: Path, index: DatasetIndex, identity: str, plan: _Plan) -> None:
    """Write dataset.json of the shards as they are, and warn of images that are not in them."""
    splits: dict[str, list[Shard]] = {}
    left_out = []
    for name, samples in plan.items():
        with (folder / name).open("rb") as file:
            keys, size = set(list_samples(file, name)[0]), os.fstat(file.fileno()).st_size
        splits.setdefault(name.partition("-")[0], []).append(Shard(name, len(keys), size))
        left_out += [sample.path for sample in samples if sample.key not in keys]
    described = json.dumps(asdict(ShardIndex(index.classes, identity, splits)), indent=1)
    (folder / INDEX).write_text(described + "\n", encoding="utf-8")
    if left_out:
        listing = "\n".join(f"  {path}" for path in left_out[:10])
        warnings.warn(
            f"{len(left_out)} of {len(index.images)} files cannot be read and are in no shard "
            f"(audit_dataset says why):\n{listing}" + "\n  ..." * (len(left_out) > 10),
            stacklevel=4,  # at the call of pack_dataset
        )
