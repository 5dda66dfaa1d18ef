from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from samplers.batches import Uniform


def make(seed=0, **options):
    return Uniform(50, 8, generator=torch.Generator().manual_seed(seed), **options)


@pytest.mark.parametrize("drop_last", [True, False])
def test_every_row_once_an_epoch_in_a_new_order_each_time(drop_last):
    sampler = make(drop_last=drop_last)
    epochs = [list(sampler) for _ in range(3)]
    for batches in epochs:
        assert len(batches) == len(sampler) == (6 if drop_last else 7)
        rows = [row for batch in batches for row in batch]
        assert len(set(rows)) == len(rows) == (48 if drop_last else 50)
    assert epochs[0] != epochs[1] != epochs[2]
    assert list(make(drop_last=drop_last)) == epochs[0]


def test_a_lone_last_row_is_no_batch():
    assert [len(b) for b in Uniform(9, 4, drop_last=False)] == [4, 4]


def test_it_goes_into_a_dataloader_with_workers():
    loader = DataLoader(TensorDataset(torch.arange(50)), batch_sampler=make(), num_workers=2)
    assert [batch[0].tolist() for batch in loader] == list(make())


def test_it_resumes_in_the_middle_of_an_epoch():
    sampler = make()
    stream = iter(sampler)
    for _ in range(4):
        next(stream)
    state = sampler.state_dict()
    expected = list(stream) + list(sampler)
    other = make(seed=1)
    other.load_state_dict(state)
    assert list(other) + list(other) == expected


def test_set_epoch_starts_that_epoch():
    sampler = make()
    first, second = list(sampler), list(sampler)
    sampler.set_epoch(0)
    assert list(sampler) == first
    assert list(sampler) == second


@pytest.mark.parametrize("batch_size", [0, 1, 51])
def test_a_batch_that_cannot_be_filled_is_refused(batch_size):
    with pytest.raises(ValueError, match=f"batch_size={batch_size}: expected 2..50"):
        Uniform(50, batch_size)
