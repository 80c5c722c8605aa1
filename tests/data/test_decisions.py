from pathlib import Path

import pandas as pd
import pytest

from resnet_ft import DatasetError, apply_decisions, index_dataset, make_dataloaders
from resnet_ft.data.decisions import DecisionLog, decisions_file, read_decisions, write_decisions
from resnet_ft.files import fingerprint


def decide(*rows: tuple[str, str, str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["path", "decision", "value"])


def where(index) -> dict[str, tuple[str, str]]:
    return {row.path: (row.split, row.class_name) for row in index.table.itertuples()}


def test_images_are_excluded_relabelled_moved_and_kept(photos):
    before = where(index_dataset(photos))
    index = apply_decisions(
        index_dataset(photos),
        decide(
            ("Train/red/0.png", "exclude", ""),
            ("Train/red/1.png", "relabel", "blue"),
            ("Train/red/2.png", "move", "val"),
            ("Train/red/3.png", "keep", ""),
        ),
    )
    expected = {**before, "Train/red/1.png": ("train", "blue"), "Train/red/2.png": ("val", "red")}
    del expected["Train/red/0.png"]
    assert where(index) == expected
    assert sorted(path.name for path in (photos / "Train/red").iterdir()) == [
        f"{i}.png" for i in range(8)
    ]


def test_loaders_follow_the_decisions_of_a_file(photos, tmp_path):
    file = write_decisions(
        decide(("Train/red/0.png", "exclude", ""), ("Val/blue/1.png", "relabel", "red")),
        tmp_path / "decisions.csv",
    )
    loaders = make_dataloaders(photos, image_size=16, num_workers=0, decisions=file)
    assert len(loaders["train"].dataset) == 16
    assert loaders["val"].dataset.targets == [0, 1, 0, 1, 1, 1]


def test_decisions_change_the_fingerprint_of_the_data(photos):
    plain = make_dataloaders(photos, image_size=16, num_workers=0)
    decided = make_dataloaders(
        photos, image_size=16, num_workers=0, decisions=decide(("Train/red/1.png", "exclude", ""))
    )
    assert plain["train"].dataset.fingerprint != decided["train"].dataset.fingerprint


def test_decisions_with_newlines_and_commas_are_read_as_written(tmp_path):
    table = decide(('Train/a, b\n"c".png', "relabel", "x,y"))
    read = read_decisions(write_decisions(table, tmp_path / "decisions.csv"))
    assert read.iloc[0].tolist() == ['Train/a, b\n"c".png', "relabel", "x,y", ""]


def test_the_last_decision_about_an_image_counts(tmp_path):
    table = decide(("a.png", "exclude", ""), ("a.png", "keep", ""))
    read = read_decisions(write_decisions(table, tmp_path / "decisions.csv"))
    assert read["decision"].tolist() == ["keep"]


def test_a_decision_about_a_missing_file_is_ignored_with_a_warning(photos):
    with pytest.warns(UserWarning, match=r"1 of 1 are about images that are not in .*gone\.png"):
        index = apply_decisions(index_dataset(photos), decide(("gone.png", "exclude", "")))
    assert len(index.table) == 23


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("Train/red/0.png", "relabel", "green")], r"'green'.*blue, red"),
        ([("Train/red/0.png", "move", "test")], r"'test'.*train, val"),
        ([(f"Val/red/{i}.png", "exclude", "") for i in range(3)], "class red is left in val"),
        ([(f"Train/red/{i}.png", "relabel", "blue") for i in range(8)], "class red .* in train"),
    ],
)
def test_impossible_decisions_are_refused(photos, rows, message):
    with pytest.raises(DatasetError, match=message):
        apply_decisions(index_dataset(photos), decide(*rows))


def test_a_table_is_checked_like_a_file(photos):
    index = index_dataset(photos)
    with pytest.raises(DatasetError, match="'exclud' is not a decision"):
        apply_decisions(index, decide(("Train/red/0.png", "exclud", "")))
    table = decide(("Train/red/0.png", "keep", ""), ("Train/red/0.png", "exclude", ""))
    assert len(apply_decisions(index, table[["path", "decision"]]).table) == 22


