import os
import socket
import sqlite3
import subprocess
import sys

import numpy as np
import pytest
from conftest import write_image
from PIL import Image, ImageCms, ImageFile

from resnet_ft.audit.inspect import inspect_file, inspect_files


def photo(size=(120, 90), seed=0):
    """Smooth shapes, as in photographs."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC)


@pytest.mark.parametrize("orientation", [1, 6])
def test_width_and_height_are_those_of_the_upright_image(tmp_path, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    photo().save(tmp_path / "a.jpg", exif=exif)
    facts = inspect_file(tmp_path / "a.jpg")
    assert (facts["width"], facts["height"]) == ((120, 90) if orientation == 1 else (90, 120))
    assert facts["orientation"] == orientation
    assert facts["format"], facts["mode"] == ("JPEG", "RGB")


def test_light_is_measured_in_shares_of_white(tmp_path):
    pixels = np.full((50, 50), 51, np.uint8)
    pixels[:25] = 204
    Image.fromarray(pixels).save(tmp_path / "halves.png")
    facts = inspect_file(tmp_path / "halves.png")
    assert facts["darkest"] == pytest.approx(0.2)
    assert facts["brightest"] == pytest.approx(0.8)
    assert facts["brightness"] == pytest.approx(0.5, abs=0.01)
    assert facts["contrast"] == pytest.approx(0.6)


def test_large_images_are_measured_like_their_small_copies(tmp_path):
    photo((2048, 1536)).save(tmp_path / "large.jpg", quality=95)
    photo((2048, 1536)).resize((320, 240)).save(tmp_path / "small.png")
    large, small = (inspect_file(tmp_path / name) for name in ("large.jpg", "small.png"))
    assert (large["width"], large["height"]) == (2048, 1536)
    for name in ("brightness", "contrast", "sharpness"):
        assert large[name] == pytest.approx(small[name], abs=0.04)


def truncated(path):
    write_image(path, size=(200, 200))
    path.write_bytes(path.read_bytes()[:-300])


def socket_file(path):
    os.chdir(path.parent)  # a socket's path may have a hundred characters only
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(path.name)


HOSTILE = {
    "empty.jpg": (lambda path: path.write_bytes(b""), "empty file", "empty"),
    "page.jpg": (lambda path: path.write_text("<html>"), "not an image", "not an image"),
    "random.png": (lambda path: path.write_bytes(os.urandom(999)), "not an image", "not an image"),
    "half.jpg": (truncated, "truncated", "truncated"),
    "half.png": (truncated, "truncated", "truncated"),
    "folder.jpg": (lambda path: path.mkdir(), "unreadable", "folder"),
    "pipe.jpg": (os.mkfifo, "unreadable", "pipe"),
    "socket.jpg": (socket_file, "unreadable", "device"),
    "dangling.jpg": (lambda path: path.symlink_to("nowhere"), "unreadable", "no such file"),
    "line\nbreak and ü.jpg": (lambda path: path.write_bytes(b""), "empty file", "empty"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_an_unreadable_file_has_its_kind_of_problem_and_a_reason(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    make, problem, reason = HOSTILE[name]
    make(tmp_path / name)
    facts = inspect_file(tmp_path / name)
    assert facts["problem"] == problem
    assert reason in facts["reason"]


def test_a_bomb_is_refused_by_its_header(tmp_path):
    write_image(tmp_path / "bomb.png")
    content = bytearray((tmp_path / "bomb.png").read_bytes())
    content[16:24] = (50_000).to_bytes(4, "big") * 2
    content[29:33] = __import__("zlib").crc32(content[12:29]).to_bytes(4, "big")
    (tmp_path / "bomb.png").write_bytes(content)
    assert inspect_file(tmp_path / "bomb.png")["problem"] == "decompression bomb"


def rewrite(path, content):
    """Other content, with the size and the time of before."""
    status = path.stat()
    assert len(content) == status.st_size
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_facts_are_kept_in_place_of_reading_a_file_again(tmp_path):
    path = write_image(tmp_path / "ü b.png", colour=(10, 10, 10))
    first = inspect_files([path], cache_dir=tmp_path / "cache")
    with sqlite3.connect(tmp_path / "cache" / "facts.sqlite3") as database:
        database.execute("UPDATE facts_4 SET facts = replace(facts, '\"PNG\"', '\"kept\"')")
    kept = inspect_files([path], cache_dir=tmp_path / "cache")
    assert kept == [first[0] | {"format": "kept"}]


def test_a_changed_file_is_read_again_whatever_its_time_says(tmp_path):
    path = write_image(tmp_path / "a.png")
    inspect_files([path], cache_dir=tmp_path / "cache")
    rewrite(path, b"x" * path.stat().st_size)
    assert inspect_files([path], cache_dir=tmp_path / "cache")[0]["problem"] == "not an image"


def test_two_files_that_exchange_their_names_exchange_their_facts(tmp_path):
    paths = [tmp_path / "a.bmp", tmp_path / "b.bmp"]  # of the same size
    for path, colour in zip(paths, [(200, 10, 10), (10, 10, 20)], strict=True):
        os.utime(write_image(path, colour=colour), (10**9, 10**9))
    before = [one["content"] for one in inspect_files(paths, cache_dir=tmp_path / "cache")]
    for old, new in [("a.bmp", "c.bmp"), ("b.bmp", "a.bmp"), ("c.bmp", "b.bmp")]:
        os.rename(tmp_path / old, tmp_path / new)
    after = [one["content"] for one in inspect_files(paths, cache_dir=tmp_path / "cache")]
    assert after == before[::-1]


@pytest.mark.parametrize("year", [1930, 2262, 2300])
def test_a_file_of_any_time_is_inspected_and_remembered(tmp_path, year):
    path = write_image(tmp_path / "a.png")
    seconds = (year - 1970) * 31_556_952
    os.utime(path, (seconds, seconds))
    for _ in range(2):
        assert inspect_files([path], cache_dir=tmp_path / "cache")[0]["format"] == "PNG"


def test_what_was_read_by_other_rules_is_not_reused(tmp_path, monkeypatch):
    path = tmp_path / "half.png"
    truncated(path)
    with monkeypatch.context() as patch:
        patch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
        assert "problem" not in inspect_files([path], cache_dir=tmp_path / "cache")[0]
    assert inspect_files([path], cache_dir=tmp_path / "cache")[0]["problem"] == "truncated"


def test_a_failure_is_not_remembered(tmp_path):
    path = write_image(tmp_path / "a.png")
    content, status = path.read_bytes(), path.stat()
    for now, readable in ((b"x" * len(content), False), (content, True)):
        path.write_bytes(now)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        facts = inspect_files([path], cache_dir=tmp_path / "cache")
        assert ("problem" not in facts[0]) == readable


@pytest.mark.parametrize("broken", [b"no database" * 100, None])
def test_an_unusable_cache_warns_and_the_files_are_read(tmp_path, broken):
    path = write_image(tmp_path / "a.png")
    cache = tmp_path / "cache"
    if broken:
        cache.mkdir()
        (cache / "facts.sqlite3").write_bytes(broken)
    else:
        cache.write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match=r"facts.sqlite3 cannot be used"):
        facts = inspect_files([path], cache_dir=cache)
    assert facts[0]["format"] == "PNG"


def test_several_processes_share_a_cache(tmp_path):
    paths = [write_image(tmp_path / f"{i}.png") for i in range(20)]
    code = (
        "import sys; from pathlib import Path;"
        "from resnet_ft.audit.inspect import inspect_files;"
        "inspect_files([Path(p) for p in sys.argv[2:]], cache_dir=sys.argv[1])"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path / "cache"), *map(str, paths)]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(2)]
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()
    with sqlite3.connect(tmp_path / "cache" / "facts.sqlite3") as database:
        assert database.execute("SELECT count(*) FROM facts_4").fetchone() == (20,)


def test_colour_profiles_pages_and_a_missing_end_marker_are_noted(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (64, 48, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image.save(tmp_path / "other.jpg", icc_profile=lab)
    image.save(tmp_path / "srgb.jpg", icc_profile=srgb)
    image.save(tmp_path / "pages.tif", save_all=True, append_images=[image, image])
    whole = (tmp_path / "srgb.jpg").read_bytes()
    (tmp_path / "unended.jpg").write_bytes(whole[:-2])
    facts = {path.stem: inspect_file(path) for path in tmp_path.iterdir()}
    assert not any("problem" in one for one in facts.values())
    assert {name for name, one in facts.items() if one["profile"]} == {"other"}
    assert {name: one["pages"] for name, one in facts.items() if one["pages"] > 1} == {"pages": 3}
    assert {name for name, one in facts.items() if one["unended"]} == {"unended"}
