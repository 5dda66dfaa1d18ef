"""Index draws of a step, before its drawn rows are encoded: from the newest snapshot, uniform before the first.

The query of an anchor row is its bank row, known before any forward pass, or its fresh embedding: then the views are
encoded first and the drawn rows in a second pass, in an encoder without batch statistics. Where anchors are of another
encoder than the rows that are drawn, their bank rows are of another bank, and the trainer gives them. The density is
always that of the query that was used. Draws are each row's own, or one pool for the whole batch (proposals/pooled.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from negbank.exclusions import Exclusions
from negbank.proposals import Anchors, Pooled, PooledDistribution, Proposal, ProposalDistribution, Uniform
from negbank.snapshot import Snapshot


class Drawn(NamedTuple):
    """ids (B, n) that each of B rows drew, or (1, M) of their pool, and the distribution that they are from."""

    ids: Tensor
    distribution: ProposalDistribution | PooledDistribution

    @property
    def pooled(self) -> bool:
        """Whether all rows share the draws."""
        return isinstance(self.distribution, PooledDistribution)

    def part(self, rows: slice) -> Drawn:
        """That of some of the rows; a pool is everybody's."""
        if isinstance(self.distribution, PooledDistribution):
            return self
        return Drawn(self.ids[rows], self.distribution[rows])

    def log_prob(self, ids: Tensor, rows: int) -> Tensor:
        """log q of each of B = `rows` rows for every id of ids (n,): (B, n), or (1, n) of a pool."""
        if isinstance(self.distribution, PooledDistribution):
            return self.distribution.log_prob(ids)[None]
        return self.distribution.log_prob(ids.expand(rows, -1))


class IndexDraws:
    """Binds a proposal to every new snapshot and draws from it.

    Args:
        bind: snapshot → proposal; None when nothing is drawn.
        draws: of each row, or with `pool` of the whole batch.
        pool: whether all anchors share one pool.
        stratified: of a pool, see `Pooled`.
        fresh: whether rows are drawn for by their fresh embeddings.
        exclude: D_i of the uniform draws before the first snapshot.
    """

    def __init__(
        self,
        bind: Callable[[Snapshot], Proposal] | None,
        *,
        draws: int,
        pool: bool,
        stratified: bool,
        fresh: bool,
        exclude: Exclusions,
    ) -> None:
        self.count, self.pool = 0 if bind is None else draws, pool and bind is not None
        self.fresh = fresh and bind is not None
        self.snapshot: Snapshot | None = None
        self._bind, self._stratified = bind, stratified
        self._proposal: Proposal = Uniform(exclude=exclude)

    def update(self, snapshot: Snapshot) -> None:
        """Draw from this version of the bank from now on."""
        self.snapshot = snapshot
        if self._bind is not None:
            self._proposal = self._bind(snapshot)

    def queries(self, rows: Tensor, given: Tensor | None) -> Tensor:
        """See `asked`, of the snapshot's rows; of no meaning before the first snapshot."""
        vectors = None if self.snapshot is None else self.snapshot.vectors
        return asked(rows, given, vectors, fresh=self.fresh)

    def __call__(self, rows: Tensor, queries: Tensor, generator: torch.Generator) -> Drawn:
        """What rows (B,) draw, asking with queries (B, D)."""
        anchors = Anchors(rows, queries)
        if not self.pool:
            distribution = self._proposal(anchors)
            return Drawn(distribution.sample(self.count, generator=generator), distribution)
        pooled = Pooled(self._proposal, stratified=self._stratified)(anchors)
        return Drawn(pooled.sample(self.count, generator=generator)[None], pooled)


def asked(rows: Tensor, given: Tensor | None, vectors: Tensor | None, *, fresh: bool) -> Tensor:
    """What an index is asked with for rows (B,): queries (B, D) as given, or else their own rows of vectors (N, D).

    Zeros (B, 1) where there is nothing to ask yet.

    Raises:
        ValueError: when fresh embeddings are asked for and nothing is given.
    """
    if fresh and given is None:
        raise ValueError("queries=None: query='fresh' needs the fresh embeddings of the rows; pass them to draw()")
    if vectors is None:
        return rows.new_zeros(len(rows), 1, dtype=torch.float32)
    return vectors[rows] if given is None else given.detach().float()
