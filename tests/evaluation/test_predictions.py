import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from resnet_ft import (
    DatasetError,
    ParameterError,
    TrainingError,
    build_model,
    evaluate,
    load_predictions,
    make_dataloaders,
    unshuffled,
)
from resnet_ft.evaluation import predictions as predictions_module


class Echo(nn.Module):
    """Gives the first pixels back as logits."""

    def forward(self, images):
        return images.flatten(1)[:, : self.num_logits]

    num_logits = 2


def loader(logits, labels, classes=None, **options):
    dataset = TensorDataset(torch.tensor(logits)[:, :, None, None], torch.tensor(labels))
    if classes:
        dataset.classes = classes
    return DataLoader(dataset, batch_size=2, **options)


LOGITS = [[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]]


def test_the_table_has_a_row_per_image_in_the_order_of_the_loader():
    predictions = evaluate(Echo(), loader(LOGITS, [0, 0, 0], ["cat", "dog"]))
    table = predictions.table
    assert table["predicted"].tolist() == ["cat", "dog", "cat"]
    assert table["label"].tolist() == ["cat"] * 3
    assert predictions.accuracy == pytest.approx(2 / 3)
    # softmax(2, 0) = e^2 / (e^2 + 1), and the loss is its negative logarithm
    assert table["confidence"][0] == pytest.approx(np.exp(2) / (np.exp(2) + 1))
    assert table["loss"][1] == pytest.approx(-np.log(1 / (np.exp(1) + 1)), rel=1e-5)
    assert np.allclose(predictions.probabilities.sum(axis=1), 1)


def test_classes_are_matched_by_name_and_not_by_position():
    model = Echo()
    model.classes = ["dog", "cat"]
    predictions = evaluate(model, loader(LOGITS, [0, 1, 1], ["cat", "dog"]))
    assert predictions.table["label"].tolist() == ["cat", "dog", "dog"]
    assert predictions.table["predicted"].tolist() == ["dog", "cat", "dog"]
    assert predictions.classes == ["dog", "cat"]
    assert predictions.table["loss"][0] == pytest.approx(-np.log(1 / (np.exp(2) + 1)), rel=1e-5)


def test_a_data_set_with_classes_that_the_model_does_not_know_is_refused():
    model = Echo()
    model.classes = ["cat", "dog"]
    with pytest.raises(DatasetError, match="not trained on: horse"):
        evaluate(model, loader(LOGITS, [0, 1, 1], ["cat", "horse"]))


def test_a_mismatch_between_outputs_and_classes_is_refused():
    with pytest.raises(ParameterError, match="has 2 outputs for 3 classes"):
        evaluate(Echo(), loader(LOGITS, [0, 1, 1], ["a", "b", "c"]))


def test_without_names_classes_are_numbers():
    assert evaluate(Echo(), loader(LOGITS, [0, 1, 1])).table["label"].tolist() == ["0", "1", "1"]


def test_the_model_is_left_in_the_mode_it_was_in(small_network):
    small_network.train()
    small_network[1].eval()
    data = TensorDataset(torch.randn(5, 3, 8, 8), torch.zeros(5, dtype=torch.long))
    first = evaluate(small_network, DataLoader(data, batch_size=5))
    assert small_network.training and not small_network[1].training
    again = evaluate(small_network, DataLoader(data, batch_size=1))  # dropout and BatchNorm are off
    assert np.allclose(first.probabilities, again.probabilities, atol=1e-6)


class Narrow(Echo):
    """Has room for so many images at once, and notes how many it was given."""

    def __init__(self, room):
        super().__init__()
        self.room, self.seen = room, []

    def forward(self, images):
        self.seen.append(len(images))
        if len(images) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().forward(images)


def eights(count=19):
    logits = torch.randn(count, 2, generator=torch.Generator().manual_seed(0))
    images = TensorDataset(logits[:, :, None, None], torch.arange(count) % 2)
    return DataLoader(images, batch_size=8)


