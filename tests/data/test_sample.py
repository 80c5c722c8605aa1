from PIL import Image

from resnet_ft import index_dataset, make_sample_dataset


def test_the_sample_has_four_balanced_classes_in_three_splits(tmp_path):
    index = index_dataset(make_sample_dataset(tmp_path))
    assert index.classes == ["balloon", "fish", "flower", "mushroom"]
    assert index.counts().to_dict("list") == {"train": [40] * 4, "val": [16] * 4, "test": [12] * 4}


def test_the_same_seed_draws_the_same_images_and_another_others(tmp_path, monkeypatch):
    monkeypatch.setattr("resnet_ft.data.sample._COUNTS", {"Train": 2})
    files = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        folder = make_sample_dataset(tmp_path / name, seed=seed)
        files.append({p.name: p.read_bytes() for p in folder.rglob("*.jpg")})
    assert len(files[0]) == 8
    assert files[0] == files[1]
    assert not set(files[0].values()) & set(files[2].values())


def test_images_differ_in_size_and_from_one_another(tmp_path, monkeypatch):
    monkeypatch.setattr("resnet_ft.data.sample._COUNTS", {"Train": 5})
    paths = sorted(make_sample_dataset(tmp_path).rglob("*.jpg"))
    sizes = {Image.open(path).size for path in paths}
    assert len(sizes) > 15
    assert all(160 <= side <= 256 for size in sizes for side in size)
    assert len({path.read_bytes() for path in paths}) == len(paths)


def test_the_flawed_sample_is_accepted_and_one_class_is_rare(tmp_path):
    index = index_dataset(make_sample_dataset(tmp_path, flawed=True))
    counts = index.counts()
    assert index.classes == ["balloon", "fish", "flower", "mushroom"]
    assert counts["train"].drop("mushroom").min() > 5 * counts["train"]["mushroom"]
    assert counts["val"].min() >= 2


def test_only_the_flawed_sample_has_flaws(tmp_path, monkeypatch):
    for counts in ("_COUNTS", "_FLAWED_COUNTS"):
        monkeypatch.setattr(f"resnet_ft.data.sample.{counts}", {"Train": 1, "Val": 1})
    for flawed in (False, True):
        folder = make_sample_dataset(tmp_path / str(flawed), flawed=flawed)
        assert any(folder.rglob("flaw_*")) == flawed
