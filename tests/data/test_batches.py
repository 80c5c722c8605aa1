"""Batches from workers are what the data set says, however long they are held."""

import pytest
import torch
from torchvision import transforms
from torchvision.transforms import v2

from resnet_ft import make_dataloaders, train_transform


@pytest.fixture(scope="module", params=[0, 2])
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


def test_a_slice_that_is_held_is_not_written_over(photos):
    loader = make_dataloaders(photos, image_size=16, batch_size=2, num_workers=1)["train"]
    right = expected(loader, 0)
    slices = [images[1:] for images, _ in loader]  # the batches themselves are let go
    shown = torch.cat([piece for piece in slices if len(piece)])
    assert torch.equal(shown[:8], right[1:16:2])


def test_memory_that_nobody_holds_is_taken_again(photos):
    loader = make_dataloaders(photos, image_size=16, batch_size=2, num_workers=0)["val"]
    assert len({images.data_ptr() for images, _ in loader}) <= 2


def test_an_epoch_that_is_left_early_does_not_disturb_the_next(photos):
    loader = make_dataloaders(photos, image_size=16, batch_size=2, num_workers=2)["train"]
    right = expected(loader, 1)
    loader.batch_sampler.set_epoch(0)
    for _ in loader:
        break
    assert torch.equal(torch.cat([images for images, _ in loader]), right)


def test_batches_of_a_transform_of_ones_own_may_be_kept_too(photos, workers):
    own = v2.Compose([v2.ToImage(), v2.CenterCrop(12), v2.ToDtype(torch.float32, scale=True)])
    loader = make_dataloaders(photos, image_size=16, batch_size=1, val=own, num_workers=workers)[
        "val"
    ]
    kept = torch.cat([images for images, _ in list(loader)])
    assert torch.equal(kept, torch.stack([loader.dataset[i][0] for i in range(6)]))


def test_a_transform_may_make_several_views_of_an_image(photos, workers):
    def two_views(image):
        return [v2.functional.to_image(image), v2.functional.to_image(image).flip(-1)]

    loaders = make_dataloaders(photos, image_size=16, val=two_views, num_workers=workers)
    (first, second), labels = next(iter(loaders["val"]))
    assert torch.equal(first, second.flip(-1)) and len(labels) == 6


def test_transforms_of_ones_own_are_given_pil_images_and_batched_as_they_are(photos, workers):
    tutorial = transforms.Compose([transforms.CenterCrop(12), transforms.ToTensor()])
    loaders = make_dataloaders(photos, image_size=16, val=tutorial, num_workers=workers)
    images, labels = next(iter(loaders["val"]))
    assert images.shape == (6, 3, 12, 12)
    assert torch.equal(images[4], loaders["val"].dataset[4][0])
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