@pytest.mark.parametrize(("room", "parts"), [(4, 2), (3, 4), (1, 8)])
def test_a_batch_that_is_too_large_goes_through_the_model_in_parts_and_once_says_so(room, parts):
    model = Narrow(room)
    with pytest.warns(UserWarning, match=rf"8 images at once.*in {parts} parts") as said:
        predictions = evaluate(model, eights())
    pd.testing.assert_frame_equal(predictions.table, evaluate(Echo(), eights()).table)
    assert len(said) == 1
    assert sum(count > room for count in model.seen) == {2: 1, 4: 2, 8: 3}[parts]  # first batch


def test_a_single_image_that_is_too_large_is_an_error_with_the_remedy():
    with pytest.raises(TrainingError, match=r"single image does not fit.*image_size"):
        evaluate(Narrow(0), eights())


def test_logits_that_leave_the_device_in_between_stay_in_order(monkeypatch):
    expected = evaluate(Echo(), eights())
    monkeypatch.setattr(predictions_module, "_ON_DEVICE", 8 * 2 * 4)
    pd.testing.assert_frame_equal(evaluate(Echo(), eights()).table, expected.table)


def test_paths_are_known_where_the_order_is(photos, small_network):
    loaders = make_dataloaders(photos, image_size=8, batch_size=4, num_workers=0)
    table = evaluate(small_network, loaders["val"]).table
    assert [path.split("/")[-2] for path in table["path"]] == table["label"].tolist()
    assert evaluate(small_network, loaders["train"]).table["path"].isna().all()


def test_paths_are_not_guessed_for_batches_in_another_order(photos, small_network):
    dataset = make_dataloaders(photos, image_size=8, num_workers=0)["val"].dataset
    shuffled = DataLoader(dataset, batch_sampler=BatchSampler(RandomSampler(dataset), 4, False))
    assert evaluate(small_network, shuffled).table["path"].isna().all()
    shortened = DataLoader(dataset, batch_size=4, drop_last=True)
    assert len(evaluate(small_network, shortened).table) == 4
    in_order = evaluate(small_network, DataLoader(dataset, batch_size=4)).table
    assert in_order["path"].tolist() == [path for path, _ in dataset.samples]


def test_the_table_is_saved_with_every_probability(tmp_path):
    predictions = evaluate(Echo(), loader(LOGITS, [0, 0, 0], ["cat", "dog"]))
    table = pd.read_csv(predictions.save(tmp_path / "evaluation.csv"))
    assert list(table)[-2:] == ["p(cat)", "p(dog)"]
    assert np.allclose(table[["p(cat)", "p(dog)"]], predictions.probabilities)


def test_saved_predictions_are_loaded_as_they_were(tmp_path):
    predictions = evaluate(Echo(), loader(LOGITS, [0, 1, 0], ["NA", "7"]))
    predictions.table["path"] = ["a,b.jpg", "1", "nan"]
    loaded = load_predictions(predictions.save(tmp_path / "predictions.csv"))
    assert loaded.classes == ["NA", "7"]
    assert np.array_equal(loaded.probabilities, predictions.probabilities)
    for column in ("path", "label", "predicted"):
        assert loaded.table[column].tolist() == predictions.table[column].tolist()
    assert np.allclose(
        loaded.table[["confidence", "loss"]], predictions.table[["confidence", "loss"]]
    )
    assert loaded.accuracy == predictions.accuracy


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: "\0\1" * 99,
        lambda text: text.splitlines()[0],
        lambda text: text.replace("confidence", "sure"),
        lambda text: text.replace("dog,dog", "dog,cow"),
        lambda text: text.replace("p(dog)", "dog"),
        lambda text: text.replace("0.", "x"),
        lambda text: text.replace("0.", "9."),
        lambda text: text[:-30],
    ],
)
def test_damaged_predictions_are_named(tmp_path, damage):
    file = evaluate(Echo(), loader(LOGITS, [0, 1, 0], ["cat", "dog"])).save(tmp_path / "a.csv")
    file.write_text(damage(file.read_text()))
    with pytest.raises(DatasetError, match=r"a\.csv cannot be read \(.+\)\. Evaluate"):
        load_predictions(file)


