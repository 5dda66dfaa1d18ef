"""Batches that are unions of communities: K rows near to each other, B / K such groups in a batch.

After B3 (Thirukovalluru et al. 2025, arXiv 2505.11293): hard negatives for every row, and not all of one kind, as a
batch of one cluster has them. The communities of a plan are its rows cut into parts of exactly K,

    balanced    by k-means that carries what is left over (partition.py); no graph and no other package
    metis       by METIS (Karypis & Kumar 1998) on the graph of each row's neighbours of rank skip .. skip + width,
                where what is too much in a part goes to the nearest part that has room

and a batch is B / K of them, drawn at random. B3 skips the nearest rows as likely false negatives; where documents that
are nearly the same are told apart, which is what is asked of a retriever, these are the best ones.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from negbank.bounds import Annotated, Count, Ge, Labels, Share, checked
from negbank.counter import Counter
from negbank.ragged import place_in_group
from negbank.samplers.batches.graph import ProximityGraph, index_graph
from negbank.samplers.batches.partition import QUICK, cut
from negbank.samplers.batches.planned import Planned
from negbank.snapshot import Snapshot

USUAL = 16
"""Rows of a community where nobody says it."""


class Communities(Planned):
    """Unions of communities of near rows, as B3 has them.

    Args:
        num_rows: N.
        batch_size: B, rows a batch, a multiple of size.
        size: K, rows of a community; None: 16, or else the largest divisor of batch_size below, or all of it.
        partition: balanced: balanced k-means; metis: of the kNN graph, by pymetis.
        width: neighbours of a row in the graph of metis.
        skip: its nearest so many are left out of it.
        chosen: share of a batch's rows that keep their place in it; the others change places at random.
        groups: integer labels (N,), negative for none, of which few may meet in a batch.
        max_per_group: rows of one label that may meet in a batch; with groups.
        drop_last: the last, smaller batch of an epoch is left out; its rows, drawn at random, wait for another epoch.
        counter: place of the random draws, of which each plan has its own.

    Raises:
        ValueError: for a size that does not divide batch_size, skip without metis, and as `Planned`.
        ImportError: for metis without pymetis.
    """

    @checked
    def __init__(
        self,
        num_rows: int,
        batch_size: Annotated[int, Ge(2)] = 64,
        *,
        size: Annotated[int, Ge(2)] | None = None,
        partition: Literal["balanced", "metis"] = "balanced",
        width: Count = 30,
        skip: Annotated[int, Ge(0)] = 0,
        chosen: Share = 1.0,
        groups: Annotated[Tensor | None, Labels()] = None,
        max_per_group: Count | None = None,
        drop_last: bool = True,
        counter: Counter = Counter.of(0),
    ) -> None:
        size = size or next((k for k in range(USUAL, 1, -1) if batch_size % k == 0), batch_size)
        if batch_size % size:
            raise ValueError(f"size={size}: expected a divisor of batch_size={batch_size}")
        if skip and partition != "metis":
            raise ValueError(f"skip={skip}: is of the graph that partition=metis cuts; leave it out, or take metis")
        super().__init__(
            num_rows, batch_size, groups, max_per_group, drop_last=drop_last, chosen=chosen, counter=counter
        )
        self.size, self.width, self.skip = size, width, skip
        self._metis: Any = _metis() if partition == "metis" else None
        self.searches = self._metis is not None

    def prepare(self, snapshot: Snapshot, generator: torch.Generator) -> None:
        """Search the neighbours that METIS cuts by."""
        if self._metis is not None:
            graph = index_graph(snapshot, self.skip + self.width)
            self._graph = ProximityGraph(graph.neighbors[:, self.skip :], graph.line)

    def plan(self, rows: Tensor, count: int, snapshot: Snapshot, generator: torch.Generator) -> Tensor:
        """See `Planned.plan`."""
        vectors = snapshot.vectors[rows.to(snapshot.vectors.device)]
        if self._metis is None:
            parts = cut(vectors, self.size, generator, QUICK)
        else:
            parts = self._parts(rows, vectors.cpu(), generator)
        order = torch.randperm(len(parts), generator=generator)[: count * (self.batch_size // self.size)]
        return rows[parts[order]].view(-1, self.batch_size)

    def _parts(self, rows: Tensor, vectors: Tensor, generator: torch.Generator) -> Tensor:
        """METIS's parts of rows (R,), made equal: (R // K, K) positions among them."""
        starts, ends = adjacency(rows, self._graph)
        count = len(rows) // self.size
        seed = int(torch.randint(2**31 - 1, (), generator=generator))
        graph = self._metis.CSRAdjacency(starts.numpy(), ends.numpy())
        _, part = self._metis.part_graph(count, adjacency=graph, options=self._metis.Options(seed=seed))
        return equal_parts(torch.as_tensor(np.asarray(part)), vectors, self.size, count)


def adjacency(rows: Tensor, graph: ProximityGraph) -> tuple[Tensor, Tensor]:
    """The graph among rows (R,), each edge both ways and once, as offsets (R + 1,) and ends (E,), int32 positions."""
    place = torch.full((len(graph.line),), -1, dtype=torch.int64)
    place[rows] = torch.arange(len(rows))
    ends = place[graph.neighbors[graph.line[rows].long()].long()]
    begins = torch.arange(len(rows))[:, None].expand_as(ends)
    inside = ends >= 0
    one, other = begins[inside], ends[inside]
    edges = torch.cat((one * len(rows) + other, other * len(rows) + one)).unique()
    starts = torch.searchsorted(edges, torch.arange(len(rows) + 1) * len(rows))
    return starts.to(torch.int32), (edges % len(rows)).to(torch.int32)


def equal_parts(part: Tensor, vectors: Tensor, size: int, count: int) -> Tensor:
    """Parts of exactly `size` rows: (count, size) positions.

    A part that is too large gives up the rows least like its mean, each to the part most like it that has room.

    Args:
        part: (R,) which part each row is in, of any sizes.
        vectors: (R, D) unit rows.
        size, count: R ≥ size · count; what is left over is in no part.
    """
    mean = torch.zeros(count, vectors.shape[1]).index_add_(0, part, vectors)
    mean = torch.nn.functional.normalize(mean, dim=1)
    close = (vectors * mean[part]).sum(1)
    moves = (place_in_group(part, -close) >= size).nonzero().flatten()
    room = (size - torch.bincount(part, minlength=count)).clamp(min=0)
    found, places = part.clone(), room.nonzero().flatten()
    found[moves] = count
    likes = vectors[moves] @ mean[places].T
    for row in likes.max(1).values.argsort(descending=True).tolist() if len(places) else ():
        if bool((room[places] <= 0).all()):
            break
        best = int(likes[row].masked_fill(room[places] <= 0, -torch.inf).argmax())
        found[moves[row]] = places[best]
        room[places[best]] -= 1
    kept = found < count
    return found.argsort(stable=True)[: int(kept.sum())].view(count, size)


def _metis() -> Any:
    try:
        import pymetis
    except ImportError:
        raise ImportError(
            "batches.partition=metis: needs pymetis: pip install 'pymetis>=2025.2', or take partition=balanced"
        ) from None
    return pymetis
