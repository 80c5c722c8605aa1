"""Whatever a folder holds, each file gives the right pixels or an error with a reason."""

import os
import shutil
from collections.abc import Iterator

import pytest
from isolated import Outcome, read_isolated
from malformed import (
    EITHER,
    LISTED,
    READ,
    TWO_HALVES,
    Expected,
    encoded,
    make_large,
    make_malformed,
    make_malformed_dataset,
    png,
)

MOST_MEGABYTES = 1500  # Pillow refuses more than 179 million pixels: as RGB these take 0.7 GB
LONGEST_SECONDS = 15
TOLERANCE = 16  # of 255: lossy formats, few colours, and grey as a pattern of dots


FILE_READERS = ["open_image", "open_resized"]
DATASET_READERS = ["make_dataloaders", "audit_dataset"]

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a POSIX system")


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("malformed")
    yield make_malformed(folder)
    shutil.rmtree(folder)


@pytest.fixture(scope="module", params=FILE_READERS)
def reader(request):
    return request.param


@pytest.fixture(scope="module")
def outcomes(reader, expected):
    return read_isolated(reader, list(expected), seconds=LONGEST_SECONDS)


def wrong(expected: Expected, outcome: Outcome) -> Iterator[str]:
    """What is wrong with an outcome, in words."""
    if outcome.status not in ("read", "listed"):
        yield f"{outcome.status}: {outcome.detail}"
    elif expected.outcome not in ("either", outcome.status):
        yield f"{outcome.status}, not {expected.outcome} {outcome.detail}"
    elif outcome.status == "listed" and not outcome.detail:
        yield "listed without a reason"
    if expected.size and outcome.size and tuple(outcome.size) != expected.size:
        yield f"{outcome.size}, not {expected.size} pixels"
    if expected.halves and outcome.halves:
        pairs = zip(expected.halves, outcome.halves, strict=True)
        if any(abs(a - b) > TOLERANCE for pair in pairs for a, b in zip(*pair, strict=True)):
            yield f"the colours {outcome.halves}, not {expected.halves}"


def test_every_file_is_read_correctly_or_listed_with_a_reason(reader, expected, outcomes):
    complaints = []
    for path, outcome in outcomes.items():
        what = "; ".join(wrong(expected[path], outcome))
        if what:
            complaints.append(f"{path.parent.name}/{path.name!r}: {what}")
    assert not complaints, "\n".join(complaints)
    assert len(outcomes) == len(expected)


def test_no_file_fills_the_memory(outcomes):
    path, outcome = max(outcomes.items(), key=lambda item: item[1].megabytes)
    assert outcome.megabytes < MOST_MEGABYTES, path


def test_postscript_is_never_run(tmp_path, monkeypatch):
    # Where Ghostscript is installed, Pillow gives it every EPS, whatever the file's name.
    (tmp_path / "a.jpg").write_bytes(encoded(TWO_HALVES, "EPS"))
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch '{tmp_path}/started'\nexit 1\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (outcome,) = read_isolated("open_image", [tmp_path / "a.jpg"]).values()
    assert outcome.status == "listed"
    assert not (tmp_path / "started").exists()


def test_sixteen_bits_of_48_megapixels_take_less_than_a_gigabyte(tmp_path):
    rows = (b"\0" + bytes(2 * 8000)) * 6000
    (tmp_path / "a.png").write_bytes(png(8000, 6000, rows, bits=16, colour=0))
    (outcome,) = read_isolated("open_image", [tmp_path / "a.png"]).values()
    assert outcome.size == [8000, 6000]
    assert outcome.megabytes < 1000


@pytest.mark.slow
def test_the_largest_camera_images_fit_into_memory_in_every_mode(tmp_path):
    for path in make_large(tmp_path, 12_000, 9_000):
        (outcome,) = read_isolated("open_image", [path], seconds=100).values()
        assert outcome.size == [12_000, 9_000], outcome.detail
        assert outcome.megabytes < MOST_MEGABYTES, path.name


def test_the_folder_holds_files_of_every_kind(expected):
    folders = [path.parent.name for path in expected]
    assert min(folders.count(name) for name in set(folders)) >= 7
    for outcome in ("read", "listed", "either"):
        assert sum(file.outcome == outcome for file in expected.values()) > 100


def test_every_wrong_outcome_gives_a_complaint():
    right = Outcome("read", size=READ.size, halves=READ.halves)
    assert not list(wrong(READ, right)) + list(wrong(EITHER, Outcome("listed", "is torn")))
    assert list(wrong(LISTED, right))
    assert list(wrong(READ, Outcome("listed", "is torn")))
    assert list(wrong(EITHER, Outcome("hung")))
    assert list(wrong(LISTED, Outcome("listed")))
    assert list(wrong(READ, Outcome("read", size=READ.size[::-1])))
    assert list(wrong(READ, Outcome("read", halves=READ.halves[::-1])))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A data set with every malformed file, and what is expected of each."""
    folder = tmp_path_factory.mktemp("dataset")
    yield folder, make_malformed_dataset(folder)
    shutil.rmtree(folder)


def test_the_index_holds_every_file_once_and_opens_none(dataset):
    folder, expected = dataset
    outcome = read_isolated("index_dataset", [folder])[folder]
    assert outcome.status == "read", outcome.detail
    assert sorted(outcome.files) == sorted(str(path) for path in expected if not path.is_dir())
    assert outcome.megabytes < MOST_MEGABYTES


@pytest.mark.slow
@pytest.mark.parametrize("reader", DATASET_READERS)
def test_readers_of_data_sets_name_exactly_the_unreadable_files(reader, dataset):
    folder, expected = dataset
    outcome = read_isolated(reader, [folder], seconds=120)[folder]
    assert outcome.status == "read", outcome.detail
    for path, file in expected.items():
        if file.outcome != "either" and not path.is_dir():
            assert (str(path) in outcome.files) == (file == LISTED), path
    assert outcome.megabytes < MOST_MEGABYTES
