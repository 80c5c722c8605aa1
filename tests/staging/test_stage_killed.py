"""Staging is killed again and again, and the next call completes what it began."""

import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, write_image

from resnet_ft import stage_dataset
from resnet_ft.staging.pack import pack_dataset

_CODE = """
import sys
from resnet_ft import stage_dataset
from resnet_ft.staging.pack import pack_dataset
print("begun", flush=True)
verb, source, destination = sys.argv[1:]
if verb == "pack":
    pack_dataset(source, destination + "/photos.tar")
else:
    stage_dataset(source, destination, workers=4, max_side=40 if verb == "shrink" else None)
"""
_RUNS = [("copy", 8), ("shrink", 3), ("unpack", 6), ("pack", 3)]


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, Path]:
    """The same 900 images in a folder that counts as one on Drive, and in an archive."""
    folder = tmp_path_factory.mktemp("sources") / "MyDrive" / "photos"
    image = write_image(folder / "Train" / "red" / "0.png", size=(60, 50))
    for i in range(1, 900):
        copied = folder / ("Train" if i % 4 else "Val") / ("red" if i % 2 else "blue") / f"{i}.png"
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, copied)
    archive = shutil.make_archive(str(folder), "gztar", folder)
    return {"copy": folder, "shrink": folder, "unpack": Path(archive), "pack": folder}


def complete(verb: str, source: Path, destination: Path) -> Path:
    if verb == "pack":
        return pack_dataset(source, destination / "photos.tar")
    return stage_dataset(source, destination, max_side=40 if verb == "shrink" else None)


def tree(path: Path) -> dict[str, bytes]:
    """Every file, hidden ones too, but for the manifest, whose lines may come in any order."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    files = [file for file in files if file.name != ".manifest.jsonl"]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def run(verb: str, source: Path, destination: Path) -> tuple[subprocess.Popen, float]:
    """A process that has begun to work, and when that was."""
    command = [sys.executable, "-c", _CODE, verb, str(source), str(destination)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout.readline() == "begun\n"
    return process, time.monotonic()


@pytest.mark.slow
@pytest.mark.parametrize(("verb", "times"), _RUNS)
def test_what_was_killed_is_completed_by_the_next_call(verb, times, sources, tmp_path):
    process, begun = run(verb, sources[verb], tmp_path / "undisturbed")
    assert process.wait() == 0
    duration = time.monotonic() - begun
    expected = tree(complete(verb, sources[verb], tmp_path / "undisturbed"))
    hit = 0
    for i in range(times):
        process, begun = run(verb, sources[verb], tmp_path / str(i))
        time.sleep(random.Random(i).uniform(0, duration))
        hit += process.poll() is None
        process.kill()
        process.communicate()
        completed = complete(verb, sources[verb], tmp_path / str(i))
        assert tree(completed) == expected
        assert [path.name for path in (tmp_path / str(i)).iterdir()] == [completed.name]
    assert hit >= times // 2  # most were killed at work
