import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import write_image
from PIL import Image

from resnet_ft import apply_decisions, audit_dataset, index_dataset


@pytest.fixture
def audited(photos, tmp_path):
    """Writes the proposals for a data set and returns the paths that they exclude."""

    def excluded() -> list[str]:
        audit = audit_dataset(photos, image_size=32, cache_dir=tmp_path / "cache")
        file = audit.write_decisions(tmp_path / "decisions.csv")
        table = pd.read_csv(file)
        assert set(table["decision"]) <= {"exclude"}
        apply_decisions(index_dataset(photos), file)  # which accepts them
        return table["path"].tolist()

    return excluded


def test_only_the_last_split_keeps_a_picture_that_is_in_several(photos, audited):
    for i in range(2):
        write_image(photos / "Test/blue" / f"{i}.png")
        write_image(photos / "Test/red" / f"{i}.png")
    for place in ("Val/red/a.png", "Test/red/b.png"):
        shutil.copy(photos / "Train/red/0.png", photos / place)
    assert audited() == ["Train/red/0.png", "Val/red/a.png"]


def test_all_copies_in_training_leave_for_one_in_validation(photos, audited):
    colours = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    large = Image.fromarray(colours).resize((300, 200))
    large.save(photos / "Train/red/large.png")
    large.resize((240, 160)).save(photos / "Train/red/small.png")
    large.resize((150, 100)).save(photos / "Val/red/smaller.png")
    assert audited() == ["Train/red/large.png", "Train/red/small.png"]


def test_equal_files_leave_one(photos, audited):
    for i in range(3):
        shutil.copy(photos / "Val/red/0.png", photos / f"Val/red/copy{i}.png")
    assert len(audited()) == 3


def test_a_picture_with_two_labels_is_left_out_twice(photos, audited):
    shutil.copy(photos / "Train/red/0.png", photos / "Train/blue/red.png")
    assert audited() == ["Train/blue/red.png", "Train/red/0.png"]


def test_a_class_is_never_emptied_by_proposals(photos, audited):
    shutil.rmtree(photos / "Val")
    shutil.copytree(photos / "Train", photos / "Val")
    assert audited() == []


def test_decisions_that_are_there_stay(photos, tmp_path):
    shutil.copy(photos / "Train/red/0.png", photos / "Val/red/a.png")
    (tmp_path / "decisions.csv").write_text("path,decision\n")
    audit = audit_dataset(photos, image_size=32, cache_dir=tmp_path / "cache", num_workers=0)
    audit.write_decisions(tmp_path / "decisions.csv")
    assert (tmp_path / "decisions.csv").read_text() == "path,decision\n"
