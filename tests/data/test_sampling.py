import pytest
import torch

from resnet_ft.data.batches import EpochBatchSampler


def test_every_epoch_has_each_index_once_in_an_order_of_its_own():
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


def test_a_pass_can_begin_amid_an_epoch_once():
    sampler = EpochBatchSampler(10, 4, shuffle=True, slots=2)
    whole = list(sampler)
    sampler.set_epoch(0)
    sampler.start_at(2)
    assert list(sampler) == whole[2:]
    sampler.set_epoch(0)
    assert list(sampler) == whole


def test_without_shuffling_every_pass_is_epoch_zero_in_order():
    sampler = EpochBatchSampler(3, 2)
    for _ in range(2):
        assert [[key[:2] for key in batch] for batch in sampler] == [[(0, 0), (0, 1)], [(0, 2)]]


@pytest.mark.parametrize(
    ("count", "size", "lengths"),
    [(9, 4, [4, 5]), (10, 4, [4, 4, 2]), (8, 4, [4, 4]), (1, 4, [1]), (3, 1, [1, 1, 1])],
)
def test_a_last_batch_of_one_joins_the_batch_before(count, size, lengths):
    sampler = EpochBatchSampler(count, size, shuffle=True, join_last=True)
    assert [len(batch) for batch in sampler] == lengths
    assert len(sampler) == len(lengths)


def of_process(rank, count, monkeypatch, **options):
    """The batches and places of one of several processes, as torchrun would tell it."""
    monkeypatch.setenv("WORLD_SIZE", str(count))
    monkeypatch.setenv("RANK", str(rank))
    sampler = EpochBatchSampler(11, 4, **options)
    return [[key.index for key in batch] for batch in sampler], sampler.places()


def test_processes_share_every_batch(monkeypatch):
    whole = [[key.index for key in batch] for batch in EpochBatchSampler(11, 4, shuffle=True)]
    shares = [of_process(rank, 2, monkeypatch, shuffle=True)[0] for rank in range(2)]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert parts == [batch[0::2], batch[1::2]]


def test_places_say_where_the_samples_of_a_process_stand_in_the_whole(monkeypatch):
    found = torch.full((11,), -1)
    for rank in range(4):
        batches, places = of_process(rank, 4, monkeypatch)
        found[places] = torch.tensor([index for batch in batches for index in batch])
    assert found.tolist() == list(range(11))


def test_no_process_is_without_a_share_of_a_training_batch(monkeypatch):
    lengths = [
        [len(batch) for batch in of_process(rank, 4, monkeypatch, join_last=True)[0]]
        for rank in range(4)
    ]
    # 11 images in batches of 4 leave 3, too few for four processes: they join the batch before.
    assert lengths == [[1, 2], [1, 2], [1, 2], [1, 1]]
