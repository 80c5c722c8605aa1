import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import write_image
from PIL import Image

from resnet_ft import (
    DatasetError,
    ParameterError,
    Preprocessing,
    describe_loaders,
    eval_transform,
    make_dataloaders,
    train_transform,
)


def batches(loader):
    return [(images.clone(), labels.clone()) for images, labels in loader]


def test_batches_have_the_shapes_that_are_promised(photos):
    loaders = make_dataloaders(photos, image_size=24, batch_size=4, num_workers=0)
    assert list(loaders) == ["train", "val"]
    images, labels = next(iter(loaders["train"]))
    assert images.shape == (4, 3, 24, 24) and images.dtype == torch.float32
    assert labels.shape == (4,) and labels.dtype == torch.int64
    assert loaders["train"].dataset.classes == ["blue", "red"]
    assert loaders["val"].dataset.preprocessing["image_size"] == 24


def test_a_last_batch_of_one_does_not_occur_in_training(photos):
    loaders = make_dataloaders(photos, image_size=8, batch_size=4, num_workers=0)  # 17 = 4 * 4 + 1
    assert [len(labels) for _, labels in loaders["train"]] == [4, 4, 4, 5]


def test_batches_are_the_same_whatever_the_number_of_workers(photos):
    runs = []
    for workers in (0, 1, 2):
        loader = make_dataloaders(photos, image_size=16, batch_size=5, num_workers=workers)["train"]
        runs.append(batches(loader) + batches(loader))
    for other in runs[1:]:
        for (images, labels), (other_images, other_labels) in zip(runs[0], other, strict=True):
            assert torch.equal(images, other_images)
            assert torch.equal(labels, other_labels)


def test_another_seed_gives_other_batches(photos):
    first, second = (
        batches(make_dataloaders(photos, image_size=16, num_workers=0, seed=seed)["train"])[0][0]
        for seed in (0, 1)
    )
    assert not torch.equal(first, second)


def test_loading_does_not_touch_the_default_generator(photos):
    before = torch.get_rng_state()
    batches(make_dataloaders(photos, image_size=16, num_workers=0)["train"])
    assert torch.equal(torch.get_rng_state(), before)


def test_unreadable_files_are_left_out_counted_and_listed(photos):
    (photos / "Train" / "red" / "broken.jpg").write_bytes(b"no image")
    (photos / "Val" / "blue" / "empty.png").touch()
    with pytest.warns(UserWarning, match=r"2 of 25 files cannot be read") as caught:
        loaders = make_dataloaders(photos, image_size=8, num_workers=0)
    assert "broken.jpg: not an image" in str(caught[0].message)
    assert len(loaders["train"].dataset) == 17
    assert len(loaders["val"].dataset) == 6
    listed = loaders["train"].dataset.unreadable
    assert listed["reason"].tolist() == [
        "not an image in a format that can be read",
        "the file is empty",
    ]


def test_a_class_without_a_readable_image_is_refused(photos):
    for path in (photos / "Val" / "blue").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(DatasetError, match="not one image of class blue in val can be read"):
        make_dataloaders(photos, num_workers=0)


def test_a_split_or_class_that_is_lost_entirely_is_refused(photos):
    for path in (photos / "Val").rglob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(DatasetError, match="class blue in val can be read"):
        make_dataloaders(photos, num_workers=0)
    for split in ("Train", "Val"):
        write_image(photos / split / "green" / "0.png").write_bytes(b"no image")
    with pytest.raises(DatasetError, match="class green in train can be read"):
        make_dataloaders(photos, num_workers=0)