def test_class_names_are_no_formulas_in_a_spreadsheet(tmp_path):
    predictions = evaluate(Echo(), loader(LOGITS, [0, 1, 0], ["=1+1", "-dog"]))
    file = predictions.save(tmp_path / "a.csv")
    assert file.read_bytes().startswith(b"\xef\xbb\xbf")
    assert not {",=", ",-d"} & {cell[:2] for cell in file.read_text("utf-8-sig").split(",")}
    assert ",=" not in file.read_text("utf-8-sig") and ",-" not in file.read_text("utf-8-sig")
    loaded = load_predictions(file)
    assert loaded.classes == ["=1+1", "-dog"]
    assert loaded.table["label"].tolist() == predictions.table["label"].tolist()


def test_logits_and_the_features_that_they_come_from_are_of_one_pass(photos):
    loaders = make_dataloaders(photos, image_size=32, batch_size=5, num_workers=0)
    model = build_model("resnet18", len(loaders["train"].dataset.classes), weights=None).eval()
    passes = []
    model.conv1.register_forward_hook(lambda *_: passes.append(1))
    evaluate(model, loaders["val"])
    usual, passes[:] = len(passes), []
    predictions = evaluate(model, loaders["val"], features=True)
    assert len(passes) == usual
    assert predictions.features.dtype == np.float16
    with torch.no_grad():
        logits = model.fc(torch.from_numpy(predictions.features).float()).numpy()
    assert np.allclose(logits, predictions.logits, atol=2e-3)
    exponentials = np.exp(predictions.logits)
    shares = exponentials / exponentials.sum(axis=1, keepdims=True)
    assert np.allclose(shares, predictions.probabilities, atol=1e-6)
    assert not model.fc._forward_pre_hooks


def test_features_beyond_half_precision_keep_their_values():
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    model[1].weight.data = torch.eye(2) * 1e-5
    predictions = evaluate(model, loader([[1e5, 0.0], [0.0, 1.0]], [0, 1]), features=True)
    assert predictions.features.max() == 1e5


def test_training_images_are_predicted_in_the_order_of_their_files(photos):
    loaders = make_dataloaders(photos, image_size=32, batch_size=4, num_workers=0)
    model = build_model("resnet18", len(loaders["train"].dataset.classes), weights=None)
    assert evaluate(model, loaders["train"]).table["path"].isna().all()
    in_order = unshuffled(loaders["train"])
    paths = evaluate(model, in_order).table["path"].tolist()
    assert paths == [str(path) for path, _ in loaders["train"].dataset.samples]
    assert unshuffled(in_order) is in_order


def test_logits_and_features_are_read_again_only_with_the_table_that_they_belong_to(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    predictions = evaluate(model, loader(LOGITS, [0, 1, 0], ["cat", "dog"]), features=True)
    predictions.save(tmp_path / "evaluation.csv")
    again = load_predictions(tmp_path / "evaluation.csv")
    assert np.array_equal(again.logits, predictions.logits)
    assert np.array_equal(again.features, predictions.features)
    assert again.weights == predictions.weights != ""
    other = evaluate(model, loader(LOGITS, [1, 1, 0], ["cat", "dog"]))
    kept = (tmp_path / "evaluation.safetensors").read_bytes()
    other.save(tmp_path / "evaluation.csv")
    (tmp_path / "evaluation.safetensors").write_bytes(kept)
    assert load_predictions(tmp_path / "evaluation.csv").logits is None


def test_features_that_would_take_much_of_drive_are_left_out(tmp_path, monkeypatch, capsys):
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    predictions = evaluate(model, loader(LOGITS, [0, 1, 0]), features=True)
    monkeypatch.setattr(predictions_module, "_MOST_IN_FILE", predictions.logits.nbytes)
    predictions.save(tmp_path / "evaluation.csv")
    again = load_predictions(tmp_path / "evaluation.csv")
    assert again.features is None and again.logits is not None
    assert "without the features" in capsys.readouterr().out
