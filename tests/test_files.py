import pytest

from resnet_ft.files import atomic_write, fingerprint, is_on_drive, rewrite


def test_a_file_appears_whole_at_its_name(tmp_path):
    with atomic_write(tmp_path / "new" / "a.txt") as temporary:
        temporary.write_text("whole")
        assert not (tmp_path / "new" / "a.txt").exists()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.txt"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(target) as temporary:
        temporary.write_text("ha")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_on_drive_is_overwritten_since_what_is_replaced_fills_the_trash(tmp_path):
    for place, stays in (("MyDrive", True), ("local", False)):
        target = tmp_path / place / "a.txt"
        files = []
        for text in ("first", "second and longer", "3rd"):
            with rewrite(target) as temporary:
                temporary.write_text(text)
            assert target.read_text() == text
            files.append(target.stat().st_ino)
        assert (len(set(files)) == 1) == stays
        assert list(target.parent.iterdir()) == [target]


def test_my_drive_and_shared_drives_are_known():
    assert is_on_drive("/content/drive/MyDrive/photos")
    assert is_on_drive("/content/drive/Shareddrives/team/photos")
    assert not is_on_drive("/content/data/photos")


def test_a_fingerprint_tells_parts_from_their_concatenation():
    assert fingerprint(["ab", "c"]) == fingerprint(["ab", "c"])
    assert fingerprint(["ab", "c"]) != fingerprint(["a", "bc"])
