"""Drawn batches by a model of inclusion: a row is in the batch or not, and n_i(j) is the probability that it is.

Draws that come again are replaced by uniform rows, so that a batch has B distinct ones. Of row i, of the group of seed
s (i = s for the seed), with m_i = g − 1 − [i ≠ s]:

    n_i(j) = 1 − (1 − q_s(j))^m_i · (1 − q_j(i))^[i ≠ s] · (1 − 1/(N−1))^(B−g)

by the draws of i's group, by being the seed that drew i, and by the other groups, whose rows are all but uniform. Row
j weighs 1 / n_i(j), as a Horvitz–Thompson estimate has it (1952). A model, and no law: the seed that drew i is j with
probability q_j(i) / Σ_s q_s(i), whose denominator is taken for 1, its mean over rows, and another group's draws prefer
hubs. So the sum over all rows is missed, where drawn.py's weights are exact. It is kept because it learns better
(docs/batches.md): a drawn row knows its own seed, its nearest negative, by q_j(i), where the exact form waits for
another seed to draw it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from negbank.proposals import Anchors, Proposal


class Inclusion(NamedTuple):
    """The `Meeting` of a batch of B distinct rows, groups of `group` rows one after the other, each group's seed first.

    proposal, vectors, held: that they were drawn from, of N rows, and which of these can be seeds.
    """

    rows: Tensor
    group: int
    proposal: Proposal
    vectors: Tensor
    held: Tensor

    @property
    def counts(self) -> Tensor:
        """See `Meeting.counts`: each row once."""
        return torch.ones_like(self.rows, dtype=torch.float64)

    @property
    def mean(self) -> float:
        """See `Meeting.mean`."""
        return 1.0

    def ratio(self, ids: Tensor, times: Tensor, expected: Tensor) -> Tensor:
        """See `Meeting.ratio`. It asks for q of all rows of the batch and of ids."""
        every, at = torch.cat((self.rows, ids)).unique(return_inverse=True)
        q = self.proposal(Anchors(every, self.vectors[every])).log_prob(every.expand(len(every), -1)).exp()
        row, column = at.split((len(self.rows), len(ids)))
        drawn = torch.arange(len(self.rows), device=ids.device)[:, None] % self.group > 0
        by_seed = q[row[:: self.group]][:, column].repeat_interleave(self.group, 0)
        by_row = torch.where(drawn & self.held[ids], q[column][:, row].T, 0.0)  # a row not held is no seed
        missed = (1 - by_seed) ** (self.group - 1 - drawn.long()) * (1 - by_row)
        n = 1 - missed * (1 - 1 / (len(self.held) - 1)) ** (len(self.rows) - self.group)
        return (torch.isin(ids, self.rows) + times) / (n + expected)


def distinct(batches: Tensor, group: int, rows: Tensor, generator: torch.Generator) -> Tensor:
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