def test_your_own_transforms_are_used_and_described(photos):
    val = eval_transform(Preprocessing(12, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
    loaders = make_dataloaders(
        photos, train=lambda image: torch.zeros(3, 7, 7), val=val, num_workers=0
    )
    assert next(iter(loaders["train"]))[0].shape == (17, 3, 7, 7)
    assert next(iter(loaders["val"]))[0].shape == (6, 3, 12, 12)
    assert loaders["train"].dataset.preprocessing["mean"] == [0.5] * 3
    own = make_dataloaders(photos, val=lambda image: torch.zeros(3, 7, 7), num_workers=0)
    assert own["val"].dataset.preprocessing is None


def test_training_and_validation_are_normalised_alike(photos):
    wanted = Preprocessing(16, (0.5,) * 3, (0.5,) * 3)
    transform = train_transform(wanted)
    with pytest.raises(ParameterError, match=r"Give both train= and val="):
        make_dataloaders(photos, image_size=16, train=transform, num_workers=0)
    # As in notebook 4, which scores a model:
    loaders = make_dataloaders(photos, val=eval_transform(wanted), num_workers=0)
    assert repr(loaders["train"].dataset.transform) == repr(transform)


def test_images_are_decoded_as_the_preprocessing_wants_them(photos, tmp_path):
    wanted = Preprocessing(16, interpolation="bicubic", crop_share=0.5)
    transforms = {"train": train_transform(wanted), "val": eval_transform(wanted)}
    loaders = make_dataloaders(photos, **transforms, num_workers=0, cache_dir=tmp_path)
    dataset = loaders["val"].dataset
    path, _ = dataset.samples[0]
    with Image.open(path) as image:
        size = 32 * image.width // image.height, 32
        expected = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    assert np.array_equal(dataset.images[0], np.asarray(expected))
    assert dataset.preprocessing["crop_share"] == 0.5
    plain = make_dataloaders(photos, image_size=28, num_workers=0, cache_dir=tmp_path)
    assert not np.array_equal(plain["val"].dataset.images[0], dataset.images[0])


def test_a_test_split_is_evaluated_like_validation(photos):
    for name in ("blue", "red"):
        write_image(photos / "Test" / name / "0.png")
    loaders = make_dataloaders(photos, image_size=8, num_workers=0)
    assert list(loaders) == ["train", "val", "test"]
    assert loaders["test"].dataset.transform is loaders["val"].dataset.transform


def test_too_little_shared_memory_means_fewer_workers(photos):
    memory = Path("/dev/shm")
    if not memory.is_dir():
        pytest.skip("this system has no /dev/shm")
    # Batches of 768 bytes per image, of which six per worker are in shared memory at a time.
    too_large = shutil.disk_usage(memory).free // 768
    loaders = make_dataloaders(photos, image_size=8, batch_size=too_large)
    assert loaders["train"].num_workers == 0
    with pytest.warns(UserWarning, match="shm-size"):
        loaders = make_dataloaders(photos, image_size=8, batch_size=too_large // 12, num_workers=9)
    assert 0 < loaders["train"].num_workers < 9


@pytest.mark.parametrize("wrong", [{"image_size": 0}, {"batch_size": 0}])
def test_sizes_must_be_positive(photos, wrong):
    with pytest.raises(ParameterError, match="must be positive"):
        make_dataloaders(photos, **wrong)


def test_a_line_says_what_the_loaders_hold(photos, tmp_path):
    options = {"image_size": 8, "num_workers": 0, "cache_dir": tmp_path / "cache"}
    loaders = make_dataloaders(photos, **options)
    assert describe_loaders(loaders) == "17 train, 6 val, 2 classes"
    rows = [
        ["Train/red/0.png", "exclude", ""],
        ["Train/red/1.png", "relabel", "blue"],
        ["Train/red/2.png", "move", "val"],
        ["Train/red/3.png", "keep", ""],
    ]
    decisions = pd.DataFrame(rows, columns=["path", "decision", "value"])
    (photos / "Val" / "red" / "0.png").write_bytes(b"no image")
    with pytest.warns(UserWarning, match="cannot be read"):
        loaders = make_dataloaders(photos, decisions=decisions, **options)
    assert describe_loaders(loaders) == (
        "15 train, 6 val, 2 classes; 1 excluded by you; 1 relabelled by you; 1 moved by you; "
        "1 cannot be read"
    )
    shutil.rmtree(photos / "Val")
    line = describe_loaders(make_dataloaders(photos, **options))
    assert line.endswith(" val, 2 classes; a fifth of each class set aside for validation")
    keep = pd.DataFrame(rows[3:], columns=decisions.columns)
    assert describe_loaders(make_dataloaders(photos, decisions=keep, **options)) == line


def test_loaders_of_ones_own_are_described_too():
    data = torch.utils.data.TensorDataset(torch.zeros(1200, 1))
    loaders = {"train": torch.utils.data.DataLoader(data)}
    assert describe_loaders(loaders) == "1,200 train"
