"""The decode-once cache: right pixels, little work, and complete after whatever happened to it."""

import multiprocessing
import os
import random
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import write_image
from PIL import ImageFile

from resnet_ft.data.cache import CacheFile, DecodedImages, decode_once

SIDE = 32


@pytest.fixture
def paths(tmp_path) -> list[Path]:
    return [write_image(tmp_path / "images" / f"{i}.png", size=(48 + i, 40)) for i in range(6)]


def stored(cache_dir: Path) -> int:
    """How many bytes of pixels a cache holds."""
    return sum(file.stat().st_size for file in cache_dir.rglob("*.pixels"))


def spoil(path: Path) -> None:
    """Change what a file holds, but neither its size nor its time."""
    status = path.stat()
    path.write_bytes(b"x" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def assert_decoded_right(images: DecodedImages, paths: list[Path]) -> None:
    for i, image in enumerate(DecodedImages(paths, images.side)):
        assert np.array_equal(images[i], image)


def test_stored_images_equal_decoded_ones_bit_for_bit(paths, tmp_path):
    images, reasons = decode_once(paths, SIDE, cache_dir=tmp_path / "cache")
    assert stored(tmp_path / "cache") == sum(image.nbytes for image in images)
    assert_decoded_right(images, paths)
    assert images[0].shape == (32, 38, 3)
    assert reasons == {}


def test_a_file_is_decoded_once(paths, tmp_path):
    decode_once(paths, SIDE, cache_dir=tmp_path / "cache")
    pixels = CacheFile(tmp_path / "cache" / "images", SIDE).pixels
    pixels.write_bytes(b"\7" * pixels.stat().st_size)  # so that nobody could decode them again
    images, reasons = decode_once(paths, SIDE, cache_dir=tmp_path / "cache")
    assert all((image == 7).all() for image in images)
    assert reasons == {}


def test_files_that_exchange_their_names_exchange_their_pixels(tmp_path):
    paths = [tmp_path / "a.bmp", tmp_path / "b.bmp"]  # of the same size
    for path, colour in zip(paths, [(200, 10, 10), (10, 10, 200)], strict=True):
        os.utime(write_image(path, colour=colour), (10**9, 10**9))
    decode_once(paths, SIDE, cache_dir=tmp_path / "cache")
    for old, new in [("a.bmp", "c.bmp"), ("b.bmp", "a.bmp"), ("c.bmp", "b.bmp")]:
        os.rename(tmp_path / old, tmp_path / new)
    assert_decoded_right(decode_once(paths, SIDE, cache_dir=tmp_path / "cache")[0], paths)


def test_new_content_with_the_old_size_and_time_is_decoded_again(paths, tmp_path):
    decode_once(paths, SIDE, cache_dir=tmp_path / "cache")
    spoil(paths[2])
    _, reasons = decode_once(paths, SIDE, cache_dir=tmp_path / "cache")
    assert list(reasons) == [2]


def test_what_was_decoded_by_other_rules_is_not_reused(tmp_path, monkeypatch):
    path = write_image(tmp_path / "half.png", size=(200, 200))
    os.truncate(path, path.stat().st_size // 2)
    with monkeypatch.context() as patch:
        patch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
        assert decode_once([path], SIDE, cache_dir=tmp_path / "cache")[1] == {}
    _, reasons = decode_once([path], SIDE, cache_dir=tmp_path / "cache")
    assert "truncated" in reasons[0]


def test_a_file_that_has_changed_is_decoded_again(paths, tmp_path):
    decode_once(paths, SIDE, cache_dir=tmp_path / "cache")
    write_image(paths[2], size=(70, 60), colour=(10, 200, 10))
    assert_decoded_right(decode_once(paths, SIDE, cache_dir=tmp_path / "cache")[0], paths)


@pytest.mark.processes
def test_workers_decode_many_files_to_the_same(tmp_path):
    paths = [write_image(tmp_path / "images" / f"{i}.png", size=(40, 36)) for i in range(70)]
    paths[7].write_bytes(b"no image")
    images, reasons = decode_once(paths, SIDE, cache_dir=tmp_path / "cache", num_workers=2)
    assert list(reasons) == [7]
    del paths[7]
    assert_decoded_right(images.take(np.delete(np.arange(70), 7)), paths)


def test_an_image_may_be_changed(paths, tmp_path):
    images, _ = decode_once(paths, SIDE, cache_dir=tmp_path / "cache")
    images[0][:] = 0
    assert images[0].any()


def test_images_for_which_there_is_no_room_are_decoded_each_time(paths, tmp_path):
    three = sum(image.nbytes for image in DecodedImages(paths[:3], SIDE))
    with pytest.warns(UserWarning, match=r"is full.*: 3 of 6 are decoded again"):
        images, reasons = decode_once(
            paths, SIDE, cache_dir=tmp_path / "cache", cache_size_gb=(three + 100) / 2**30
        )
    assert stored(tmp_path / "cache") == three
    assert_decoded_right(images, paths)
    assert reasons == {}


def test_images_that_found_no_room_are_stored_when_there_is_some(paths, tmp_path):
    decode_once(paths, SIDE, cache_dir=tmp_path / "cache", cache_size_gb=0)
    assert stored(tmp_path / "cache") == 0
    images, _ = decode_once(paths, SIDE, cache_dir=tmp_path / "cache")
    assert stored(tmp_path / "cache") == sum(image.nbytes for image in images)


def test_a_full_cache_of_other_images_starts_anew_while_its_readers_read_on(paths, tmp_path):
    old = [write_image(tmp_path / "old" / f"{i}.png") for i in range(20)]
    reader, _ = decode_once(old, SIDE, cache_dir=tmp_path / "cache")
    first = reader[0]
    limit = (stored(tmp_path / "cache") + 100) / 2**30
    images, _ = decode_once(paths, SIDE, cache_dir=tmp_path / "cache", cache_size_gb=limit)
    assert stored(tmp_path / "cache") == sum(image.nbytes for image in images)
    assert_decoded_right(images, paths)
    assert np.array_equal(reader[0], first)


def test_a_cache_that_cannot_be_written_is_not_needed(paths, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    paths[1].write_bytes(b"")
    with pytest.warns(UserWarning, match=r"cannot be written .*: 5 of 6 are decoded again"):
        images, reasons = decode_once(paths, SIDE, cache_dir=tmp_path / "cache")
    assert reasons == {1: "the file is empty"}
    assert_decoded_right(images.take(np.array([0, 2])), [paths[0], paths[2]])


def test_a_full_disk_is_a_warning_and_images_are_decoded_again(paths, tmp_path):
    names = [str(path) for path in paths]
    code = f"""
        import resource, warnings
        from resnet_ft.data.cache import decode_once
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))  # as if the disk ended there
        with warnings.catch_warnings(record=True) as caught:
            images, reasons = decode_once({names}, {SIDE}, cache_dir="cache")
        assert "is full" in str(caught[0].message), caught
        assert reasons == {{}}, reasons
        print(sum(int(image.sum()) for image in images))
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) == sum(int(image.sum()) for image in DecodedImages(paths, SIDE))


@pytest.mark.parametrize("damage", ["half a record", "no index", "no pixels", "half the pixels"])
def test_a_damaged_cache_is_repaired(paths, tmp_path, damage):
    decode_once(paths[:4], SIDE, cache_dir=tmp_path / "cache")
    file = CacheFile(tmp_path / "cache" / "images", SIDE)
    index = next(file.directory.glob("*.index"))
    if damage == "half a record":
        index.write_bytes(index.read_bytes()[:-7])
    elif damage == "no index":
        index.write_bytes(b"")
    elif damage == "no pixels":
        file.pixels.unlink()
    else:
        os.truncate(file.pixels, file.pixels.stat().st_size // 2)
    for _ in range(2):
        images, reasons = decode_once(paths, SIDE, cache_dir=tmp_path / "cache")
        assert_decoded_right(images, paths)
        assert reasons == {}


def test_a_cache_that_was_deleted_meanwhile_is_not_needed(paths, tmp_path):
    images, _ = decode_once(paths, SIDE, cache_dir=tmp_path / "cache")
    CacheFile(tmp_path / "cache" / "images", SIDE).pixels.unlink()
    assert_decoded_right(images, paths)


def test_two_processes_that_fill_it_at_once_do_the_work_once(tmp_path):
    paths = [write_image(tmp_path / "images" / f"{i}.png", size=(90, 80)) for i in range(80)]
    code = f"""
        from pathlib import Path
        from resnet_ft.data.cache import decode_once
        paths = sorted(Path("images").glob("*.png"))
        images, reasons = decode_once(paths, {SIDE}, cache_dir="cache")
        print(sum(image.nbytes for image in images))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    runs = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) for _ in range(2)
    ]
    sizes = {int(run.communicate()[0].splitlines()[-1]) for run in runs}
    assert sizes == {stored(tmp_path / "cache")}
    assert len(paths) == 80


@pytest.mark.slow
@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="kills forked processes"
)
def test_whenever_it_is_killed_the_next_call_completes_the_same_cache(tmp_path):
    side, kills = 96, 20
    paths = [write_image(tmp_path / f"{i}.jpg", size=(500, 375)) for i in range(160)]
    expected = list(DecodedImages(paths, side))
    started = time.perf_counter()
    decode_once(paths, side, cache_dir=tmp_path / "undisturbed")
    seconds = time.perf_counter() - started
    chance, cut_short = random.Random(0), 0
    for kill in range(kills):
        cache_dir = tmp_path / f"cache-{kill}"
        workers = {"num_workers": 2 if kill % 4 == 0 else 0, "cache_dir": cache_dir}
        process = multiprocessing.get_context("fork").Process(
            target=decode_once, args=(paths, side), kwargs=workers
        )
        process.start()
        process.join(chance.uniform(0, seconds))
        process.kill()
        process.join()
        stored = sum(file.stat().st_size for file in cache_dir.rglob("*.pixels"))
        cut_short += 0 < stored < sum(image.nbytes for image in expected)
        images, reasons = decode_once(paths, side, cache_dir=cache_dir)
        assert reasons == {}
        for image, other in zip(images, expected, strict=True):
            assert np.array_equal(image, other)
    assert cut_short >= kills // 2  # or else the test would have tried little


@pytest.mark.parametrize("field", ["offset", "height", "width"])
@pytest.mark.parametrize("value", [-7, 2**31 - 1])
def test_a_damaged_record_is_not_believed(tmp_path, field, value):
    path = write_image(tmp_path / "a.png", (20, 16))
    before, _ = decode_once([path], 8, cache_dir=tmp_path / "cache")
    pixels = before[0]
    (index,) = (tmp_path / "cache").rglob("*.index")
    record = np.dtype([("key", "<u8"), ("offset", "<i8"), ("height", "<i4"), ("width", "<i4")])
    records = np.fromfile(index, record)
    records[field][1] = value
    records.tofile(index)
    images, reasons = decode_once([path], 8, cache_dir=tmp_path / "cache")
    assert not reasons and np.array_equal(images[0], pixels)
