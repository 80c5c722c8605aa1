import torch
from torch import nn

from resnet_ft import describe_device
from resnet_ft.engine import accelerator, device, prepared


def test_there_is_one_accelerator():
    assert accelerator() is accelerator()


def test_the_device_is_described_for_a_person():
    assert describe_device().startswith(device().type)
    if not torch.cuda.is_available():
        assert describe_device().endswith("full precision")


def test_a_prepared_model_is_unwrapped_at_the_end():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    forward = model.forward
    with prepared(model, optimizer) as (net, _):
        assert net(torch.ones(1, 2).to(device())).shape == (1, 2)
    assert model.forward == forward
    assert not accelerator()._models
