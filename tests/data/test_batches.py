"""Which samples a batch has; batches from workers are right, however long they are held."""

import pytest
import torch
from torchvision import transforms
from torchvision.transforms import v2

from resnet_ft import make_dataloaders, train_transform
from resnet_ft.data.batches import EpochBatchSampler


def test_every_epoch_has_each_index_once_in_another_order():
    sampler = EpochBatchSampler(10, 4, shuffle=True)
    epochs = [[key for batch in sampler for key in batch] for _ in range(3)]
    for number, keys in enumerate(epochs):
        assert {key.epoch for key in keys} == {number}
        assert sorted(key.index for key in keys) == list(range(10))
    assert len({tuple(key.index for key in keys) for keys in epochs}) == 3


def test_an_epoch_can_be_repeated():
    sampler = EpochBatchSampler(10, 4, shuffle=True)
    first = list(sampler)
    assert list(sampler) != first
    sampler.set_epoch(0)
    assert list(sampler) == first


def test_one_pass_can_start_mid_epoch():
    sampler = EpochBatchSampler(10, 4, shuffle=True)
    sampler.slots = 2
    full = list(sampler)
    sampler.set_epoch(0)
    sampler.start_at(2)
    assert list(sampler) == full[2:]
    sampler.set_epoch(0)
    assert list(sampler) == full


def test_without_shuffling_every_pass_is_epoch_zero_in_order():
    sampler = EpochBatchSampler(3, 2)
    for _ in range(2):
        batches = [[(key.epoch, key.index) for key in batch] for batch in sampler]
        assert batches == [[(0, 0), (0, 1)], [(0, 2)]]


@pytest.mark.parametrize(
    ("count", "size", "lengths"),
    [(9, 4, [4, 5]), (10, 4, [4, 4, 2]), (8, 4, [4, 4]), (1, 4, [1]), (3, 1, [1, 1, 1])],
)
def test_a_last_batch_of_one_joins_the_batch_before(count, size, lengths):
    sampler = EpochBatchSampler(count, size, shuffle=True)
    assert [len(batch) for batch in sampler] == lengths
    assert len(sampler) == len(lengths)


def of_process(rank, count, monkeypatch, **options):
    """The batches and places of one of several processes, as torchrun would tell it."""
    monkeypatch.setenv("WORLD_SIZE", str(count))
    monkeypatch.setenv("RANK", str(rank))
    sampler = EpochBatchSampler(11, 4, **options)
    return [[key.index for key in batch] for batch in sampler], sampler.places()


def test_processes_share_every_batch(monkeypatch):
    full = [[key.index for key in batch] for batch in EpochBatchSampler(11, 4, shuffle=True)]
    shares = [of_process(rank, 2, monkeypatch, shuffle=True)[0] for rank in range(2)]
    for batch, *parts in zip(full, *shares, strict=True):
        assert parts == [batch[0::2], batch[1::2]]


def test_places_are_the_positions_of_a_process_in_the_pass_of_all(monkeypatch):
    found = torch.full((11,), -1)
    for rank in range(4):
        batches, places = of_process(rank, 4, monkeypatch)
        found[places] = torch.tensor([index for batch in batches for index in batch])
    assert found.tolist() == list(range(11))


def test_no_process_is_without_a_share_of_a_training_batch(monkeypatch):
    lengths = [
        [len(batch) for batch in of_process(rank, 4, monkeypatch, shuffle=True)[0]]
        for rank in range(4)
    ]
    # 11 images in batches of 4 leave 3, too few for four processes: they join the batch before.
    assert lengths == [[1, 2], [1, 2], [1, 2], [1, 1]]


@pytest.fixture(scope="module", params=[0, pytest.param(2, marks=pytest.mark.processes)])
def workers(request):
    return request.param


def expected(loader, epoch: int) -> torch.Tensor:
    """The images of an epoch of the training loader, one by one, in its order."""
    loader.batch_sampler.set_epoch(epoch)
    keys = [key for batch in loader.batch_sampler for key in batch]
    loader.batch_sampler.set_epoch(epoch)
    return torch.stack([loader.dataset[key.epoch, key.index][0] for key in keys])


@pytest.mark.parametrize("strength", ["light", "medium", "strong"])
def test_batches_equal_single_samples_to_the_last_bit_even_if_all_are_kept(
    photos, workers, strength
):
    transform = train_transform(16, strength=strength)
    loader = make_dataloaders(
        photos, image_size=16, batch_size=2, train=transform, num_workers=workers
    )["train"]
    for epoch in range(2):
        right = expected(loader, epoch)
        assert torch.equal(torch.cat([images for images, _ in list(loader)]), right)
        assert right.dtype == torch.float32 and right.is_contiguous()


@pytest.mark.processes
def test_a_slice_that_is_held_is_not_overwritten(photos):
    loader = make_dataloaders(photos, image_size=16, batch_size=2, num_workers=1)["train"]
    right = expected(loader, 0)
    slices = [images[1:] for images, _ in loader]  # the batches themselves are let go
    shown = torch.cat([piece for piece in slices if len(piece)])
    assert torch.equal(shown[:8], right[1:16:2])


def test_memory_that_nobody_holds_is_used_again(photos):
    loader = make_dataloaders(photos, image_size=16, batch_size=2, num_workers=0)["val"]
    assert len({images.data_ptr() for images, _ in loader}) <= 2


@pytest.mark.processes
def test_an_epoch_that_is_left_early_does_not_disturb_the_next(photos):
    loader = make_dataloaders(photos, image_size=16, batch_size=2, num_workers=2)["train"]
    right = expected(loader, 1)
    loader.batch_sampler.set_epoch(0)
    for _ in loader:
        break
    assert torch.equal(torch.cat([images for images, _ in loader]), right)


def test_batches_of_your_own_transform_may_be_kept_too(photos, workers):
    own = v2.Compose([v2.ToImage(), v2.CenterCrop(12), v2.ToDtype(torch.float32, scale=True)])
    loader = make_dataloaders(photos, image_size=16, batch_size=1, val=own, num_workers=workers)[
        "val"
    ]
    kept = torch.cat([images for images, _ in list(loader)])
    assert torch.equal(kept, torch.stack([loader.dataset[i][0] for i in range(6)]))


def two_views(image):
    return [v2.functional.to_image(image), v2.functional.to_image(image).flip(-1)]


def test_a_transform_may_make_several_views_of_an_image(photos, workers):
    loaders = make_dataloaders(photos, image_size=16, val=two_views, num_workers=workers)
    (first, second), labels = next(iter(loaders["val"]))
    assert torch.equal(first, second.flip(-1)) and len(labels) == 6


def test_your_own_transforms_are_given_pil_images_and_batched_as_they_are(photos, workers):
    tutorial = transforms.Compose([transforms.CenterCrop(12), transforms.ToTensor()])
    loaders = make_dataloaders(photos, image_size=16, val=tutorial, num_workers=workers)
    images, labels = next(iter(loaders["val"]))
    assert images.shape == (6, 3, 12, 12)
    assert torch.equal(images[4], loaders["val"].dataset[4][0])
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
