"""Mined hard negatives that the whole batch shares, as dense retrievers are trained (Karpukhin et al. 2020, sec. 3.2).

Each row i of the batch brings n hard negatives T_i, which are encoded with the batch. Every anchor has all of them, and
the batch's own rows, for candidates: C_i = (batch ∪ ⋃_b T_b) ∩ D_i, each row once, however many rows brought it.

    w_ir = exp(β s_ir) / (exp(β s_i⁺) + Σ_{r' ∈ C_i} exp(β s_ir'))            InfoNCE over C_i (in_batch.py)

T_i are n rows, the first or random ones, among the first `range_max` that are known for i and lie in D_i:

    path    as a mining result lists them, once and for all (DPR, RocketQA)
    None    as the snapshot finds them for the anchor's bank row, anew after every refresh (ANCE, Xiong et al. 2021),
            less those with s > perc_pos · s⁺ or s > s⁺ − margin_pos (NV-Retriever, Moreira et al. 2024),
            s and s⁺ by that bank row and the snapshot. s⁺ is that of the pair, or of two views of one row their own
            bank row's, 1 but for rounding.

`hardest` contrasts an anchor with its own T_i alone. The search is for the rows of the step: once for all N, after a
refresh, would ask with anchors of that time, take N · range_max ids, and is no search of the other side where there are
two. Before the first snapshot, and for rows that it has not seen, T_i is empty: the batch's own rows are there.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from negbank.bank import NO_ROW, require_rows
from negbank.bounds import Annotated, Count, Ge, Input, Le, Positive, checked
from negbank.counter import Counter
from negbank.exclusions import Exclusions
from negbank.margins import near_positive, relative_margin
from negbank.proposals import Anchors
from negbank.samplers.negatives.contract import EncodedBatch, Info, Negatives, NegativeSampler, Ticket, number
from negbank.samplers.negatives.in_batch import InBatch
from negbank.samplers.negatives.index_draws import asked
from negbank.samplers.negatives.listed import Listed
from negbank.samplers.negatives.retrieved import retrieve, some
from negbank.snapshot import Snapshot


class Mined(NegativeSampler):
    """Mined hard negatives, shared by the whole batch, beside its own rows.

    Args:
        num_rows: N.
        temperature: τ = 1/β.
        path: folder of a result of `negbank mine`, row i of the queries and of the corpus the training row i, of pairs
            its two sides; None: mined from the bank's snapshot, after every refresh.
        draws: mined negatives of each row of the batch; fewer where fewer are left.
        range_max: how many of the best rows they are taken from.
        pick: which of these: the first, or random ones, other ones at every step.
        perc_pos: what is mined scores at most this share of the positive's score, if that is positive; 1 −
            relative_margin of the miner; None: off.
        margin_pos: what is mined scores at most the positive's score less this; None: off.
        mask: perc_pos and margin_pos hold for fresh scores, too, of all candidates, the batch's rows among them.
        guide: with mask, .npy file of the training rows (N, D') by another model, whose scores count in place of fresh
            ones; of pairs of the left side.
        guide_right: of pairs that of the right side.
        both_ways: of pairs both sides' anchors have mined negatives, a path's the same rows' other sides; false: those
            of the left side alone, as queries have; documents then see the batch's queries.
        exclude: rows that are no negatives of each other; only the anchor's own row by default.
        counter: place of the random draws, of which each step has its own.
        device: where rows are asked for.
        views: of a row; 1: pairs.
        side: 0 for anchors of the first tower, 1 for those of the second.

    Raises:
        ValueError: for draws above N − 1, range_max, or what `path` lists; for perc_pos or margin_pos where they bound
            nothing, or a mask without either; for a result of other rows.
    """

    draws_ahead = True

    @checked
    def __init__(
        self,
        num_rows: int,
        *,
        temperature: Positive,
        path: Annotated[str | None, Input()] = None,
        draws: Count = 1,
        range_max: Count = 30,
        pick: Literal["top", "random"] = "top",
        perc_pos: Positive | None = None,
        margin_pos: Annotated[float, Ge(-2), Le(2)] | None = None,
        mask: bool = False,
        guide: Annotated[str | None, Input()] = None,
        guide_right: Annotated[str | None, Input()] = None,
        both_ways: bool = True,
        exclude: Exclusions | None = None,
        counter: Counter = Counter.of(0),
        device: torch.device | str = "cpu",
        views: int = 2,
        side: int = 0,
    ) -> None:
        bounds = {"perc_pos": perc_pos, "margin_pos": margin_pos}
        given = ", ".join(f"{name}={value}" for name, value in bounds.items() if value is not None)
        if not draws < num_rows:
            raise ValueError(f"draws={draws}: expected 1..{num_rows - 1}, the other rows of the data set")
        if draws > range_max:
            raise ValueError(f"draws={draws}: expected 1..{range_max}, some of range_max={range_max} rows; raise that")
        if mask and not given:
            raise ValueError("mask=True: masks nothing without a bound; set perc_pos, such as 0.95, or margin_pos")
        if not mask and (guide is not None or guide_right is not None):
            raise ValueError(f"guide={guide}, guide_right={guide_right}: masks nothing without mask=True; set that")
        if path is not None and given and not mask:
            raise ValueError(
                f"{given}: what path={path} lists is not mined here; set relative_margin or absolute_margin of "
                f"`negbank mine`, or mask=True for a bound on fresh scores"
            )
        self._exclude, self._counter = exclude or Exclusions(num_rows), counter
        self._draws, self._range_max, self._random = draws, range_max, pick == "random"
        self._margins = {"absolute": margin_pos, "relative": relative_margin(perc_pos)}
        self._mines = both_ways or side == 0
        self._listed = Listed(path, num_rows, device) if path is not None and self._mines else None
        self._snapshot: Snapshot | None = None
        if self._listed is not None and draws > self._listed.most:
            raise ValueError(
                f"draws={draws}: path={path} lists at most {self._listed.most} negatives of a row; lower draws, or "
                f"mine with a higher num_negatives"
            )
        self._weigh = InBatch(
            temperature=temperature, perc_pos=perc_pos if mask else None, margin_pos=margin_pos if mask else None,
            guide=guide, guide_right=guide_right, exclude=self._exclude, num_rows=num_rows, views=views, side=side,
        )  # fmt: skip
        self.reads_snapshot = self._mines and path is None

    def update(self, snapshot: Snapshot) -> None:
        """Mine in this version of the bank from now on."""
        self._snapshot = snapshot

    def draw(self, rows: Tensor, *, step: int, queries: Tensor | None = None) -> Ticket:
        """See `NegativeSampler.draw`; the ticket's own are the rows' mined negatives (B, ≤ draws), −1 pads."""
        require_rows(rows, self._exclude.num_rows)
        if not self._mines:
            return Ticket(step, rows, rows[:0])
        generator = self._counter.at("draw", step).generator() if self._random else None
        ids = some(self._known(rows, queries), self._draws, generator)
        return Ticket.of(step, rows, ids, ids)

    def _known(self, rows: Tensor, queries: Tensor | None) -> Tensor:
        """What rows (B,) may take: ids (B, n) in D_i, best first, −1 for others."""
        exclude = self._exclude.to(rows.device)
        if self._listed is not None:
            ids = self._listed(rows)[:, : self._range_max]
            return torch.where(exclude.allowed(rows, ids), ids, NO_ROW)
        if self._snapshot is None:
            return rows.new_full((len(rows), 1), NO_ROW)
        positives = self._snapshot.vectors[rows]
        queries = asked(rows, queries, self._snapshot.vectors, fresh=False)
        found = retrieve(self._snapshot, exclude, Anchors(rows, queries), self._range_max)
        near = near_positive(found.scores, (queries * positives).sum(1, keepdim=True), **self._margins)
        known = (queries != 0).any(1) & (positives != 0).any(1)
        return torch.where(near | ~known[:, None], NO_ROW, found.ids)

    def __call__(self, batch: EncodedBatch, ticket: Ticket) -> tuple[Negatives, Info]:
        """See `NegativeSampler.__call__`."""
        ticket.require(batch)
        negatives, info = self._weigh(batch)
        if self._mines:
            found = (ticket.own != NO_ROW).sum() / (self._draws * len(ticket.rows))
            info |= {"short": number(1 - found), "extra_encodings": float(len(batch.drawn_rows))}
        return negatives, info