def test_each_data_set_has_its_own_decisions_file(tmp_path):
    folder = decisions_file(tmp_path, "a/photos")
    for same in ("a/photos.tar", "a/photos/"):
        assert decisions_file(tmp_path, same) == folder
    assert folder.name.startswith("decisions-photos-")
    url = decisions_file(tmp_path, "https://host/photos.zip?token=secret" + "x" * 300)
    others = [decisions_file(tmp_path, source) for source in ("b/photos", "photos", "sample", ".")]
    assert len({folder, url, *others}) == 6
    assert "secret" not in url.name and len(url.name) < 100


def test_a_data_set_has_one_decisions_file_however_it_is_spelled(tmp_path):
    spellings = [
        "photos",
        "./photos",
        "photos/",
        "x/../photos",
        str(tmp_path / "photos"),
        "photos.zip",
    ]
    files = {decisions_file("runs", name, relative_to=tmp_path) for name in spellings}
    assert len(files) == 1
    assert decisions_file("runs", "photos", relative_to=tmp_path / "other") in files
    assert decisions_file("runs", str(tmp_path), relative_to=tmp_path / "other") not in files


def test_only_an_address_has_a_query(tmp_path):
    assert decisions_file("runs", "photos #1") != decisions_file("runs", "photos #2")
    assert decisions_file("runs", "photos?a") != decisions_file("runs", "photos?b")
    url = "https://host/photos.zip"
    assert decisions_file("runs", f"{url}?token=1#x") == decisions_file("runs", url)


def test_decisions_for_an_earlier_spelling_are_found_or_named(tmp_path):
    def earlier(source: str) -> Path:  # as earlier versions called it
        name = f"decisions-photos-{fingerprint([source])[:8]}.csv"
        return write_decisions(decide(("a.png", "keep", "")), tmp_path / name)

    old = earlier("./photos")
    for spelling in ("photos", "./photos", str(tmp_path / "photos")):
        assert decisions_file(tmp_path, spelling, relative_to=tmp_path) == old
    new = earlier("photos")
    with pytest.warns(UserWarning, match=rf"may also be in {old}.*Copy the rows .* to {new}"):
        assert decisions_file(tmp_path, "./photos", relative_to=tmp_path) == new
    shared = earlier("photos ")
    with pytest.warns(UserWarning, match=f"may also be in {shared}"):
        assert decisions_file(tmp_path, "photos #1", relative_to=tmp_path) != shared


def test_names_that_are_not_utf_8_are_kept(tmp_path):
    file = write_decisions(decide(("Train/caf\udce9.jpg", "keep", "")), tmp_path / "d.csv")
    assert read_decisions(file)["path"].tolist() == ["Train/caf\udce9.jpg"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,decision\na.png,keep\nb.png,drop\n", r"line 3: 'drop'.*exclude"),
        ("path,decision,value,reason\na,b.jpg,exclude,,x\n", "line 2: 'b.jpg' is not a decision"),
        ("file,verdict\na.png,keep\n", "need path and decision"),
        ("", "cannot be read"),
    ],
)
def test_a_file_without_decisions_is_refused(tmp_path, text, message):
    file = tmp_path / "decisions.csv"
    file.write_text(text)
    with pytest.raises(DatasetError, match=message):
        read_decisions(file)
    with pytest.raises(DatasetError, match=r"missing\.csv"):
        read_decisions(tmp_path / "missing.csv")


def test_the_log_writes_every_decision_to_disk_immediately(tmp_path):
    log = DecisionLog(tmp_path / "d.csv")
    assert not log.file.exists()
    log.decide("a.png", "exclude", reason="blurred")
    log.decide("b.png", "relabel", "red")
    rows = read_decisions(log.file).to_numpy().tolist()
    assert rows == [["a.png", "exclude", "", "blurred"], ["b.png", "relabel", "red", ""]]
    assert DecisionLog(log.file)["b.png"] == {"relabel": "red"}


def test_the_log_takes_decisions_back_one_by_one(tmp_path):
    log = DecisionLog(tmp_path / "d.csv")
    log.decide("a.png", "exclude")
    log.decide("a.png", "keep")
    log.decide("b.png", "keep")
    assert (log.undo(), log["b.png"], log["a.png"]) == (["b.png"], {}, {"keep": ""})
    assert (log.undo(), log["a.png"]) == (["a.png"], {"exclude": ""})
    assert (log.undo(), log["a.png"]) == (["a.png"], {})
    assert log.undo() == []
    assert read_decisions(log.file).empty


