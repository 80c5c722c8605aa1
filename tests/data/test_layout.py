"""What a tree of folders is: a table of trees as people have them, and what each is taken for."""

import random
import re
import warnings
from itertools import product
from pathlib import Path

import pytest

from resnet_ft import DatasetError, index_dataset

# Each tree is a list of folders with two images each ("name.txt" and the like are files). Then what
# it is: the classes of each split, with what a warning says, or what the refusal says.
TREES = {
    # Names of splits.
    "Train/{cat,dog}; Val/{cat,dog}": "train: cat dog, val: cat dog",
    "train_set/{cat,dog}; val_set/{cat,dog}": (
        "train: cat dog, val: cat dog",
        "train_set as train",
    ),
    "trainset/{cat,dog}; testset/{cat,dog}": ("train: cat dog, val: cat dog", "testset as test"),
    "train_images/{cat,dog}; valid_images/{cat,dog}": ("train: cat dog, val: cat dog", "as val"),
    "Train Data/{cat,dog}; Validation Data/{cat,dog}; Test Data/{cat,dog}": (
        "train: cat dog, val: cat dog, test: cat dog",
        "Test Data as test",
    ),
    "TrainSet/{cat,dog}; ValSet/{cat,dog}": ("train: cat dog, val: cat dog", "TrainSet as train"),
    "train2017/{cat,dog}; val2017/{cat,dog}": (
        "train: cat dog, val: cat dog",
        "train2017 as train",
    ),
    "train/{cat,dog}; dev/{cat,dog}": ("train: cat dog, val: cat dog", "dev as val"),
    "training/{cat,dog}; validation/{cat,dog}; evaluation/{cat,dog}": (
        "train: cat dog, val: cat dog, test: cat dog",
        "evaluation as test",
    ),
    "asl_train/{A,B}; asl_test/{A,B}": ("train: A B, val: A B", "asl_train as train"),
    "seg_train/seg_train/{sea,wood}; seg_test/seg_test/{sea,wood}; seg_pred/seg_pred": (
        "train: sea wood, val: sea wood",
        "seg_pred is not used(.|\n)*seg_train as train",
    ),
    "training_set/training_set/{cat,dog}; test_set/test_set/{cat,dog}": (
        "train: cat dog, val: cat dog",
        "training_set as train",
    ),
    "train/{cat,dog}; Train/{cat,dog}; val/{cat,dog}": "! are both train. Merge or rename one",
    "train1/{cat,dog}; train2/{cat,dog}": "! are both train",
    "trainA; trainB; testA; testB": "! testA, trainA, testB, trainB in .*class in one name",
    "cats_train; dogs_train; cats_test; dogs_test": "! split and class in one name",
    "training_set_cats; test_set_dogs": "! split and class in one name",
    "Train/{cat,dog}; Train_augmented/{cat,dog}; Val/{cat,dog}": (
        "train: cat dog, val: cat dog",
        "Train_augmented is not used",
    ),
    # Folders around them.
    "export/photos/Train/{cat,dog}; export/photos/Val/{cat,dog}": "train: cat dog, val: cat dog",
    "flower_photos/{daisy,rose}": "train: daisy rose, val: daisy rose",
    "train/train/{cat,dog}; val/val/{cat,dog}": "train: cat dog, val: cat dog",
    "images/{train,val}/{cat,dog}": "train: cat dog, val: cat dog",
    "images/{cat,dog}; annotations": ("train: cat dog, val: cat dog", "annotations is not used"),
    "images/{cat,dog}; masks/{cat,dog}": ("train: cat dog, val: cat dog", "masks is not used"),
    "images/{cat,dog}; attributes/list.txt": ("train: cat dog, val: cat dog", "attributes is not"),
    "images/{train,val}; labels/{train,val}/1.txt": "! no class folders.* may stand in labels",
    "images; annotations/1.xml": "! images has no class folders.* annotations",
    "Train/images/{cat,dog}; Val/images/{cat,dog}": "train: cat dog, val: cat dog",
    "Train/{cat,dog}/images; Val/{cat,dog}/images": "train: cat dog, val: cat dog",
    "data/{train,val}/{cat,dog}; extra": "! data holds splits: give it as data_dir",
    "train/{train,val}/{cat,dog}": "! train holds splits",
    # Real classes with the name of a split.
    "bus; car; train": (
        "train: bus car train, val: bus car train",
        "train is a class and no split.*like bus, car",
    ),
    "bus; car; train/{steam,electric}": "! Is train in .* a split, or a class like bus, car",
    "valid; invalid": ("train: invalid valid, val: invalid valid", "valid is a class and no split"),
    "Train/{bullet train,test tube,bus}; Val/{bullet train,test tube,bus}": (
        "train: bullet train bus test tube, val: bullet train bus test tube"
    ),
    "train/{steam,electric}": "train: electric steam, val: electric steam",
    "steam_train; electric_train": (
        "train: electric_train steam_train, val: electric_train steam_train"
    ),
    "mask; no_mask": "train: mask no_mask, val: mask no_mask",
    "cat; dog; annotations/1.xml": "! annotations holds no images, but 1.xml.*move it elsewhere",
    # Parts of one data set, and classes in parts.
    "cats/{2019,2020}": r"! single class \(cats\).*dates",
    "cats/{2019,2020}; dogs/2019": (
        "train: cats dogs, val: cats dogs",
        r"count as their class \(3\): cats/2019, cats/2020, dogs/2019",
    ),
    "2019/{cat,dog}; 2020/{cat,dog}": "! 2019, 2020 .*parts of one data set",
    "2019; 2020": "train: 2019 2020, val: 2019 2020",
    "101_ObjectCategories/{ant,bee}; Annotations/x.mat": (
        "train: ant bee, val: ant bee",
        "Annotations is not used",
    ),
    "hat; mask": "train: hat mask, val: hat mask",
    "data/{2019,2020}/{cat,dog}": "! 2019, 2020 .*parts of one data set",
    "photos": "! photos has no class folders",
    "mnist/{0,1,2}": "train: 0 1 2, val: 0 1 2",
    "fold1/{cat,dog}; fold2/{cat,dog}; fold3/{cat,dog}": "! fold1, fold2, fold3 .*parts",
    "camera1/{cat,dog}; camera2/{cat,dog}": (
        "train: camera1 camera2, val: camera1 camera2",
        "count as their class",
    ),
    "ham_images_part_1; ham_images_part_2": "! parts of one data set",
    "class1; class2": "train: class1 class2, val: class1 class2",
    "cat/{train,val}; dog/{train,val}": "! cat holds splits.*Train/cat",
    "cat; dog; augmented/{cat,dog}": "! augmented holds cat, dog, which lie beside it",
    "bird/{eagle,owl}; cat/persian": ("train: bird cat, val: bird cat", "bird/eagle, bird/owl"),
    "photos-20240501T101010Z-001/photos/{cat,dog}": (
        "train: cat dog, val: cat dog",
        "one part of what Google Drive sent",
    ),
    "photos-20240501T101010Z-001/photos/{cat,dog}; photos-20240501T101010Z-002/photos/eel": (
        "! parts of one data set"
    ),
    "photos/{cat,dog}; photos-20240501T101010Z-002.zip": (
        "train: cat dog, val: cat dog",
        "-002.zip is not unpacked",
    ),
    # A part that cannot be used.
    "Train/{cat,dog}; Val/{cat,dog}; Test": (
        "train: cat dog, val: cat dog",
        "no folder of .*Notebook 5",
    ),
    "Train/{cat,dog}; Val/{cat,dog}; Test/": (
        "train: cat dog, val: cat dog",
        "Test has no folder of",
    ),
    "Train/{cat,dog}; Val/{cat,dog}; Test/unknown": (
        "train: cat dog, val: cat dog",
        "but unknown, so",
    ),
    "Train/{cat,dog}; Test": ("train: cat dog, val: cat dog", "Test has no folder of"),
    "train/{n01,n02}/images; val/images; val/val_annotations.txt; test/images": (
        "! val/images has no class folders.*move its images.*stand in val_annotations.txt"
    ),
    "Train/{cat,dog}; Val": "! Val has no class folders. Make one for each class",
    "Train/{Cat,dog}; Val/{cat,dog}": r"! val has classes that Train lacks: cat \(is it Cat\?\)",
    "Train/{hot dog,tea}; Val/{hot_dog,tea}": r"! hot_dog \(is it hot dog\?\)",
    "Train/{Cat,cat}; Val/{Cat,cat}": (
        "train: Cat cat, val: Cat cat",
        "hardly differ: Cat and cat",
    ),
    # What systems put there.
    "Train/{cat,dog}; Val/{cat,dog}; Train/cat/@eaDir; Train/@eaDir; #recycle/cat; lost+found": (
        "train: cat dog, val: cat dog"
    ),
}


