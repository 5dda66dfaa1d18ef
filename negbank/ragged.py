"""Lists of different lengths, one after the other: where each begins, and the place of every element in its own.

counts 3, 0, 2    starts 0, 3, 3    within 0, 1, 2, 0, 1
"""

from __future__ import annotations

import torch
from torch import Tensor


def starts(counts: Tensor) -> Tensor:
    """Where each of lists of so many elements (n,) begins: (n,)."""
    return counts.cumsum(0) - counts


def within(counts: Tensor) -> Tensor:
    """The place of every element in its own list, from 0: (Σ counts,)."""
    return torch.arange(int(counts.sum()), device=counts.device) - starts(counts).repeat_interleave(counts)


def place_in_group(group: Tensor, *keys: Tensor) -> Tensor:
    """The place of every element among those of its group, in the ascending order of keys: (n,) int64, from 0.

    Args:
        group: (n,) numbers from 0.
        keys: (n,) each, the first of them first; elements that are equal in all stay in their order.
    """
    order = torch.arange(len(group), device=group.device)
    for key in (*reversed(keys), group):
        order = order[key[order].argsort(stable=True)]
    place = torch.empty_like(order)
    place[order] = within(torch.bincount(group))
    return place
