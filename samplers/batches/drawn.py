"""Batches whose rows an index drew for one another, and exactly how often two rows were to be expected to meet.

A batch is S = B / g groups. A group is a seed s, the seeds of an epoch being distinct and in random order, and g − 1
independent draws from the proposal's q_s: B slots, of which several may hold the same row. It is encoded once, and
counts as often as it came, as a candidate and as an anchor. So every row is an anchor whose negatives were looked for,
at no encoding beyond the batch's own. Taken for uniform draws they would be far too hard. But of slot a, in the group
of seed s, all other slots are known: those drawn, given the seeds, and the other seeds T, m = S − 1 rows that are
uniform over the |H| rows held but s:

    n_T(j) = (g − 1 − [a was drawn]) q_s(j) + (g − 1) Σ_{t∈T} q_t(j)         p(j) = m / (|H| − 1), 0 for s

Candidates of both kinds are weighed by the balance heuristic (Veach & Guibas 1995), each against n + p:

    j ∈ T          1 / (n_T(j) + p)                                          for every time it came, by either way
    j not in T     1/m Σ_{t∈T} n_{T−t}(j) / (n_{T−t}(j) + p) · 1 / n_T(j)    for every time it was drawn
    j = s          1 / n_T(s)                                                for every time it was drawn

The second line is not 1 / (n_T + p): a seed does not draw itself, so that where j is a seed n is lower, and that
would leave a bias of order 1/S. T less one of its seeds has the law that the other seeds have given that j is one, and
so Σ_j weight · f(j) has the mean Σ_{j∈D} f(j), exactly: `tests/samplers/test_drawn.py` enumerates it. Further draws by
other means, of density e(j), are one more technique: n + e in place of n.

What is asked for is q of the S seeds at the batch's own rows. g = 1 is uniform batches. Rows that many others draw are
anchors more often: q is not doubly stochastic.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from negbank.bounds import Annotated, Count, Ge, Section, checked
from negbank.counter import Counter
from negbank.proposals import Anchors, Proposal
from negbank.samplers.batches.inclusion import Inclusion, distinct
from negbank.samplers.batches.planned import Planned
from negbank.samplers.meeting import Meeting
from negbank.snapshot import Snapshot

BLOCK = 1024
"""Seeds that draw at once."""
REMEMBERED = 256
"""Batches handed out whose groups are known: more than anybody reads ahead."""


class Groups(NamedTuple):
    """The `Meeting` of a batch of distinct rows (B,), drawn as slots (S, g): each group's seed first.

    proposal, vectors, held: that they were drawn from, of N rows, and which of these can be seeds.
    """

    rows: Tensor
    slots: Tensor
    proposal: Proposal
    vectors: Tensor
    held: Tensor

    @property
    def counts(self) -> Tensor:
        """See `Meeting.counts`: of the slots that hold each row."""
        return (self.rows[:, None] == self.slots.flatten()).sum(1).double()

    @property
    def mean(self) -> float:
        """See `Meeting.mean`."""
        return self.slots.numel() / len(self.rows)

    def ratio(self, ids: Tensor, times: Tensor, expected: Tensor) -> Tensor:
        """See `Meeting.ratio`: the mean over the slots that hold the anchor. O(S² n), or O(S B n) for draws of its own.

        Slots of one group that were drawn are alike, and so are seeds, where all anchors share the other draws.
        """
        seeds, (groups, size) = self.slots[:, 0], self.slots.shape
        each = size - 1
        q = self.proposal(Anchors(seeds, self.vectors[seeds])).log_prob(ids.expand(groups, -1)).exp() * each  # (S, n)
        p = self.held[ids].double() * ((groups - 1) / max(1, int(self.held.sum()) - 1))
        slot = torch.arange(groups * size, device=ids.device)
        anchor = (self.rows[:, None] == self.slots.flatten()).int().argmax(0)  # of every slot
        alike = min(size, 2)  # kinds of slots in a group: the seed, and those that it drew
        kind = slot if len(expected) > 1 else slot // size * alike + (slot % size > 0).long()
        first = slot if len(expected) > 1 else slot[slot % size < alike]
        group, drawn, of = first // size, first[:, None] % size > 0, anchor[first] if len(expected) > 1 else 0
        n = q.sum(0) - drawn * q[group] / max(1, each) + expected[of]
        without = -_reciprocal(n - q[group], p)  # Σ_t 1 / (n_{T−t} + p), t ∈ T
        for density in q:
            without += _reciprocal(n - density, p)
        own, seed = seeds[group, None] == ids, (seeds[:, None] == ids).any(0)
        other = seed & ~own
        weight = (1 - torch.where(own | (p == 0), 0.0, p * without / max(1, groups - 1))) / n
        weight = torch.where(other, 1 / (n + p), weight)
        came = (self.slots[:, 1:].flatten()[:, None] == ids).sum(0) + times[of] + other
        share = n.new_zeros(len(self.rows), len(first)).index_put_((anchor, kind), n.new_ones(()), accumulate=True)
        return share @ torch.where(came > 0, came * weight, 0.0) / self.counts[:, None]


def _reciprocal(x: Tensor, p: Tensor) -> Tensor:
    return x.clamp_(min=0).add_(p).reciprocal_()


class Drawn(Planned):
    """Groups of a random row and rows that the index drew for it, of which it is known how often two are to meet.

    A batch handed out has each row once, and with exact weights fewer than B where some were drawn twice. Before the
    first snapshot, and for rows that it does not hold yet, batches are uniform. `Importance` weighs their rows by
    `meeting`; other negatives take them as they come.

    Args:
        num_rows: N.
        batch_size: B, slots a batch; each row is seen under two views.
        group: g, slots of a group, a divisor of batch_size, at most half of it; 1 is uniform batches.
        proposal: snapshot → proposal, of q_s.
        weights: exact, or model: inclusion.py's, biased; B distinct rows a batch.
        counter: place of the random draws, of which each plan has its own.

    Raises:
        ValueError: for a group that does not divide the batch into two or more, and as `Planned`.
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
        weights: Literal["exact", "model"] = "exact",
        counter: Counter = Counter.of(0),
    ) -> None:
        super().__init__(num_rows, batch_size, counter=counter)
        if batch_size % group or batch_size < 2 * group:
            raise ValueError(f"group={group}: expected a divisor of batch_size={batch_size}, at most half of it")
        self.group, self._bind, self._exact = group, proposal, weights == "exact"
        self._proposal: Proposal | None = None
        self._known: dict[tuple[int, ...], Groups | Inclusion | None] = {}

    def update(self, snapshot: Snapshot) -> None:
        """See `Planned.update`."""
        super().update(snapshot)
        self._proposal = self._bind(snapshot)

    def plan(self, rows: Tensor, count: int, snapshot: Snapshot, generator: torch.Generator) -> Tensor:
        """See `Planned.plan`: the slots of batches, in which rows may come again. A search and g − 1 draws a seed."""
        assert self._proposal is not None
        each = self.batch_size // self.group
        left = torch.ones(self.num_rows, dtype=torch.bool)
        handed_out = self._order[: self._handed_out * self.batch_size].view(-1, self.batch_size)
        left[handed_out[self._planned[: self._handed_out]][:, :: self.group]] = False  # seeds of the epoch so far
        free = rows[left[rows]]
        seeds = free[torch.randperm(len(free), generator=generator)][: min(count, len(free) // each) * each]
        drawn = [seeds.new_empty(0, self.group - 1)]
        for part in seeds.to(snapshot.vectors.device).split(BLOCK):
            found = self._proposal(Anchors(part, snapshot.vectors[part]))
            drawn.append(found.sample(self.group - 1, generator=generator).cpu())
        slots = torch.cat((seeds[:, None], torch.cat(drawn)), 1).view(-1, self.batch_size)
        return slots if self._exact else distinct(slots, self.group, rows, generator)

    def hand_out(self, at: int, slots: Tensor, *, again: bool) -> list[int]:
        """See `Planned.hand_out`: each row once, in the order in which they came."""
        rows = list(dict.fromkeys(slots.tolist()))
        key = tuple(rows)
        found: Groups | Inclusion | None = None
        if again and key in self._known:  # it may be of a snapshot before this one
            found = self._known.pop(key)
        elif self._planned[at] and self._snapshot is not None and self._proposal is not None:
            bank = self._proposal, self._snapshot.vectors, self._snapshot.written
            found = Inclusion(slots, self.group, *bank)
            if self._exact:
                found = Groups(torch.tensor(rows), slots.view(-1, self.group), *bank)
        self._known[key] = found
        if len(self._known) > REMEMBERED:
            del self._known[next(iter(self._known))]
        return rows

    def meeting(self, rows: Tensor) -> Meeting | None:
        """How the rows (B,) of a batch met, in the order it came in; None for one that is taken for uniform.

        Raises:
            ValueError: for what is not one of the last batches handed out.
        """
        key = tuple(rows.tolist())
        if key not in self._known:
            raise ValueError(
                f"rows: {list(key[:4])}... are none of the last {REMEMBERED} batches handed out; ask of a batch as it "
                f"came, before many others are"
            )
        found = self._known[key]
        if isinstance(found, Groups):
            return found._replace(rows=rows, slots=found.slots.to(rows.device))
        return None if found is None else found._replace(rows=rows)