def make_tree(folder: Path, text: str) -> None:
    """Empty files: no image is opened."""
    for place in text.split("; "):
        parts = [part.strip("{}").split(",") for part in re.findall(r"\{[^}]*\}|[^{}]+", place)]
        for path in map("".join, product(*parts)):
            files = [path] if re.search(r"\.\w+$", path) else [f"{path}/{i}.png" for i in range(2)]
            for file in files if not path.endswith("/") else []:
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                (folder / file).touch()
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            if path.endswith("/"):
                (folder / path).mkdir()


@pytest.mark.parametrize("tree", TREES)
def test_a_tree_is_what_a_person_would_take_it_for(tree, tmp_path):
    make_tree(tmp_path, tree)
    expected = TREES[tree]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if isinstance(expected, str) and expected.startswith("! "):
            with pytest.raises(DatasetError, match=f"(?s){expected[2:]}"):
                index_dataset(tmp_path)
            return
        index = index_dataset(tmp_path)
    counts = index.counts()
    found = ", ".join(f"{split}: {' '.join(counts.index[counts[split] > 0])}" for split in counts)
    said = "\n".join(str(warning.message) for warning in caught)
    right, note = expected if isinstance(expected, tuple) else (expected, "^$")
    assert found == right
    assert re.search(note, said), said


def test_no_image_of_a_tree_is_left_out_without_a_word(tmp_path):
    draw = random.Random(0)
    names = ["train", "val", "Test", "test_set", "seg_train", "images", "masks", "cat", "dog"]
    names += ["Cat", "2019", "fold1", "fold2", "pred"]

    def grow(folder: Path, depth: int) -> None:
        folder.mkdir(parents=True)
        for i in range(draw.randint(0, 2) if depth else 2):
            (folder / f"{i}.png").touch()
        for name in draw.sample(names, draw.randint(1, 3)) if depth else []:
            grow(folder / name, depth - 1)

    accepted = 0
    for number in range(400):
        grow(root := tmp_path / f"{number}", draw.randint(1, 3))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                index = index_dataset(root)
            except DatasetError:
                continue
        accepted += 1
        said = "\n".join(str(warning.message) for warning in caught)
        for path in {*root.rglob("*.png")} - {*index.paths()}:
            folders = [str(folder) for folder in path.parents if root in folder.parents]
            is_said = f"{path.parent} that lie in no class folder" in said
            assert is_said or any(folder in said for folder in folders), (path, said)
    assert accepted > 20
