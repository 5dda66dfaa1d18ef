"""The softmax over the whole bank, row by row where it is high and cell by cell where it is low:

    q_i(j) = λ / |D_i| + (1 − λ) · e_i(j) / Z_i
    e_i(j) = exp(s̃_ij / τ)                            j ∈ T_i, the top k of the index within D_i
             b_i(c(j))                                the other indexed rows, one value for a cell
    b_i(c) = min{t exp(a_i(c)), min_{j ∈ T_i} exp(s̃_ij / τ)}                  a_i(c): cell_scores.py
    Z_i    = Σ_c n_i(c) b_i(c) + Σ_{j ∈ T_i} [exp(s̃_ij / τ) − b_i(c(j))]

with n_i(c) the rows of cell c in D_i, counted exactly (cell_rows.py). That is a mixture, and so it is drawn: a cell and
one of its rows uniformly, or a row of the head by what its score exceeds its cell's; cells need not know who is in the
head. No row outside of a true top k scores higher than its last one, whatever its cell's mean says. t = 1 unless the
tail is known to be over- or understated (adapt.py measures it). Rows never written are reached by the floor alone.
Whether j lies in T_i is asked of the ids that the search returned, never of a score threshold.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from negbank.bank import NO_ROW
from negbank.bounds import Count, Gt, Le, Positive, Supplied, checked
from negbank.counter import uniforms
from negbank.exclusions import Exclusions
from negbank.proposals.adapt import Probe, tune
from negbank.proposals.cell_rows import AnchorCells, CellRows
from negbank.proposals.cell_scores import CellScores
from negbank.proposals.contract import Anchors, by_id, check_head, of_anchors, search_allowed
from negbank.snapshot import Snapshot


class HeadTail:
    """Retrieved rows by their own score, all others by their cell's.

    Args:
        snapshot: whose index is searched, and whose cells are the tail.
        k: rows retrieved for an anchor, at most; fewer where exclusions or an unfinished bank leave fewer.
        temperature: of the softmax, τ; the loss's own where a run does not say.
        floor: share of uniform draws, λ, without which rows that have no cell are never reached.
        tail: weight of the tail against the head, t.
        adapt: fit temperature, floor and tail to measured staleness, once there is a probe; `temperature` is then the
            target's.
        probe: that measurement (probe.py, adapt.py).
        exclude: what may not be drawn; the anchor's own row by default.

    Raises:
        ValueError: for a k outside 1..N−1, and for a temperature, floor or tail out of bounds.
    """

    @checked
    def __init__(
        self,
        snapshot: Snapshot,
        k: Count = 64,
        temperature: Annotated[float, Gt(0), Supplied("loss.temperature")] = 0.07,
        floor: Annotated[float, Gt(0), Le(1)] = 0.1,
        *,
        tail: Positive = 1.0,
        adapt: bool = False,
        probe: Probe | None = None,
        exclude: Exclusions | None = None,
    ) -> None:
        check_head(k, len(snapshot))
        self._exclude = snapshot.excluded(exclude)
        self._index, self._k, self.temperature, self.floor = snapshot.index, k, temperature, floor
        self.tail = tail
        self._rows = CellRows(snapshot.cells, self._exclude)
        self._scores = CellScores(snapshot.vectors, snapshot.cells)
        if adapt:
            tune(self, probe)

    def __call__(self, anchors: Anchors) -> HeadTailDistribution:
        found, inside = search_allowed(self._index, self._exclude, anchors, self._k)
        head = torch.where(inside, found.ids, NO_ROW)
        head_logits = torch.where(inside, found.scores.double() / self.temperature, -torch.inf)
        cells = self._rows.of(anchors.rows)
        logits = self._scores(anchors.queries, self.temperature, self.tail)
        return HeadTailDistribution(anchors.rows, head, head_logits, cells, logits, self.floor, self._exclude)


class HeadTailDistribution:
    """λ / |D_i| + (1 − λ) times a softmax over cells, and over head rows by what they exceed their cell.

    Args:
        rows: (A,) the anchors' own rows.
        head, head_logits: (A, k) ids and their logits; `NO_ROW` and −∞ where there is none.
        cells: the rows that may be drawn by cell.
        logits: (A, C) float32 of a single row of each cell; overwritten.
        floor, exclude: λ and D_i.
    """

    def __init__(
        self,
        rows: Tensor,
        head: Tensor,
        head_logits: Tensor,
        cells: AnchorCells,
        logits: Tensor,
        floor: float,
        exclude: Exclusions,
    ) -> None:
        self._rows, self._cells, self._exclude = rows, cells, exclude
        self._head, order = by_id(head)
        ends = torch.nn.functional.pad(head_logits, (0, 1), value=-torch.inf)
        top = ends.amax(1, keepdim=True).float()
        last = torch.where(ends == -torch.inf, torch.inf, ends).amin(1, keepdim=True).float()
        if bool((top == -torch.inf).any()):  # no head: the best cell
            top = torch.where(top == -torch.inf, cells.mask_(logits).amax(1, keepdim=True), top)
            top = torch.where(top == -torch.inf, 0.0, top)
        # e_i of a cell's row is single precision by definition; sums and quotients, and so normalisation, are double.
        self._of_row = torch.minimum(logits, last, out=logits).sub_(top).exp_()
        of_head = (head_logits.gather(1, order) - top).exp()
        own = cells.cell_of(self._head).clamp_(min=0)  # of no meaning where there is no row: of_head is 0 there
        self._excess = of_head.sub_(self._of_row.gather(1, own)).clamp_(min=0)  # below 0 by rounding alone
        mass = self._excess.new_empty(len(head), head.shape[1] + logits.shape[1])
        mass[:, : head.shape[1]] = self._excess
        cells.mass(self._of_row, out=mass[:, head.shape[1] :])
        self._cumulative = mass.cumsum_(1)
        total = self._cumulative[:, -1:]
        self._floor = torch.where(total == 0, 1.0, floor).double()
        self._base = self._floor / exclude.count(rows)[:, None]
        self._scale = (1 - self._floor) / torch.where(total == 0, 1.0, total)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """See `ProposalDistribution.sample`."""
        shape, device, k = (len(self._rows), n), self._rows.device, self._head.shape[1]
        coin, point, within = uniforms((3, *shape), generator=generator, device=device)
        below = self._exclude.uniform(self._rows, n, generator=generator)
        at = torch.searchsorted(self._cumulative, point * self._cumulative[:, -1:], right=True)
        rounded = at == self._cumulative.shape[1]  # a point rounded up to the last sum, one in 2^53
        at = at.clamp(max=self._cumulative.shape[1] - 1)
        cell = (at - k).clamp(min=0)
        drawn = self._cells.pick(cell, within)
        if k:
            drawn = torch.where(at < k, self._head.gather(1, at.clamp(max=k - 1)), drawn)
        return torch.where((coin < self._floor) | rounded, below, drawn)

    def log_prob(self, ids: Tensor) -> Tensor:
        """See `ProposalDistribution.log_prob`."""
        ids = ids.contiguous()
        cell = self._cells.cell_of(ids)
        own = torch.where(cell < 0, 0.0, self._of_row.gather(1, cell.clamp(min=0))).double()
        if self._head.shape[1]:
            at = torch.searchsorted(self._head, ids).clamp(max=self._head.shape[1] - 1)
            own = own + torch.where(self._head.gather(1, at) == ids, self._excess.gather(1, at), 0.0)
        q = self._base + self._scale * own
        return torch.where(self._exclude.allowed(self._rows, ids), q.log(), -torch.inf)

    def __getitem__(self, anchors: slice) -> HeadTailDistribution:
        """See `ProposalDistribution.__getitem__`."""
        names = ("rows", "cells", "head", "of_row", "excess", "cumulative", "floor", "base", "scale")
        return of_anchors(self, anchors, *(f"_{name}" for name in names))
