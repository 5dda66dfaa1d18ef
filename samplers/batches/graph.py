"""The proximity graph that batches are grown on: K neighbours of every row that a snapshot holds.

From the index: its K nearest. From candidates (Yang et al., KDD 2023, §4.1): the K most similar of M other rows drawn
uniformly, so that M goes from chance (M = K) to the kNN graph (M = n − 1). Row j with r rows nearer to i is kept with

    P(j ∈ N_i) = M/(n−1) · P(Hypergeometric(n−2, r, M−1) < K)                                    (r = 0, 1, …, n−2)

Here the rows of a block, drawn at random, share one candidate set, so that a block's scores are one matrix product;
a row that gathers M candidates of its own moves M rows for it. Each row's candidates are still M others, uniform
without replacement: P(j ∈ N_i) is the same. What changes is joint: rows of one block choose among the same M + 1 rows,
so that a candidate near to many of them is a neighbour of many. The sets are cut from permutations of all rows, so that
every row is offered to as many blocks as any other, give or take one a permutation.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from negbank.snapshot import Snapshot

BLOCK = 64
"""Rows of a block at most; less for small M, so that every row is a candidate of 16 blocks or more."""
SCORES = 1 << 20
"""Scores held at once."""


class ProximityGraph(NamedTuple):
    """neighbors (n, K) int32 ids of rows, never the own one, and line (N,) int32 of each row, −1 if not held."""

    neighbors: Tensor
    line: Tensor


def index_graph(snapshot: Snapshot, k: int) -> ProximityGraph:
    """The k nearest of every row from the index, nearest first; fewer where the snapshot holds no more than k rows."""
    found = snapshot.index.graph(min(k, len(snapshot.index) - 1))
    return ProximityGraph(found.ids.cpu().to(torch.int32), _lines(snapshot))


def candidate_graph(
    snapshot: Snapshot, candidates: int, k: int, *, generator: torch.Generator, block: int | None = None
) -> ProximityGraph:
    """The k most similar of M uniform candidates of every row, in no order.

    Args:
        snapshot: n rows; where M > n − 1, all other rows are candidates.
        candidates: M.
        k: at most M.
        generator: on the CPU.
        block: rows that share their candidates: M / 16 within 1..`BLOCK` by default. With 1, each row has its own.
    """
    vectors = snapshot.vectors if snapshot.rows is None else snapshot.vectors[snapshot.rows]
    count, device = len(vectors), vectors.device
    candidates = min(candidates, count - 1)
    k = min(k, candidates)
    block = max(1, min(candidates // 16, BLOCK)) if block is None else block
    blocks = -(-count // block)
    order = torch.randperm(count, generator=generator)
    members = torch.cat((order, order[: blocks * block - count])).view(blocks, block)  # the last one filled up
    sets = _sets(count, candidates + 1, blocks, generator)
    at_once = max(1, SCORES // (block * (candidates + 1)))
    parts = []
    for rows, offered in zip(members.to(device).split(at_once), sets.to(device).split(at_once)):
        theirs = vectors.index_select(0, offered.flatten()).view(*offered.shape, -1)  # much faster than indexing
        scores = vectors[rows] @ theirs.mT
        own = offered[:, None, :] == rows[:, :, None]
        own[..., -1] |= ~own.any(-1)  # the last one is for the rows that are themselves among the candidates
        best = _largest(scores.masked_fill_(own, -torch.inf).flatten(0, 1), k)
        parts.append(offered.gather(1, best.reshape(len(rows), -1)).view(-1, k).to(torch.int32).cpu())
    neighbors = torch.empty(count, k, dtype=torch.int32)
    neighbors[order] = torch.cat(parts)[:count]
    if snapshot.rows is not None:
        neighbors = snapshot.rows.cpu().to(torch.int32)[neighbors]
    return ProximityGraph(neighbors, _lines(snapshot))


def _largest(scores: Tensor, k: int) -> Tensor:
    """Columns of the k largest scores of each row, in no order: (n, k). NumPy selects with vector instructions."""
    if scores.is_cuda:
        return scores.topk(k, dim=1, sorted=False).indices
    cut = scores.shape[1] - k
    return torch.from_numpy(np.argpartition(scores.numpy(), cut, axis=1)[:, cut:])


def _sets(count: int, size: int, sets: int, generator: torch.Generator) -> Tensor:
    """Sets (sets, size) of distinct positions, each marginally uniform, cut from permutations of 0..count−1."""
    whole = count // size
    cuts = [torch.randperm(count, generator=generator)[: whole * size] for _ in range(-(-sets // whole))]
    return torch.cat(cuts).view(-1, size)[:sets]


def _lines(snapshot: Snapshot) -> Tensor:
    if snapshot.rows is None:
        return torch.arange(len(snapshot), dtype=torch.int32)
    line = torch.full((len(snapshot),), -1, dtype=torch.int32)
    line[snapshot.rows.cpu()] = torch.arange(len(snapshot.rows), dtype=torch.int32)
    return line
