import pytest
import torch
from torch import nn
from torch.fx import GraphModule

from resnet_ft import ParameterError, build_model, freeze
from resnet_ft.models.cutting import (
    WithFeatures,
    cut_frozen,
    fold_batchnorm,
    in_blocked_layout,
)


@pytest.mark.parametrize("until", ["layer3", "layer4", "fc"])
def test_a_resnet_is_cut_where_training_begins(until):
    model = build_model("resnet18", 3, weights=None).eval()
    model.pretrained = True
    freeze(model, until=until)
    frozen, rest = cut_frozen(model)
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(rest(frozen(images)), model(images))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {id(p) for p in rest.parameters()} == {id(p) for p in trained}
    assert rest.full_model is model


def test_any_other_model_is_cut_before_its_head():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    freeze(model, until="3")
    frozen, rest = cut_frozen(model)
    images = torch.randn(2, 3, 2, 2)
    assert frozen(images).shape == (2, 4)
    torch.testing.assert_close(rest(frozen(images)), model(images))
    freeze(model, until="1")
    with pytest.raises(ParameterError, match=r"1\.weight trains.*until='3'"):
        cut_frozen(model)


def test_folding_removes_batchnorm_layers_and_keeps_the_function():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4))
    for layer in (model[1], model[3]):
        nn.init.uniform_(layer.running_mean, -1, 1)
        nn.init.uniform_(layer.running_var, 0.5, 2)
    model.eval()
    folded = fold_batchnorm(model)
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(folded(images), model(images))
    # The second one has no convolution before it.
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in folded.modules()) == 1
    assert isinstance(model[1], nn.BatchNorm2d)


class Branching(nn.Module):
    def forward(self, images):
        return images * 2 if images.sum() > 0 else images


def test_a_model_that_cannot_be_traced_stays_as_it_is():
    model = Branching().eval()
    assert fold_batchnorm(model) is model
    assert in_blocked_layout(model) is None


def test_a_resnet_computes_in_the_layout_of_onednn_and_another_network_only_if_all_of_it_can():
    torch.manual_seed(0)
    model = build_model("resnet18", 3, weights=None).eval()
    quick = in_blocked_layout(model)
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(quick(images), model(images), rtol=1e-4, atol=1e-4)
    assert [node.target for node in quick.graph.nodes].count("to_mkldnn") == 1
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules())
    other = nn.Sequential(
        *(layer for _ in range(3) for layer in (nn.Conv2d(3, 3, 1), nn.SiLU())), nn.Flatten()
    )
    assert in_blocked_layout(other.eval()) is None


def test_made_quick_it_puts_out_the_same_logits_and_features_and_needs_no_hook():
    torch.manual_seed(0)
    model = build_model("resnet18", 3, weights=None).eval()
    model.bn1.running_mean.normal_()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = WithFeatures(model)(images)
        assert expected.shape == (2, 3 + 512)
        assert torch.allclose(expected[:, :3], model(images))
        for made in (fold_batchnorm, in_blocked_layout):
            quick = made(WithFeatures(model))
            assert isinstance(quick, GraphModule)
            assert torch.allclose(quick(images), expected, atol=1e-4)
            assert not [one for one in quick.modules() if isinstance(one, nn.BatchNorm2d)]
    assert not model.fc._forward_pre_hooks