def test_a_class_and_a_split_are_two_decisions_about_an_image(photos, tmp_path):
    log = DecisionLog(tmp_path / "d.csv")
    log.decide("Train/red/1.png", "relabel", "blue")
    log.decide("Train/red/1.png", "move", "val")
    assert log["Train/red/1.png"] == {"relabel": "blue", "move": "val"}
    loaders = make_dataloaders(photos, image_size=16, num_workers=0, decisions=log.file)
    (label,) = [label for path, label in loaders["val"].dataset.samples if "Train/red" in path]
    assert loaders["val"].dataset.classes[label] == "blue"
    log.decide("Train/red/1.png", "relabel", "red")
    assert log["Train/red/1.png"] == {"move": "val", "relabel": "red"}
    log.undo()
    assert log["Train/red/1.png"] == {"relabel": "blue", "move": "val"}
    log.undo()
    assert log["Train/red/1.png"] == {"relabel": "blue"}
    log.undo()
    assert log["Train/red/1.png"] == {}


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ("relabel move", "relabel move"),
        ("relabel exclude move", "move"),
        ("relabel move exclude", "exclude"),
        ("move keep", "keep"),
        ("exclude keep relabel", "relabel"),
        ("relabel move relabel", "move relabel"),
    ],
)
def test_keep_and_exclude_replace_class_and_split_and_are_replaced_by_them(
    kinds, expected, tmp_path
):
    rows = decide(*(("a.png", kind, str(i)) for i, kind in enumerate(kinds.split())))
    both = pd.concat([decide(("b.png", "keep", "")), rows, decide(("c.png", "exclude", ""))])
    read = read_decisions(write_decisions(both, tmp_path / "d.csv"))
    assert " ".join(read.loc[read["path"] == "a.png", "decision"]) == expected
    assert len(read) == 2 + len(expected.split())
    log = DecisionLog(tmp_path / "log.csv")
    for i, kind in enumerate(kinds.split()):
        log.decide("a.png", kind, str(i))
    assert log["a.png"] == dict(read.loc[read["path"] == "a.png", ["decision", "value"]].values)


def test_several_images_are_decided_and_undone_at_once(tmp_path):
    log = DecisionLog(tmp_path / "d.csv")
    log.decide("a.png", "relabel", "red")
    log.decide(["a.png", "b.png"], "exclude", reason="blurred")
    assert log["a.png"] == log["b.png"] == {"exclude": ""}
    assert log.undo() == ["a.png", "b.png"]
    assert (log["a.png"], log["b.png"]) == ({"relabel": "red"}, {})


def test_the_log_keeps_earlier_decisions(tmp_path):
    DecisionLog(tmp_path / "d.csv").decide("a.png", "exclude")
    log = DecisionLog(tmp_path / "d.csv")
    log.decide("b.png", "keep")
    assert log["a.png"] == {"exclude": ""}
    log.decide("a.png", "")
    assert read_decisions(log.file)["path"].tolist() == ["b.png"]


def test_two_logs_of_one_file_keep_the_decisions_of_each_other(tmp_path):
    one, other = DecisionLog(tmp_path / "d.csv"), DecisionLog(tmp_path / "d.csv")
    one.decide("a.png", "keep")
    other.decide("b.png", "exclude")
    one.decide("c.png", "keep")
    assert one.decided() == {"a.png", "b.png", "c.png"}


def test_what_a_person_typed_is_no_formula_and_is_read_back(tmp_path):
    table = decide(("-a/@b.png", "relabel", "=cmd|x"), ("'c.png", "keep", "+1"))
    file = write_decisions(table, tmp_path / "d.csv")
    cells = {cell for line in file.read_text("utf-8-sig").splitlines() for cell in line.split(",")}
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))]
    assert read_decisions(file)[["path", "decision", "value"]].equals(table)
    assert file.read_bytes().startswith(b"\xef\xbb\xbf")  # by which Excel recognises UTF-8


@pytest.mark.parametrize("content", [b"\0\1\2\3" * 99, b'path,decision\n"a', b"\xff\xfe", b"\n\n"])
def test_a_damaged_file_of_decisions_is_named(tmp_path, content):
    (tmp_path / "d.csv").write_bytes(content)
    with pytest.raises(DatasetError, match=r"d\.csv"):
        read_decisions(tmp_path / "d.csv")
