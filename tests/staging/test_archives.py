import bz2
import gzip
import io
import lzma
import random
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest
from conftest import write_image

from resnet_ft import DatasetError, index_dataset, open_image, stage_dataset

KINDS = ["zip", "tar", "tar.gz", "tar.xz", "tar.bz2"]
CODES = {"link": tarfile.SYMTYPE, "hard link": tarfile.LNKTYPE, "pipe": tarfile.FIFOTYPE}
MODES = {"link": stat.S_IFLNK, "pipe": stat.S_IFIFO, "device": stat.S_IFBLK}


def make_archive(path: Path, *entries: tuple[str, object], kind: str = "file") -> Path:
    """An archive of (name, content) entries; the last is of `kind`, a link's content its target."""
    path.parent.mkdir(exist_ok=True)
    kinds = ["file"] * (len(entries) - 1) + [kind]
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for (name, content), what in zip(entries, kinds, strict=True):
                info = zipfile.ZipInfo(name)
                info.compress_type = zipfile.ZIP_DEFLATED
                info.external_attr = (MODES.get(what, stat.S_IFREG) | 0o644) << 16
                file.writestr(info, content)
        return path
    compression = path.suffix.removeprefix(".").replace("tar", "")
    with tarfile.open(path, f"w:{compression}") as file:
        for (name, content), what in zip(entries, kinds, strict=True):
            info = tarfile.TarInfo(name)
            if what == "file":
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
            else:
                info.type, info.linkname = CODES.get(what, tarfile.BLKTYPE), content or ""
                file.addfile(info)
    return path


