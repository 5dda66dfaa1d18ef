"""Batches of nearest neighbours: a random row and the rows nearest to it that no batch has had yet.

The baseline that ProSampler (Yang et al., KDD 2023) is compared with there: the hardest batches, and on data of few
classes the most false negatives. The first batches of an epoch are tight, the last ones what is left over.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from negbank.bounds import Annotated, Count, Ge, Labels, Share, checked
from negbank.counter import Counter
from negbank.samplers.batches.graph import ProximityGraph, index_graph
from negbank.samplers.batches.planned import Planned
from negbank.snapshot import Snapshot


class Knn(Planned):
    """A row and its nearest rows that are still left of the epoch.

    Each batch grows from a random unused row over the index's kNN graph, every row at most once an epoch. The start
    takes its nearest unused neighbours in order; while rows are missing, so do the rows taken, in the order they came
    (breadth first). Where all neighbours of all of them are used, another random unused row joins and grows on. With
    `neighbors` ≥ B − 1 the first batch is exactly the start and its B − 1 nearest.

    Args:
        num_rows: N.
        batch_size: B, rows a batch; each is seen under two views.
        neighbors: K, neighbours of a row in the graph, searched once a snapshot; fewer where it holds fewer rows.
        chosen: share of a batch's rows that keep their place in it; the others change places at random.
        groups: integer labels (N,), negative for none, of which few may meet in a batch.
        max_per_group: rows of one label that may meet in a batch; with groups.
        drop_last: the last, smaller batch of an epoch is left out; its rows, drawn at random, wait for another epoch.
        counter: place of the random draws, of which each plan has its own.

    Raises:
        ValueError: for `neighbors` above N − 1, and as `Planned`.
    """

    _graph: ProximityGraph

    @checked
    def __init__(
        self,
        num_rows: int,
        batch_size: Annotated[int, Ge(2)] = 64,
        *,
        neighbors: Count = 100,
        chosen: Share = 1.0,
        groups: Annotated[Tensor | None, Labels()] = None,
        max_per_group: Count | None = None,
        drop_last: bool = True,
        counter: Counter = Counter.of(0),
    ) -> None:
        super().__init__(
            num_rows, batch_size, groups, max_per_group, drop_last=drop_last, chosen=chosen, counter=counter
        )
        if neighbors >= num_rows:
            raise ValueError(f"neighbors={neighbors}: expected 1..{num_rows - 1}, the other rows of the data set")
        self.neighbors = neighbors

    def prepare(self, snapshot: Snapshot, generator: torch.Generator) -> None:
        """Search the kNN graph."""
        self._graph = index_graph(snapshot, self.neighbors)

    def plan(self, rows: Tensor, count: int, snapshot: Snapshot, generator: torch.Generator) -> Tensor:
        """See `Planned.plan`. O(R·k), compiled."""
        starts = rows[torch.randperm(len(rows), generator=generator)]
        batches = torch.empty(count, self.batch_size, dtype=torch.int64)
        _grow(self._graph.neighbors.numpy(), self._graph.line.numpy(), starts.numpy(), batches.numpy())
        return batches


@numba.njit(cache=True, nogil=True)
def _grow(neighbors: np.ndarray, line: np.ndarray, starts: np.ndarray, batches: np.ndarray) -> None:
    count, size = batches.shape
    free = np.zeros(len(line), np.bool_)
    free[starts] = True
    at = 0
    for b in range(count):
        batch = batches[b]
        found, grown = 0, 0
        while found < size:
            if grown == found:  # nobody left to grow from: the next unused row
                while not free[starts[at]]:
                    at += 1
                batch[found] = starts[at]
                free[starts[at]] = False
                found += 1
                continue
            for j in neighbors[line[batch[grown]]]:
                if found == size:
                    break
                if free[j]:
                    batch[found] = j
                    free[j] = False
                    found += 1
            grown += 1
