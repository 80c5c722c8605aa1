"""What other programs, other people and broken disks leave in a file."""

import io
import json
import subprocess
import sys
import zipfile
from argparse import Namespace
from pathlib import Path, PureWindowsPath

import numpy as np
import pandas as pd
import pytest
import torch

from resnet_ft import RunError
from resnet_ft.reading import (
    checked_identifier,
    read_json,
    read_saved,
    read_table,
    reading,
    write_table,
)

TEXTS = [
    "=1+1",
    "+1",
    "-cat",
    "@SUM(A1)",
    "'=already",
    "''@",
    "'quoted'",
    "ünïcödé 写真",
    "",
    "NA",
    "7",
]


def saved(content, **options) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file


def test_text_that_begins_like_a_formula_is_none_and_is_read_back_as_it_was(tmp_path):
    table = pd.DataFrame({"name": TEXTS, "number": np.linspace(-1, 1, len(TEXTS))})
    write_table(table, tmp_path / "a.csv")
    cells = [line.split(",")[0] for line in (tmp_path / "a.csv").read_text("utf-8-sig").split("\n")]
    assert not any(cell.startswith(("=", "+", "-", "@")) for cell in cells)
    again = read_table(tmp_path / "a.csv", ["name"], is_number="number".__eq__)
    assert again["name"].tolist() == TEXTS
    assert np.allclose(again["number"], table["number"])


def test_a_spreadsheet_recognises_the_utf_8_of_a_table(tmp_path):
    write_table(pd.DataFrame({"name": ["é", "caf\udce9"]}), tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_bytes().startswith(b"\xef\xbb\xbf")
    assert (
        pd.read_csv(tmp_path / "a.csv", encoding_errors="surrogateescape")["name"][1] == "caf\udce9"
    )


@pytest.mark.parametrize(
    "content",
    ["[1]", "null", "7", "", "{", "\0", '{"a":' * 100_000 + "1" + "}" * 100_000, " " * 17_000_000],
    ids=lambda text: text[:8],
)
def test_what_is_no_json_object_is_named_with_reason_and_remedy(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    named = pytest.raises(RunError, match=r"a\.json cannot be read \(.+\)\. Do this\.")
    with named, reading(tmp_path / "a.json", RunError, "Do this."):
        read_json(tmp_path / "a.json")


def test_what_an_editor_puts_before_json_is_no_damage(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"a": "é"}), encoding="utf-8-sig")
    assert read_json(tmp_path / "a.json") == {"a": "é"}


@pytest.mark.parametrize("text", ["../../x", "/x", "..", "", "a/b", "a\\b", "a" * 65, "a.b", "a\n"])
def test_an_identifier_cannot_lead_out_of_a_folder(text):
    with pytest.raises(ValueError, match="no identifier"):
        checked_identifier(text)
    assert checked_identifier("bd5c795a644ab6a5") == "bd5c795a644ab6a5"


def test_plain_data_beside_tensors_is_read_and_nothing_else():
    beside = {
        "args": Namespace(lr=np.float64(0.1), epochs=np.int64(7), name=np.str_("a")),
        "paths": [Path("runs/x"), PureWindowsPath("runs")],
        "dtype": np.dtype("float32"),
        "best": np.float32(0.5),
    }
    before = torch.serialization.get_safe_globals()
    content = read_saved(saved({"model": {"a": torch.ones(2)}, **beside}))
    assert content["args"].lr == 0.1 and content["args"].epochs == 7 and content["best"] == 0.5
    assert [str(path) for path in content["paths"]] == ["runs/x", "runs"]
    assert torch.equal(content["model"]["a"], torch.ones(2))
    assert {*torch.serialization.get_safe_globals()} == {*before}  # they are allowed here alone
    for code in (subprocess.Popen, eval, np.load):
        with pytest.raises(ValueError, match="more than plain data"):
            read_saved(saved({"a": code}))


def test_what_somebody_allowed_before_stays_allowed():
    with torch.serialization.safe_globals([Namespace]):
        read_saved(saved(Namespace(a=1)))
        assert Namespace in torch.serialization.get_safe_globals()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_model_saved_whole_says_how_to_get_its_weights_and_not_how_to_run_its_code(zipped):
    file = saved(torch.nn.Linear(1, 1), _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"torch\.save\(model\.state_dict\(\), path\)") as raised:
        read_saved(file)
    told = str(raised.value)
    assert "weights_only" not in told and "\033" not in told and "\n" not in told


def test_a_torchscript_archive_says_how_to_get_its_weights():
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), file)
    with pytest.raises(ValueError, match=r"TorchScript.*state_dict\(\)"):
        read_saved(file)


PEAK = """
import io, resource, sys, torch
from resnet_ft.reading import read_saved
torch.zeros(1)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 100_000_000,) * 2)
try:
    read_saved(open(sys.argv[1], "rb"))
except ValueError as error:
    print(error)
"""


def bomb(path: Path) -> None:
    """A record of 400 MB in 400 KB."""
    file = saved({"a": torch.zeros(100_000_000 // 4, dtype=torch.int8)})
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            with new.open(name, "w") as record:
                record.write(old.read(name) * (16 if "data/0" in name else 1))


def promise(path: Path) -> None:
    """One number that is a weight for 10^9 classes."""
    torch.save({"fc.weight": torch.zeros(1).expand(10**9)}, path)


def bytearrays(path: Path) -> None:
    """A few bytes whose reading would make many."""
    with zipfile.ZipFile(saved({"a": 1_000_000_000})) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            number = b"J\x00\xca\x9a;"
            made = b"cbuiltins\nbytearray\n" + number + b"\x85R"
            new.writestr(name, old.read(name).replace(number, made))


@pytest.mark.parametrize(
    "make, reason",
    [(bomb, "unpack to"), (promise, "promise 4,000,000,0"), (bytearrays, "a bytearray")],
)
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is counted on Linux")
def test_what_would_fill_the_memory_is_refused_before(tmp_path, make, reason):
    make(tmp_path / "a.pt")
    command = [sys.executable, "-c", PEAK, tmp_path / "a.pt"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert reason in run.stdout
