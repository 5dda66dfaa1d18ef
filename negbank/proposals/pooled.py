"""One pool of rows for all A anchors of a batch, drawn from the mean of their proposals:

    q̄(j) = (1/A) Σ_a q_a(j)

Every anchor sees every row of the pool, so that M encodings give each anchor M candidates. The draws are stratified: an
anchor gives ⌊M/A⌋ or ⌈M/A⌉ of them, and which ones is left to chance. Each draw has the law q̄ exactly; together they
vary less than independent ones (the deterministic mixture of Veach & Guibas 1995, home of the balance heuristic). For a
chain each proposal must have the law q̄ whatever was proposed before: `stratified=False` draws the anchors, too, anew.

For a single anchor i. A pool may hold rows outside D_i: another anchor may have drawn row i itself, or a positive of i.
They are to be masked, and the rest weighed by q̄ as it is:

    E_{j ~ q̄} [1{j ∈ D_i} f(j) / q̄(j)] = Σ_{j ∈ D_i} f(j)

is exact without any renormalisation. The law of a draw *given* that it is in D_i is q̄(j) / q̄(D_i). Its constant cancels
in self-normalised weights and in an acceptance ratio, in which rows outside D_i are proposals never accepted.
q̄(j) ≥ q_i(j) / A, so that all of D_i is reached.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from negbank.proposals.contract import Anchors, Proposal, ProposalDistribution

BLOCK = 256
"""Anchors whose densities are summed at once."""


class Pooled:
    """The mean of a proposal's distributions over the anchors it is called with.

    Args:
        proposal: the anchors' own.
        stratified: every anchor gives its share of the draws; otherwise draws are independent.
    """

    def __init__(self, proposal: Proposal, *, stratified: bool = True) -> None:
        self._proposal, self._stratified = proposal, stratified

    def __call__(self, anchors: Anchors) -> PooledDistribution:
        """The pool of these anchors.

        Raises:
            ValueError: without anchors.
        """
        if not len(anchors.rows):
            raise ValueError("anchors: none given, and a pool is drawn from their proposals; give at least one")
        return PooledDistribution(self._proposal(anchors), len(anchors.rows), stratified=self._stratified)


class PooledDistribution:
    """q̄ of the A anchors that `each` is the distributions of. One distribution, not one an anchor."""

    def __init__(self, each: ProposalDistribution, anchors: int, *, stratified: bool = True) -> None:
        self._each, self._anchors, self._stratified = each, anchors, stratified
        self._last: tuple[Tensor, Tensor] | None = None  # parts of a batch ask for the same ids, one after another

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """n rows for all anchors together: (n,) ids, each of law q̄, each in the D_a of some anchor a."""
        source = torch.device("cpu") if generator is None else generator.device  # may be another than the rows'
        if self._stratified:
            drawn = self._each.sample(-(-n // self._anchors), generator=generator)
            order = torch.randperm(self._anchors, generator=generator, device=source).to(drawn.device)
            return drawn[order].T.flatten()[:n]
        anchor, order = torch.randint(self._anchors, (n,), generator=generator, device=source).cpu().sort()
        first = torch.searchsorted(anchor, anchor)
        turn = torch.arange(n) - first  # the t-th draw of its anchor
        drawn = self._each.sample(int(turn.max()) + 1 if n else 0, generator=generator)
        return drawn[anchor, turn].new_empty(n).scatter_(0, order.to(drawn.device), drawn[anchor, turn])

    def log_prob(self, ids: Tensor) -> Tensor:
        """log q̄(j) for ids (n,): (n,) float64, −∞ where no anchor may draw j. Time O(A·n)."""
        if self._last is None or not torch.equal(self._last[0], ids):
            blocks = (slice(first, first + BLOCK) for first in range(0, self._anchors, BLOCK))
            sums = [self._each[block].log_prob(ids.expand(self._length(block), -1)).logsumexp(0) for block in blocks]
            self._last = ids, torch.stack(sums).logsumexp(0) - math.log(self._anchors)
        return self._last[1]

    def _length(self, block: slice) -> int:
        return min(block.stop, self._anchors) - block.start
