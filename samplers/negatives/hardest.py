"""The index's top k as negatives, as ANCE takes them (Xiong et al. 2021).

T_i are the k rows of D_i that look nearest to anchor i in the bank, or some of them at random. Fresh scores weigh them:

    softmax    w_ir = exp(β s_ir) / (exp(β s_i⁺) + Σ_{r' ∈ T_i} exp(β s_ir'))         InfoNCE against T_i
    pairwise   w_ir = 1/|T_i| · exp(β s_ir) / (exp(β s_i⁺) + exp(β s_ir))              a pair at a time, as published
    uniform    w_ir = 1/|T_i|

This estimates no gradient of the global loss: rows outside T_i have no part in it, however many they are, and those in
T_i look hard in a stale bank, for their noise among other things. Before the first snapshot T_i is uniform over D_i.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from negbank.bank import require_rows
from negbank.bounds import Count, Positive, checked
from negbank.counter import Counter
from negbank.exclusions import Exclusions
from negbank.proposals import Anchors
from negbank.samplers.negatives.contract import EncodedBatch, Info, Negatives, NegativeSampler, Ticket, hardness
from negbank.samplers.negatives.index_draws import asked
from negbank.samplers.negatives.retrieved import retrieve, some
from negbank.snapshot import Snapshot


class Hardest(NegativeSampler):
    """The index's nearest rows, as ANCE.

    Args:
        num_rows: N.
        temperature: τ = 1/β.
        k: rows retrieved for each row of the batch, shared by its views; fewer where the bank or D_i have fewer, or
            the nearest 1024 rows do.
        draws: how many of them are taken, at random; None: all.
        weights: what they weigh.
        positive: the positive is in the softmax's denominator, as in InfoNCE.
        query: what the index is asked with; fresh: a second pass, no batch norm.
        exclude: rows that are no negatives of each other; only the anchor's own row by default.
        counter: place of the random draws, of which each step has its own.

    Raises:
        ValueError: for a k above N − 1, or draws above k.
    """

    reads_snapshot = True

    @checked
    def __init__(
        self,
        num_rows: int,
        *,
        temperature: Positive,
        k: Count = 4,
        draws: Count | None = None,
        weights: Literal["softmax", "pairwise", "uniform"] = "softmax",
        positive: bool = True,
        query: Literal["bank", "fresh"] = "bank",
        exclude: Exclusions | None = None,
        counter: Counter = Counter.of(0),
    ) -> None:
        if not k < num_rows:
            raise ValueError(f"k={k}: expected 1..{num_rows - 1}, the other rows of the data set")
        if draws is not None and draws > k:
            raise ValueError(f"draws={draws}: expected 1..{k}, some of the k rows retrieved, or None for all")
        self.fresh_queries = query == "fresh"
        self.draws_ahead = not self.fresh_queries
        self._temperature, self._k, self._draws, self._weights = temperature, k, draws, weights
        self._positive, self._counter = positive, counter
        self._exclude = exclude or Exclusions(num_rows)
        self._snapshot: Snapshot | None = None

    def update(self, snapshot: Snapshot) -> None:
        """Retrieve from this version of the bank from now on."""
        self._snapshot = snapshot

    def draw(self, rows: Tensor, *, step: int, queries: Tensor | None = None) -> Ticket:
        """See `NegativeSampler.draw`; the ticket's own are the rows retrieved (B, n), −1 pads."""
        require_rows(rows, self._exclude.num_rows)
        exclude, count = self._exclude.to(rows.device), self._draws or self._k
        vectors = None if self._snapshot is None else self._snapshot.vectors
        queries = asked(rows, queries, vectors, fresh=self.fresh_queries)
        generator = self._counter.at("draw", step).generator()
        if self._snapshot is None:
            ids = exclude.uniform(rows, count, generator=generator)
        else:
            ids = retrieve(self._snapshot, exclude, Anchors(rows, queries), self._k).ids
            if self._draws is not None:
                ids = some(ids, count, generator)
        return Ticket.of(step, rows, ids, ids)

    def __call__(self, batch: EncodedBatch, ticket: Ticket) -> tuple[Negatives, Info]:
        """See `NegativeSampler.__call__`."""
        ticket.require(batch)
        scores = batch.scores
        with torch.no_grad():
            times = batch.times(ticket.own)
            share = times / times.sum(1, keepdim=True).clamp(min=1)
            positive = batch.positive_scores[:, None]
            if self._weights == "uniform":
                weights = share
            elif self._weights == "pairwise":
                weights = share * torch.sigmoid((scores - positive) / self._temperature)
            else:
                logits = scores / self._temperature + times.log()
                every = torch.cat((logits, positive / self._temperature), 1) if self._positive else logits
                weights = torch.softmax(every, 1)[:, : logits.shape[1]].nan_to_num(0.0)
        info = {"hardness": hardness(share, scores), "extra_encodings": float(len(batch.drawn_rows))}
        return Negatives(scores, weights), info
