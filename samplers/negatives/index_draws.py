"""Index draws of a step, before its drawn rows are encoded: from the newest snapshot, uniform before the first.

The query of an anchor row is its bank row, known before any forward pass, or its fresh embedding: then the views are
encoded first and the drawn rows in a second pass, in an encoder without batch statistics. Where anchors are of another
encoder than the rows that are drawn, their bank rows are of another bank, and the trainer gives them. The density is
always that of the query that was used. Draws are each row's own, or one pool for the whole batch (proposals/pooled.py).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from negbank.exclusions import Exclusions
from negbank.proposals import Anchors, Pooled, PooledDistribution, Proposal, ProposalDistribution, Uniform
from negbank.snapshot import Snapshot

QUERIES = ("bank", "fresh")


class IndexDraws:
    """Binds a proposal to every new snapshot and draws from it.

    Args:
        bind: snapshot → proposal; None when nothing is drawn.
        draws: of each row, or with `pool` of the whole batch.
        pool: whether all anchors share one pool.
        stratified: of a pool, see `Pooled`.
        query: "bank" or "fresh".
        exclude: D_i of the uniform draws before the first snapshot.
        generator: of all draws; on the CPU.

    Raises:
        ValueError: for an unknown query, or draws < 1 with a proposal.
    """

    def __init__(
        self,
        bind: Callable[[Snapshot], Proposal] | None,
        *,
        draws: int,
        pool: bool,
        stratified: bool,
        query: str,
        exclude: Exclusions,
        generator: torch.Generator | None,
    ) -> None:
        check_query(query)
        if bind is not None and draws < 1:
            raise ValueError(f"draws={draws}: expected at least 1")
        self.count, self.pool = 0 if bind is None else draws, pool
        self.fresh = query == "fresh" and bind is not None
        self.snapshot: Snapshot | None = None
        self._bind, self._stratified, self._generator = bind, stratified, generator
        self._proposal: Proposal = Uniform(exclude=exclude)

    def update(self, snapshot: Snapshot) -> None:
        """Draw from this version of the bank from now on."""
        self.snapshot = snapshot
        if self._bind is not None:
            self._proposal = self._bind(snapshot)

    def queries(self, rows: Tensor, given: Tensor | None) -> Tensor:
        """What the index is asked with for rows (B,): (B, D), as given or else the rows of the snapshot itself.

        Of no meaning before the first snapshot.

        Raises:
            ValueError: when fresh embeddings are asked for and nothing is given.
        """
        require_queries(given, wanted=self.fresh)
        if self.snapshot is None:
            return rows.new_zeros(len(rows), 1, dtype=torch.float32)
        return self.snapshot.vectors[rows] if given is None else given.detach().float()

    def __call__(self, rows: Tensor, queries: Tensor) -> tuple[Tensor, ProposalDistribution | PooledDistribution]:
        """Ids (B, draws), or the pool's (1, draws), and the distribution they are from."""
        anchors = Anchors(rows, queries)
        if not self.pool:
            distribution = self._proposal(anchors)
            return distribution.sample(self.count, generator=self._generator), distribution
        pooled = Pooled(self._proposal, stratified=self._stratified)(anchors)
        return pooled.sample(self.count, generator=self._generator)[None], pooled

    def log_prob(self, distribution: ProposalDistribution | PooledDistribution, ids: Tensor, count: int) -> Tensor:
        """log q of each of B = `count` rows for every id of ids (n,): (B, n), or (1, n) of a pool."""
        return distribution.log_prob(ids)[None] if self.pool else distribution.log_prob(ids.expand(count, -1))


def check_query(query: str) -> None:
    """Raise ValueError for an unknown kind of query."""
    if query not in QUERIES:
        raise ValueError(f"query={query!r}: expected one of {', '.join(QUERIES)}")


def require_queries(queries: Tensor | None, *, wanted: bool) -> None:
    """Raise ValueError when fresh queries are wanted and not given."""
    if wanted and queries is None:
        raise ValueError("queries=None: query='fresh' needs the fresh embeddings of the rows; pass them to draw()")
