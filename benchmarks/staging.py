"""Staging a folder of many small files that answers slowly, beside `shutil.copytree`.

Every listing, stat and open of a path in the slow folder sleeps first, for both alike; the entries
of a listing sleep when they are first asked for their `stat`, and know it from then on as real ones
do. Run it with `python benchmarks/staging.py`; the last line is JSON: seconds of each, their ratio.
"""

import argparse
import builtins
import io
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from resnet_ft import stage_dataset


class SlowEntry:
    """An `os.DirEntry` on a slow disk."""

    def __init__(self, entry: os.DirEntry):
        self.name, self.path = entry.name, entry.path
        self.is_dir, self.is_file = entry.is_dir, entry.is_file  # known from the listing
        self.is_symlink, self.inode = entry.is_symlink, entry.inode
        self._known = {}

    def __fspath__(self) -> str:
        return self.path

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        if follow_symlinks not in self._known:
            status = os.stat(self.path, follow_symlinks=follow_symlinks)  # sleeps
            self._known[follow_symlinks] = status
        return self._known[follow_symlinks]


@contextmanager
def slow(folder: Path, latency_s: float) -> Iterator[None]:
    """Let every listing, stat and open of a path in `folder` take `latency_s` longer."""
    prefix = str(folder)

    def delayed(function):
        def call(path=".", *arguments, **options):
            if isinstance(path, str | os.PathLike) and os.fspath(path).startswith(prefix):
                time.sleep(latency_s)
            return function(path, *arguments, **options)

        return call

    def scandir(path="."):
        if not str(path).startswith(prefix):
            return originals["scandir"](path)
        time.sleep(latency_s)
        with originals["scandir"](path) as entries:
            return nullcontext([SlowEntry(entry) for entry in entries])

    originals = {name: getattr(os, name) for name in ("listdir", "stat", "lstat", "open")}
    slow_ones = {name: delayed(function) for name, function in originals.items()}
    originals |= {"scandir": os.scandir, "DirEntry": os.DirEntry}
    slow_ones |= {"scandir": scandir, "DirEntry": SlowEntry}  # shutil asks what an entry is
    opened = builtins.open
    try:
        vars(os).update(slow_ones)
        builtins.open = io.open = delayed(opened)
        yield
    finally:
        vars(os).update(originals)
        builtins.open = io.open = opened


def make_files(folder: Path, count: int, size: int = 20_000, classes: int = 10) -> None:
    for i in range(count):
        path = folder / "Train" / f"class {i % classes}" / f"{i:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(size))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--latency-ms", type=float, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary, "MyDrive", "photos")
        make_files(source, options.files)
        seconds = {}
        with slow(source, options.latency_ms / 1000):
            start = time.perf_counter()
            shutil.copytree(source, Path(temporary, "copytree"))
            seconds["copytree_s"] = round(time.perf_counter() - start, 2)
            start = time.perf_counter()
            staged = stage_dataset(source, Path(temporary, "local"))
            seconds["stage_s"] = round(time.perf_counter() - start, 2)
        for path in source.rglob("*.jpg"):
            assert (staged / path.relative_to(source)).read_bytes() == path.read_bytes()
    ratio = round(seconds["copytree_s"] / seconds["stage_s"], 1)
    print(json.dumps({**seconds, "ratio": ratio}))


if __name__ == "__main__":
    main()
