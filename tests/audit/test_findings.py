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
        apply_decisions(index_dataset(photos), file)  # accepts them
        return table["path"].tolist()

    return excluded


def test_only_the_last_split_keeps_an_image_that_is_in_several(photos, audited):
    for i in range(2):
        write_image(photos / "Test/blue" / f"{i}.png")
        write_image(photos / "Test/red" / f"{i}.png")
    for place in ("Val/red/a.png", "Test/red/b.png"):
        shutil.copy(photos / "Train/red/0.png", photos / place)
    assert audited() == ["Train/red/0.png", "Val/red/a.png"]


def test_all_training_copies_of_a_validation_image_are_excluded(photos, audited):
    colours = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    large = Image.fromarray(colours).resize((300, 200))
    large.save(photos / "Train/red/large.png")
    large.resize((240, 160)).save(photos / "Train/red/small.png")
    large.resize((150, 100)).save(photos / "Val/red/smaller.png")
    assert audited() == ["Train/red/large.png", "Train/red/small.png"]


def test_of_equal_files_one_stays(photos, audited):
    for i in range(3):
        shutil.copy(photos / "Val/red/0.png", photos / f"Val/red/copy{i}.png")
    assert len(audited()) == 3


def test_both_copies_of_an_image_with_two_labels_are_excluded(photos, audited):
    shutil.copy(photos / "Train/red/0.png", photos / "Train/blue/red.png")
    assert audited() == ["Train/blue/red.png", "Train/red/0.png"]


def test_proposals_never_empty_a_class(photos, audited):
    shutil.rmtree(photos / "Val")
    shutil.copytree(photos / "Train", photos / "Val")
    assert audited() == []


def test_existing_decisions_are_not_overwritten(photos, tmp_path):
    shutil.copy(photos / "Train/red/0.png", photos / "Val/red/a.png")
    (tmp_path / "decisions.csv").write_text("path,decision\n")
    audit = audit_dataset(photos, image_size=32, cache_dir=tmp_path / "cache", num_workers=0)
    audit.write_decisions(tmp_path / "decisions.csv")
    assert (tmp_path / "decisions.csv").read_text() == "path,decision\n"
