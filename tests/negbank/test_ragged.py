"""Places in ragged lists, against literal loops."""

from __future__ import annotations

import torch

from negbank.ragged import place_in_group, starts, within


def test_every_element_has_its_place_in_its_own_list():
    counts = torch.tensor([3, 0, 2, 0])
    assert starts(counts).tolist() == [0, 3, 3, 5]
    assert within(counts).tolist() == [0, 1, 2, 0, 1]
    assert within(counts[:0]).tolist() == []


def test_places_in_groups_are_those_of_a_sorted_list():
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        group, first, second = torch.randint(5, (3, 30), generator=generator)
        keys = [(-int(first[j]), int(second[j]), j) for j in range(30)]
        found = place_in_group(group, -first, second).tolist()
        for i in range(30):
            assert found[i] == sorted(keys[j] for j in range(30) if group[j] == group[i]).index(keys[i])
