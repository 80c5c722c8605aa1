import pytest
import torch

from resnet_ft import build_model, compare_backbones, make_dataloaders


@pytest.fixture
def weights(tmp_path):
    """Random weights, in a file: their features tell blue from red."""
    file = tmp_path / "resnet18.pth"
    torch.save(build_model("resnet18", 2, weights=None).state_dict(), file)
    return file


def test_networks_are_compared_by_what_a_head_learns_from_their_features(photos, weights):
    loaders = make_dataloaders(photos, image_size=32, num_workers=0)
    there = {"resnet18": weights, "resnet34": weights.with_name("none.pth")}
    table = compare_backbones(
        loaders, ["resnet34", "resnet18", "resnet1"], weights=there, image_size=32
    ).set_index("arch")
    assert table.index[0] == "resnet18"  # those without scores come last
    found = table.loc["resnet18"]
    assert found["accuracy"] > 0.8 and found["note"] == ""
    assert 0 < found["from"] < found["accuracy"] <= found["to"] <= 1
    assert found["seconds"] > 0
    # 11,176,512 weights before the head of 2 * 513, and 9,600 statistics of BatchNorm
    # with 20 counters, of 4 and of 8 bytes.
    expected = (4 * (11_176_512 + 2 * 513 + 9_600) + 20 * 8) / 1e6
    assert found["megabytes"] == pytest.approx(expected)


def test_a_network_that_cannot_be_had_is_a_row_with_the_reason(photos, weights):
    loaders = make_dataloaders(photos, image_size=32, num_workers=0)
    there = {"resnet34": weights.with_name("none.pth"), "resnet50": weights}
    table = compare_backbones(loaders, ["resnet34", "resnet50", "resnet1"], weights=there)
    assert table["accuracy"].isna().all()
    assert table["arch"].tolist() == ["resnet34", "resnet50", "resnet1"]
    missing, other, unknown = table["note"]
    assert "There is no weights file" in missing and "another architecture" in other
    assert "arch='resnet1' is unknown" in unknown
