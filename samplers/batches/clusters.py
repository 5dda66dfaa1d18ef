"""Batches from within one cluster of the bank (Merrick 2024, arXiv 2407.18887).

Spherical k-means over the rows of a plan; a cluster of n rows gives n // B batches, drawn at random within it. What is
left over of all clusters is dealt out in their order, so that no row waits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from negbank.bounds import Annotated, Count, Ge, Labels, Share, checked
from negbank.counter import Counter
from negbank.index.kmeans import kmeans
from negbank.ragged import place_in_group
from negbank.samplers.batches.planned import Planned
from negbank.snapshot import Snapshot


class Clusters(Planned):
    """Random batches from within one k-means cluster each.

    Args:
        num_rows: N.
        batch_size: B, rows a batch.
        size: rows of a cluster on average; at least batch_size.
        chosen: share of a batch's rows that keep their place in it; the others change places at random.
        groups: integer labels (N,), negative for none, of which few may meet in a batch.
        max_per_group: rows of one label that may meet in a batch; with groups.
        drop_last: the last, smaller batch of an epoch is left out; its rows, drawn at random, wait for another epoch.
        counter: place of the random draws, of which each plan has its own.

    Raises:
        ValueError: for a size below batch_size, and as `Planned`.
    """

    searches = False

    @checked
    def __init__(
        self,
        num_rows: int,
        batch_size: Annotated[int, Ge(2)] = 64,
        *,
        size: Count = 1024,
        chosen: Share = 1.0,
        groups: Annotated[Tensor | None, Labels()] = None,
        max_per_group: Count | None = None,
        drop_last: bool = True,
        counter: Counter = Counter.of(0),
    ) -> None:
        if size < batch_size:
            raise ValueError(f"size={size}: expected at least batch_size={batch_size}; take batches.type=communities")
        super().__init__(
            num_rows, batch_size, groups, max_per_group, drop_last=drop_last, chosen=chosen, counter=counter
        )
        self.size = size

    def plan(self, rows: Tensor, count: int, snapshot: Snapshot, generator: torch.Generator) -> Tensor:
        """See `Planned.plan`."""
        rows = rows[torch.randperm(len(rows), generator=generator)]
        vectors = snapshot.vectors[rows.to(snapshot.vectors.device)]
        cells = kmeans(vectors, max(1, len(rows) // self.size), generator=generator)
        cell, sizes = cells.assignment.cpu(), cells.sizes.cpu()
        whole = place_in_group(cell) < (sizes // self.batch_size * self.batch_size)[cell]
        order = torch.where(whole, cell, len(sizes) + cell).argsort(stable=True)  # what is left over comes last
        return rows[order[: count * self.batch_size]].view(-1, self.batch_size)
