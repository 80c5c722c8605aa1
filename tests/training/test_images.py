import pytest
from conftest import write_image

from resnet_ft import RunError, build_model, make_dataloaders, train_model


def train(photos, run_dir, *, num_epochs=1, decisions=None):
    loaders = make_dataloaders(
        photos, image_size=32, batch_size=6, num_workers=0, decisions=decisions
    )
    model = build_model("resnet18", 2, weights=None)
    return train_model(model, loaders, num_epochs=num_epochs, run_dir=run_dir)


def test_a_run_whose_images_changed_says_which_and_how_to_continue(photos, tmp_path):
    run_dir, red = tmp_path / "run", photos / "Train/red"
    train(photos, run_dir)
    for name in "abcd":
        write_image(red / f"{name}.png")
    (red / "7.png").unlink()
    write_image(red / "3.png", size=(90, 80))
    (photos / "Train/blue/5.png").rename(photos / "Val/blue/5.png")
    with pytest.raises(RunError) as caught:
        train(photos, run_dir, num_epochs=2)
    said = str(caught.value)
    assert "5 added (Train/red/a.png, Train/red/b.png, Train/red/c.png, ...)" in said
    assert "2 removed (Train/blue/5.png, Train/red/7.png)" in said
    assert "1 of another size (Train/red/3.png)" in said
    assert "choose another run_dir" in said and f'weights="{run_dir / "best.pt"}"' in said


def test_a_decision_that_changes_the_images_is_named(photos, tmp_path):
    run_dir, decisions = tmp_path / "run", tmp_path / "decisions.csv"
    train(photos, run_dir)
    decisions.write_text("path,decision,value\nTrain/red/0.png,relabel,blue\n")
    with pytest.raises(RunError, match=r"1 in another split or class \(Train/red/0.png\)"):
        train(photos, run_dir, num_epochs=2, decisions=decisions)


@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: file.write_bytes(b"")])
def test_without_its_list_a_run_gives_the_numbers(photos, tmp_path, damage):
    run_dir = tmp_path / "run"
    train(photos, run_dir)
    damage(run_dir / "images.csv.gz")
    write_image(photos / "Train/red/a.png")
    with pytest.raises(RunError, match=r"'train': 17, 'val': 6} files then and {'train': 18"):
        train(photos, run_dir, num_epochs=2)


def test_a_moved_data_set_is_the_same(photos, tmp_path):
    train(photos, tmp_path / "run")
    photos.rename(tmp_path / "elsewhere")
    _, history = train(tmp_path / "elsewhere", tmp_path / "run", num_epochs=2)
    assert history["epoch"].tolist() == [1, 2]