def pack(photos: Path, path: Path) -> Path:
    files = sorted(file for file in photos.rglob("*.png"))
    return make_archive(path, *((str(f.relative_to(photos)), f.read_bytes()) for f in files))


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def assert_refused(archive: Path, match: str) -> None:
    """It ends in an error that names the archive and says `match`, and nothing is left anywhere."""
    outside = archive.parent.parent
    before = tree(outside)
    with pytest.raises(DatasetError, match=match) as raised:
        stage_dataset(archive, outside / "local" / "deep")
    assert archive.name in str(raised.value)
    assert tree(outside) == before
    assert list((outside / "local" / "deep").iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_is_recognised_by_its_content(photos, tmp_path, kind):
    archive = pack(photos, tmp_path / f"a.{kind}")
    staged = stage_dataset(archive.rename(tmp_path / "photos.download"), tmp_path / "local")
    assert tree(staged) == tree(photos)


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
@pytest.mark.parametrize(
    "name", ["../x.png", "/../x.png", "a/../../x.png", "..\\x.png", "C:\\x.png", "/C:x.png"]
)
def test_an_entry_that_would_leave_the_folder_is_refused_by_name(tmp_path, kind, name):
    archive = make_archive(tmp_path / "in" / f"evil.{kind}", ("a.png", b"a"), (name, b"x"))
    assert_refused(archive, "outside of the data folder")


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_the_slash_before_a_name_is_left_out_with_a_word(photos, tmp_path, kind):
    files = sorted(photos.rglob("*.png"))
    named = [(f"/{file.relative_to(photos)}", file.read_bytes()) for file in files]
    named[0] = ("//" + named[0][0], named[0][1])
    archive = make_archive(tmp_path / f"absolute.{kind}", *named)
    with pytest.warns(UserWarning, match=rf"{len(files)} entries begin with a slash") as warned:
        staged = stage_dataset(archive, tmp_path / "local")
    assert tree(staged) == tree(photos)
    assert len(warned) == 1


def test_a_hard_link_to_a_name_with_a_slash_is_followed(tmp_path):
    archive = tmp_path / "absolute.tar"
    make_archive(archive, ("/red/a.png", b"a"), ("/red/b.png", "/red/a.png"), kind="hard link")
    with pytest.warns(UserWarning, match="2 entries begin with a slash"):
        staged = stage_dataset(archive, tmp_path / "local")
    assert tree(staged) == {"red/a.png": b"a", "red/b.png": b"a"}


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize("name", ["red/" + 100 * "猫" + ".png", 300 * "x" + "/a.png"])
def test_a_name_that_is_too_long_for_the_disk_is_skipped_by_name(photos, tmp_path, kind, name):
    files = [(str(f.relative_to(photos)), f.read_bytes()) for f in sorted(photos.rglob("*.png"))]
    archive = make_archive(tmp_path / f"long.{kind}", files[0], (name, b"x"), *files[1:])
    with pytest.warns(UserWarning, match=f"1 entries have names .* such as '{name[:20]}"):
        staged = stage_dataset(archive, tmp_path / "local")
    assert tree(staged) == tree(photos)


def test_links_from_and_to_names_that_are_too_long_are_skipped(tmp_path):
    archive, long = tmp_path / "long.tar", 300 * "x"
    with tarfile.open(make_archive(archive, ("red/a.png", b"a"), (long, b"x")), "a") as file:
        for name, target in ((f"red/{long}", "a.png"), ("red/b.png", f"../{long}")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            file.addfile(info)
    with pytest.warns(UserWarning, match="3 entries have names that are too long"):
        staged = stage_dataset(archive, tmp_path / "local")
    assert tree(staged) == {"red/a.png": b"a"}


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("target", ["/etc/passwd", "../../../x", "C:\\x", "a/../../../x"])
def test_a_link_out_of_the_folder_is_refused_by_name(tmp_path, kind, target):
    archive = make_archive(tmp_path / "in" / f"evil.{kind}", ("red/l.png", target), kind="link")
    assert_refused(archive, "'red/l.png' is a link out of the data folder")


def test_a_hard_link_out_of_the_folder_is_refused_by_name(tmp_path):
    archive = tmp_path / "in" / "evil.tar"
    make_archive(archive, ("red/l.png", "../etc/passwd"), kind="hard link")
    assert_refused(archive, "'red/l.png' is a link out of the data folder")


def test_nothing_is_written_through_a_link(tmp_path):
    archive = tmp_path / "in" / "evil.tar"
    with tarfile.open(make_archive(archive, ("a", "../.."), kind="link"), "a") as file:
        file.addfile(tarfile.TarInfo("a/x.png"), io.BytesIO())
    assert_refused(archive, "'a' is a link out of the data folder")


@pytest.mark.parametrize("archive_kind", ["zip", "tar"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_device_or_pipe_is_refused_by_name(tmp_path, archive_kind, kind):
    archive = make_archive(tmp_path / "in" / f"evil.{archive_kind}", ("x.png", ""), kind=kind)
    assert_refused(archive, "'x.png' is a device or a pipe")


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_names_that_differ_in_case_only_are_refused(tmp_path, kind):
    archive = tmp_path / "in" / f"evil.{kind}"
    make_archive(archive, ("red/a.png", b"1"), ("red/A.PNG", b"2"))
    assert_refused(archive, "'red/A.PNG' differs from 'red/a.png' in case only")


def test_a_name_that_is_a_file_and_a_folder_is_refused(tmp_path):
    for first, second in (("a", "a/b.png"), ("a/b.png", "a")):
        archive = make_archive(tmp_path / "in" / "evil.tar", (first, b"1"), (second, b"2"))
        assert_refused(archive, f"'{second}' is a file and a folder at once")
        shutil.rmtree(tmp_path / "local")


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar.xz", "tar.bz2"])
def test_an_absurd_compression_ratio_is_refused(photos, tmp_path, kind):
    photo = (photos / "Train" / "red" / "0.png").read_bytes()
    entries = [("0.png", photo), ("bomb.png", bytes(64 << 20))]
    archive = make_archive(tmp_path / "in" / f"evil.{kind}", *entries)
    shutil.rmtree(photos)
    assert_refused(archive, r"'bomb.png' grows to more than 200 times its size")


def test_a_tar_that_says_it_is_larger_than_the_disk_is_refused(tmp_path):
    archive = tmp_path / "in" / "evil.tar"
    archive.parent.mkdir()
    info = tarfile.TarInfo("red/huge.png")
    info.size = 10**15
    archive.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(10240))
    assert_refused(archive, r"'red/huge.png' needs 1,000,000.0 GB, and .* are free at .*Make room")


def test_a_sparse_entry_does_not_fill_the_disk(tmp_path):
    archive = tmp_path / "in" / "evil.tar"
    archive.parent.mkdir()
    info = tarfile.TarInfo("sparse.png")
    info.pax_headers = {
        "GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": "0,512",
        "GNU.sparse.size": str(1 << 30), "GNU.sparse.name": "sparse.png",
    }  # fmt: skip
    info.size = 512
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as file:
        file.addfile(info, io.BytesIO(bytes(512)))
    assert_refused(archive, "'sparse.png' grows to more than 200 times its size")


def test_a_name_of_a_gigabyte_is_not_read_into_memory(tmp_path):
    archive = tmp_path / "in" / "evil.tar"
    archive.parent.mkdir()
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 30
    archive.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(10240))
    assert_refused(archive, "an entry's name takes 1,073,741,824 bytes")


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.xz"])
def test_a_link_becomes_a_copy_of_what_it_leads_to(photos, tmp_path, kind):
    files = [(f"red/{i}.png", (photos / "Train" / "red" / f"{i}.png").read_bytes()) for i in (0, 1)]
    archive = tmp_path / f"a.{kind}"
    make_archive(archive, *files, ("more/l.png", "../red/1.png"), kind="link")
    staged = stage_dataset(archive, tmp_path / "local")
    assert not (staged / "more" / "l.png").is_symlink()
    assert (staged / "more" / "l.png").read_bytes() == files[1][1]


def test_links_are_followed_through_links_and_folders(photos, tmp_path):
    archive = make_archive(tmp_path / "a.tar", ("Train/red/0.png", b"first"))
    links = {
        "l/file.png": "../folder/0.png",  # before the folder that it goes through
        "folder": "Train/red",
        "hard.png": "l/file.png",
    }
    with tarfile.open(archive, "a") as file:
        for name, target in links.items():
            info = tarfile.TarInfo(name)
            info.type = tarfile.LNKTYPE if name == "hard.png" else tarfile.SYMTYPE
            info.linkname = target
            file.addfile(info)
    staged = stage_dataset(archive, tmp_path / "local")
    names = ["Train/red/0.png", "folder/0.png", "hard.png", "l/file.png"]
    assert tree(staged) == dict.fromkeys(names, b"first")
    assert not any(path.is_symlink() for path in staged.rglob("*"))


@pytest.mark.parametrize(
    "links", [{"a": "nowhere"}, {"a": "a"}, {"a": "b", "b": "a"}, {"red/up": ".."}]
)
def test_links_to_nothing_and_in_circles_are_refused(tmp_path, links):
    archive = make_archive(tmp_path / "in" / "evil.tar", ("red/0.png", b"0"))
    with tarfile.open(archive, "a") as file:
        for name, target in links.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            file.addfile(info)
    assert_refused(archive, "is a link that leads to nothing, or in a circle")


def test_an_empty_class_folder_is_unpacked_so_that_it_can_be_refused(photos, tmp_path):
    (photos / "Train" / "empty").mkdir()
    for kind in ("zip", "tar"):
        archive = shutil.make_archive(str(tmp_path / "a"), kind, photos)
        with pytest.raises(DatasetError, match="empty holds no images"):
            index_dataset(stage_dataset(archive, tmp_path / "local"))


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_that_is_cut_anywhere_is_refused(photos, tmp_path, kind):
    intact = pack(photos, tmp_path / "in" / f"a.{kind}").read_bytes()
    cuts = [0, 1, 100, len(intact) // 4, len(intact) // 2, len(intact) - 5000]
    if kind == "tar":
        cuts += [512 * 20, *(tar_entry_ends(tmp_path / "in" / "a.tar"))]
    else:
        cuts += [len(intact) - 1, len(intact) - 9]  # in the middle of what closes the archive
    shutil.rmtree(photos)
    for cut in cuts:
        (tmp_path / "in" / f"a.{kind}").write_bytes(intact[:cut])
        assert_refused(tmp_path / "in" / f"a.{kind}", r"could not be unpacked.*Upload it again")


def tar_entry_ends(archive: Path) -> list[int]:
    """Where a cut leaves only complete entries, which tarfile takes for a complete archive."""
    with tarfile.open(archive) as file:
        return [info.offset for info in file.getmembers()[1::7]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_archive_is_refused_or_gives_files_but_never_crashes(tmp_path, kind):
    write_image(tmp_path / "photos" / "red" / "0.png", size=(12, 10))
    write_image(tmp_path / "photos" / "red" / "1.png", size=(12, 10))
    intact = pack(tmp_path / "photos", tmp_path / "in" / f"a.{kind}").read_bytes()
    rng = random.Random(0)
    refused = 0
    for _ in range(60):
        damaged = bytearray(intact)
        for _ in range(rng.choice([1, 4])):
            damaged[rng.randrange(min(len(intact), 3000))] ^= 1 << rng.randrange(8)
        (tmp_path / "in" / f"a.{kind}").write_bytes(damaged)
        try:
            stage_dataset(tmp_path / "in" / f"a.{kind}", tmp_path / "local")
        except DatasetError:
            refused += 1
    assert refused > 10


def test_an_encrypted_zip_is_refused_with_the_remedy(photos, tmp_path):
    archive = pack(photos, tmp_path / "in" / "secret.zip")
    content = bytearray(archive.read_bytes())
    content[6] |= 1  # "general purpose bit flag" of the first entry, and in the directory
    content[content.index(b"PK\1\2") + 8] |= 1
    archive.write_bytes(content)
    shutil.rmtree(photos)
    assert_refused(archive, "is encrypted, password required.*without a password")


def test_an_encrypted_tar_is_refused(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "secret.tar.gz").write_bytes(b"Salted__" + random.Random(0).randbytes(5000))
    assert_refused(tmp_path / "in" / "secret.tar.gz", "its content is not that of an archive")


def test_what_is_compressed_but_no_tar_is_refused(tmp_path):
    (tmp_path / "in").mkdir()
    compressions = {".tgz": gzip.compress, ".txz": lzma.compress, ".tbz2": bz2.compress}
    for suffix, compress in compressions.items():
        (tmp_path / "in" / f"a{suffix}").write_bytes(compress(b"no tar" * 1000))
        assert_refused(tmp_path / "in" / f"a{suffix}", "could not be unpacked")


def test_an_archive_is_shrunk_before_it_takes_its_name(photos, tmp_path):
    archive = pack(photos, tmp_path / "a.zip")
    small = stage_dataset(archive, tmp_path / "local", max_side=24)
    full = stage_dataset(archive, tmp_path / "local")
    assert small != full
    assert tree(full) == tree(photos)
    assert {open_image(path).size for path in small.rglob("*.png")} == {(24, 20)}
    assert len(list(small.rglob("*.png"))) == 23


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_entry_that_occurs_twice_is_counted(tmp_path, kind):
    """The later one counts, as when an archive is updated; it may also be another picture."""
    files = [("c/a.png", b"first"), ("/c/a.png", b"second"), ("c/b.png", b"b")]
    archive = make_archive(tmp_path / f"twice.{kind}", *files)
    with pytest.warns(UserWarning, match=r"1 entries have a name .* such as '/?c/a\.png'"):
        staged = stage_dataset(archive, tmp_path / "local")
    assert tree(staged) == {"c/a.png": b"second", "c/b.png": b"b"}
