"""Sampled softmax with logQ correction (Bengio & Senécal 2008; Yi et al. 2019), with own draws or one shared pool.

Each candidate row j is weighed against how often it was to be expected among the step's candidates, n_i(j):

    w_ir = (k_r / n_i(r)) exp(β s_ir) / Z_i,      Z_i = Σ_r (k_r / n_i(r)) exp(β s_ir)  [+ exp(β s_i⁺)]

with k_r the times row r was drawn. Over the draws E Σ_r k_r f(r) / n_i(r) = Σ_{j∈D_i} f(j): Z_i estimates the softmax's
denominator over the *whole data set*, and the weights π_i (self-normalised importance sampling). `positive=True` adds
the positive to the denominator, as InfoNCE does.

    own draws    n_i(j) = M q_i(j)
    pool         n(j)   = M q̄(j),  q̄(j) = (1/B) Σ_b q_b(j): M draws for the whole batch, from the mean proposal of its
                          rows. Every anchor uses all of them, so a drawn row costs one encoding and serves 2B anchors.
    + batch      n_i(j) = M q̄(j) + V n_i^B(j): the batch's other rows are candidates, too, each V times. n_i^B(j) is how
                          often j is to be expected in a batch that holds i, (B − 1)/(N − 1) where batches are uniform;
                          others say it of themselves (`BatchSampler.meeting`, batches/drawn.py), and how often a row
                          that came twice counts. This is the balance heuristic of multiple importance sampling (Veach
                          & Guibas 1995, eq. 14).

Z_i is unbiased for own draws, with or without the batch, and for the pool alone. For the pool with the batch it is so
up to terms of order 1/B: q̄ is the mean over the batch's own rows, and so knows which rows are in it.

The bank chooses (q), fresh scores weigh (s). A draw of the anchor's own row, which a pool may hold, counts in M and has
weight 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from negbank.bank import require_rows
from negbank.bounds import Annotated, Ge, Positive, Section, checked
from negbank.counter import Counter
from negbank.exclusions import Exclusions
from negbank.proposals import Proposal
from negbank.samplers.negatives.contract import EncodedBatch, Info, Negatives, NegativeSampler, Ticket, hardness, number
from negbank.samplers.negatives.index_draws import Drawn, IndexDraws
from negbank.snapshot import Snapshot


class Importance(NegativeSampler):
    """Sampled softmax with logQ correction: index draws weighed against how often they were to be expected.

    Args:
        num_rows: N.
        temperature: τ = 1/β.
        proposal: snapshot → proposal that rows are drawn from; before the first snapshot draws are uniform.
        draws: index draws: of the whole batch with pool, else of each row, shared by its views; 0: none.
        pool: all anchors share one pool of draws.
        query: what the index is asked with; fresh: a second pass, no batch norm.
        batch: the batch's other rows are candidates, too; needs uniform or drawn batches.
        positive: the positive is in the softmax's denominator, as in InfoNCE.
        exclude: rows that are no negatives of each other; only the anchor's own row by default.
        counter: place of the random draws, of which each step has its own.

    Raises:
        ValueError: for neither draws nor the batch, or draws without a proposal.
    """

    @checked
    def __init__(
        self,
        num_rows: int,
        *,
        temperature: Positive,
        proposal: Annotated[Callable[[Snapshot], Proposal] | None, Section("proposal", "head_tail")] = None,
        draws: Annotated[int, Ge(0)] = 64,
        pool: bool = True,
        query: Literal["bank", "fresh"] = "bank",
        batch: bool = True,
        positive: bool = True,
        exclude: Exclusions | None = None,
        counter: Counter = Counter.of(0),
    ) -> None:
        if (not draws and not batch) or (draws and proposal is None):
            raise ValueError(
                f"draws={draws}, batch={batch}, proposal={proposal}: expected draws from a proposal, or draws=0 and "
                f"batch=True for the batch alone"
            )
        self.requires, self._batch = "known" if batch else "any", batch
        self._num_rows, self._temperature, self._positive, self._counter = num_rows, temperature, positive, counter
        self._exclude = exclude or Exclusions(num_rows)
        self._index = IndexDraws(
            proposal if draws else None,
            draws=draws,
            pool=pool,
            stratified=True,
            fresh=query == "fresh",
            exclude=self._exclude,
        )
        self.fresh_queries, self.reads_snapshot = self._index.fresh, draws > 0
        self.draws_ahead = not self.fresh_queries

    def update(self, snapshot: Snapshot) -> None:
        """Propose from this version of the bank from now on."""
        self._index.update(snapshot)

    def draw(self, rows: Tensor, *, step: int, queries: Tensor | None = None) -> Ticket:
        """See `NegativeSampler.draw`."""
        require_rows(rows, self._num_rows)
        generator = self._counter.at("draw", step).generator()
        drawn = self._index(rows, self._index.queries(rows, queries), generator)
        return Ticket.of(step, rows, drawn.ids, drawn)

    def __call__(self, batch: EncodedBatch, ticket: Ticket) -> tuple[Negatives, Info]:
        """See `NegativeSampler.__call__`."""
        ticket.require(batch)
        scores = batch.scores
        with torch.no_grad():
            logits = scores / self._temperature + self._log_ratio(batch, ticket.own).repeat(batch.views, 1)
            positive = batch.positive_scores[:, None] / self._temperature
            every = torch.cat((logits, positive), 1) if self._positive else logits
            weights = torch.softmax(every, 1)[:, : logits.shape[1]].nan_to_num(0.0)
            if self._batch and batch.meeting is not None:
                counts = batch.meeting.counts / batch.meeting.mean
                weights = weights * counts.to(weights).repeat(batch.views)[:, None]
            share = weights / weights.sum(1, keepdim=True).clamp(min=1e-12)
        info = {
            "effective_candidates": number((1 / share.square().sum(1).clamp(min=1e-12)).mean()),
            "hardness": hardness(weights, scores),
            "extra_encodings": float(len(batch.drawn_rows)),
        }
        return Negatives(scores, weights), info

    def _log_ratio(self, batch: EncodedBatch, drawn: Drawn) -> Tensor:
        """log k/n of every column for every row of the batch (B, C); −∞ outside D_i and where nothing was drawn.

        A row of the batch has V columns, each with a V-th of its ratio.
        """
        ids, count, views = batch.candidate_rows, len(batch.rows), batch.views
        distinct, column, repeats = ids.unique(return_inverse=True, return_counts=True)
        outside = ~self._exclude.to(ids.device).allowed(batch.rows, distinct.expand(count, -1))
        shared = drawn.pooled or not self._index.count
        expected = torch.zeros(1 if shared else count, len(distinct), dtype=torch.float64, device=ids.device)
        times = expected
        if self._index.count:
            expected = self._index.count * drawn.log_prob(distinct, count).exp()
            at = torch.searchsorted(distinct, drawn.ids.contiguous())
            times = times.scatter_add(1, at, torch.ones_like(at, dtype=torch.float64))
        if not self._batch:
            ratio = times / expected
        elif batch.meeting is not None:
            ratio = batch.meeting.ratio(distinct, times / views, expected / views)
        else:
            uniform = (len(batch.batch_rows) - 1) / (self._num_rows - 1)
            ratio = (times / views + torch.isin(distinct, batch.batch_rows)) / (expected / views + uniform)
        log_ratio = torch.where(outside, -torch.inf, ratio.log())
        return (log_ratio - repeats.log())[:, column].float()
