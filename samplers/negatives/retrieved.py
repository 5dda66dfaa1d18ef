"""What a snapshot finds for the rows of a step: the k best rows of D_i, with all that groups may hide among them."""

from __future__ import annotations

import torch
from torch import Tensor

from negbank.bank import NO_ROW
from negbank.counter import uniforms
from negbank.exclusions import Exclusions
from negbank.index import Neighbors
from negbank.proposals.contract import Anchors, search_allowed
from negbank.snapshot import Snapshot

REACH = 1024
"""How far the search goes for k rows outside of an anchor's group."""


def retrieve(snapshot: Snapshot, exclude: Exclusions, anchors: Anchors, k: int) -> Neighbors:
    """The k best ids of D_i and their scores (A, n), n ≥ k where there are so many, by (−score, id); −1 for the others.

    Groups may have the search look further than k, up to `REACH`.
    """
    reach = k
    while True:
        found, inside = search_allowed(snapshot.index, exclude, anchors, k, reach=reach)
        if reach >= min(REACH, len(snapshot.index)) or bool((inside.sum(1) == k).all()):
            return Neighbors(torch.where(inside, found.ids, NO_ROW), found.scores)
        reach = min(4 * reach, REACH)


def some(ids: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """The first `count` of ids (B, n) that −1 pads, or with a generator random ones, without repeats: (B, ≤ count)."""
    if generator is None:
        keys = torch.arange(ids.shape[1], 0, -1, dtype=torch.float64, device=ids.device).expand(ids.shape)
    else:
        keys = uniforms(tuple(ids.shape), generator=generator, device=ids.device)
    chosen = torch.where(ids == NO_ROW, -1.0, keys).topk(min(count, ids.shape[1])).indices
    return ids.gather(1, chosen)
