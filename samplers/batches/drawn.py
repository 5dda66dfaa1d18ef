"""Batches whose rows an index drew for one another, and how likely it was that they meet.

A batch is S = B / g groups. A group is a seed s, the seeds of an epoch being distinct and in random order, and g − 1
draws from the proposal's q_s; a draw that is in the batch already is replaced by a uniform row. So every row is an
anchor whose negatives were looked for, at no encoding beyond the batch's own. Taken for uniform draws they would be far
too hard; instead the batch knows by which probability row j is in it, given that row i is (of group s, at position 0
for the seed):

    n_i(j) = 1 − (1 − q_s(j))^m_i · (1 − q_j(i))^[i ≠ s] · (1 − 1/(N−1))^(B−g),      m_i = g − 1 − [i ≠ s]

by the draws of i's group, by being the seed that drew i, and by the other groups, whose rows are all but uniform.
1 / n_i(j) is what a Horvitz–Thompson estimate weighs row j with (Horvitz & Thompson 1952), and `Importance` does so. It
is a model of the batch, not a law: the seed that drew i is j with probability q_j(i) / Σ_s q_s(i), whose denominator is
taken for 1, its mean over rows; another group's draws prefer hubs. `tests/samplers/test_drawn.py` measures by how much
the sum over all rows is missed. Rows that many others draw are anchors more often: q is not doubly stochastic.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from negbank.bounds import Annotated, Count, Ge, Section, checked
from negbank.counter import Counter
from negbank.proposals import Anchors, Proposal
from negbank.samplers.batches.planned import Planned
from negbank.snapshot import Snapshot

BLOCK = 1024
"""Seeds that draw at once."""


class Drawn(Planned):
    """Groups of a random row and rows that the index drew for it, with a known probability that two meet.

    Before the first snapshot, and for rows that it does not hold yet, batches are uniform. `Importance` weighs their
    rows by `expected`; other negatives take them as they come.

    Args:
        num_rows: N.
        batch_size: B, rows a batch; each is seen under two views.
        group: g, rows of a group, a divisor of batch_size; 1 is uniform batches.
        proposal: snapshot → proposal, of q_s.
        counter: place of the random draws, of which each plan has its own.

    Raises:
        ValueError: for a group that does not divide the batch, and as `Planned`.
    """

    disjoint = False
    known = True

    @checked
    def __init__(
        self,
        num_rows: int,
        batch_size: Annotated[int, Ge(2)] = 64,
        *,
        group: Count = 4,
        proposal: Annotated[Callable[[Snapshot], Proposal], Section("proposal", "head_tail")],
        counter: Counter = Counter.of(0),
    ) -> None:
        super().__init__(num_rows, batch_size, counter=counter)
        if batch_size % group:
            raise ValueError(f"group={group}: expected a divisor of batch_size={batch_size}")
        self.group, self._bind = group, proposal
        self._proposal: Proposal | None = None
        self._held = torch.zeros(num_rows, dtype=torch.bool)

    def update(self, snapshot: Snapshot) -> None:
        """See `Planned.update`."""
        super().update(snapshot)
        self._proposal, self._held = self._bind(snapshot), snapshot.written

    def plan(self, rows: Tensor, count: int, snapshot: Snapshot, generator: torch.Generator) -> Tensor:
        """See `Planned.plan`. A search and g − 1 draws a seed."""
        assert self._proposal is not None
        each = self.batch_size // self.group
        left = torch.ones(self.num_rows, dtype=torch.bool)
        left[self._order[: self._handed_out * self.batch_size : self.group]] = (
            False  # seeds of the epoch's earlier batches
        )
        free = rows[left[rows]]
        seeds = free[torch.randperm(len(free), generator=generator)][: min(count, len(free) // each) * each]
        drawn = [seeds.new_empty(0, self.group - 1)]
        for part in seeds.to(snapshot.vectors.device).split(BLOCK):
            found = self._proposal(Anchors(part, snapshot.vectors[part]))
            drawn.append(found.sample(self.group - 1, generator=generator).cpu())
        batches = torch.cat((seeds[:, None], torch.cat(drawn)), 1).view(-1, self.batch_size)
        return _distinct(batches, self.group, rows, generator)

    def expected(self, rows: Tensor, ids: Tensor) -> Tensor:
        """n_i(j) of a batch's rows (B,), in the order it came in, and any ids (n,): (B, n) float64; see above."""
        snapshot, group, seeds = self._snapshot, self.group, rows[:: self.group]
        if snapshot is None or self._proposal is None or not bool(self._held[seeds].all()):
            return super().expected(rows, ids)
        every, at = torch.cat((rows, ids)).unique(return_inverse=True)
        q = self._proposal(Anchors(every, snapshot.vectors[every])).log_prob(every.expand(len(every), -1)).exp()
        row, column = at.split((len(rows), len(ids)))
        drawn = torch.arange(len(rows), device=rows.device)[:, None] % group > 0
        by_seed = q[row[::group]][:, column].repeat_interleave(group, 0)
        by_row = torch.where(drawn & self._held[ids], q[column][:, row].T, 0.0)  # a row not held is no seed
        missed = (1 - by_seed) ** (group - 1 - drawn.long()) * (1 - by_row)
        return 1 - missed * (1 - 1 / (self.num_rows - 1)) ** (self.batch_size - group)


def _distinct(batches: Tensor, group: int, rows: Tensor, generator: torch.Generator) -> Tensor:
    """Batches (n, B) in which what comes again is replaced by uniform rows: of two alike a seed stays, or the first."""
    first = torch.arange(batches.shape[1]) % group
    columns = torch.argsort(first > 0, stable=True)  # seeds before draws
    batches = batches[:, columns]
    while True:
        values, order = batches.sort(dim=1, stable=True)
        again = torch.zeros_like(values, dtype=torch.bool)
        again[:, 1:] = values[:, 1:] == values[:, :-1]
        again = torch.zeros_like(again).scatter_(1, order, again)
        missing = int(again.sum())
        if not missing:
            return batches[:, columns.argsort()]
        batches[again] = rows[torch.randint(len(rows), (missing,), generator=generator)]
