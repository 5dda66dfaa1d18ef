"""ProSampler: batches are random walks with restart on a proximity graph.

Yang et al., BatchSampler: Sampling Mini-Batches for Contrastive Learning in Vision, Language, and Graphs (KDD 2023);
ProSampler is its form for vision. Every row has K neighbours N_i, the most similar of M uniform candidates (graph.py).
A batch is what a walk from a random row u has visited when it has seen B rows:

    next = u with probability α, else uniform over N_current        α_e = max(α_min, α_0 − d·e) in epoch e

Large M and α give neighbourhoods of u (hard, more false negatives), small ones uniform batches. After a restart the
walk moves on to a neighbour of u, and a restart visits nothing new: here a step is one move, from u with probability
α and from the current row otherwise, which visits the same rows by the same law.

Each row once an epoch: the walk of a batch runs on the graph of the rows that are not in an earlier batch; edges to
others leave the graph as they are met. A walk is stuck where no edge is left, or when 16 f / max(1 − α, 1/16) moves
have found nothing new, f the rows found since u. It then jumps to a fresh random row, which is u from then on.
(Published code never ends there.)
"""

from __future__ import annotations

from typing import Literal

import numba
import numpy as np
import torch
from torch import Tensor

from negbank.bounds import Annotated, Count, Ge, Labels, Share, checked
from negbank.counter import Counter, stream, uniform
from negbank.samplers.batches.graph import ProximityGraph, candidate_graph, index_graph
from negbank.samplers.batches.planned import Planned
from negbank.snapshot import Snapshot

PATIENCE = 16.0
"""Moves without a new row, for each row found, after which a walk is stuck."""


class ProSampler(Planned):
    """Random walks with restart on the graph of each row's neighbours among random candidates.

    Args:
        num_rows: N.
        batch_size: B, rows a batch; each is seen under two views.
        candidates: M, random rows the neighbours are chosen from; None: all, by the index.
        neighbors: K, neighbours of a row in the graph; fewer where the snapshot holds fewer rows.
        restart: α₀, probability to go back to the walk's first row.
        restart_decay: what α falls by with every epoch.
        restart_min: below which α does not fall.
        cover: epoch: every row at most once an epoch; walk, as published: batches overlap, N // B of them an epoch,
            each from a row that no batch of the plan has had yet; some rows come several times and some not at all.
        chosen: share of a batch's rows that keep their place in it; the others change places at random.
        groups: integer labels (N,), negative for none, of which few may meet in a batch.
        max_per_group: rows of one label that may meet in a batch; with groups.
        drop_last: the last, smaller batch of an epoch is left out; its rows, drawn at random, wait for another epoch.
        counter: place of the random draws, of which each plan has its own.

    Raises:
        ValueError: for K > M, M > N − 1, a `restart_min` above `restart`, and as `Planned`.
    """

    _graph: ProximityGraph

    @checked
    def __init__(
        self,
        num_rows: int,
        batch_size: Annotated[int, Ge(2)] = 64,
        *,
        candidates: Count | None = 1000,
        neighbors: Count = 100,
        restart: Share = 0.2,
        restart_decay: Share = 0.02,
        restart_min: Share = 0.05,
        cover: Literal["epoch", "walk"] = "epoch",
        chosen: Share = 1.0,
        groups: Annotated[Tensor | None, Labels()] = None,
        max_per_group: Count | None = None,
        drop_last: bool = True,
        counter: Counter = Counter.of(0),
    ) -> None:
        if chosen < 1 and cover == "walk":
            raise ValueError(f"chosen={chosen}: rows of cover=walk come again, and could not change places; take epoch")
        self.disjoint = cover == "epoch"
        super().__init__(
            num_rows, batch_size, groups, max_per_group, drop_last=drop_last, chosen=chosen, counter=counter
        )
        others = num_rows - 1
        if candidates is not None and candidates > others:
            raise ValueError(f"candidates={candidates}: expected 1..{others}, the other rows; None takes the index's")
        if neighbors > (candidates or others):
            raise ValueError(
                f"neighbors={neighbors}: expected 1..{candidates or others}, the rows they are chosen from; lower it"
                + ("" if candidates is None else " or raise candidates")
            )
        if restart_min > restart:
            raise ValueError(f"restart={restart}, restart_min={restart_min}: expected restart_min <= restart")
        self.candidates, self.neighbors = candidates, neighbors
        self.restart, self.restart_decay, self.restart_min = restart, restart_decay, restart_min

    def prepare(self, snapshot: Snapshot, generator: torch.Generator) -> None:
        """Build the proximity graph."""
        if self.candidates is None:
            self._graph = index_graph(snapshot, self.neighbors)
        else:
            self._graph = candidate_graph(snapshot, self.candidates, self.neighbors, generator=generator)

    def plan(self, rows: Tensor, count: int, snapshot: Snapshot, generator: torch.Generator) -> Tensor:
        """See `Planned.plan`; all walks of the plan in one compiled loop."""
        alpha = max(self.restart_min, self.restart - self.restart_decay * self._epoch)
        starts = rows[torch.randperm(len(rows), generator=generator)]
        batches = torch.empty(count, self.batch_size, dtype=torch.int64)
        neighbors, line = self._graph.neighbors.numpy(), self._graph.line.numpy()
        if self.disjoint:  # which takes edges out of it
            neighbors = neighbors.copy()
        _walk(neighbors, line, starts.numpy(), alpha, self.disjoint, stream(generator), batches.numpy())
        return batches


@numba.njit(cache=True, nogil=True)
def _walk(
    neighbors: np.ndarray,
    line: np.ndarray,
    starts: np.ndarray,
    alpha: float,
    disjoint: bool,
    state: np.ndarray,
    batches: np.ndarray,
) -> None:
    count, size = batches.shape
    degree = np.full(neighbors.shape[0], neighbors.shape[1], np.int32)
    taken = np.full(len(line), count, np.int32)  # by which batch; none yet: −1; rows outside the plan: count
    taken[starts] = -1
    at = 0
    for b in range(count):
        batch = batches[b]
        found, since = 0, 0
        start = current = starts[0]
        moves = 0.0
        while found < size:
            if moves < 1.0:
                while taken[starts[at]] >= 0:
                    at += 1
                row = start = current = starts[at]
                since = 0
            else:
                u = uniform(state)
                if u < alpha:
                    current, u = start, u / alpha
                else:
                    u = (u - alpha) / (1.0 - alpha)
                i = line[current]
                if degree[i] == 0:
                    moves = 0.0 if current == start else moves
                    current = start
                    continue
                n = int(u * degree[i])
                row = neighbors[i, n]
                if disjoint and taken[row] >= 0 and taken[row] != b:  # an edge to a used row leaves the graph
                    degree[i] -= 1
                    neighbors[i, n] = neighbors[i, degree[i]]
                    continue
                current = row
                moves -= 1.0
                if taken[row] == b:
                    continue
            batch[found], taken[row] = row, b
            found += 1
            since += 1
            moves = PATIENCE * since / max(1.0 - alpha, 1.0 / 16.0)
