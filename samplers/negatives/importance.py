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
                          others say it of themselves (`BatchSampler.expected`, batches/drawn.py). This is the
                          balance heuristic of multiple importance sampling (Veach & Guibas 1995, eq. 14).

Z_i is unbiased for own draws, with or without the batch, and for the pool alone. For the pool with the batch it is so
up to terms of order 1/B: q̄ is the mean over the batch's own rows, and so knows which rows are in it.

The bank chooses (q), fresh scores weigh (s). A draw of the anchor's own row, which a pool may hold, counts in M and has
weight 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from negbank.samplers.negatives.contract import EncodedBatch, Info, Negatives, further_rows, require_drawn
from negbank.samplers.negatives.index_draws import IndexDraws
from torch import Tensor

from negbank.exclusions import Exclusions
from negbank.proposals import PooledDistribution, Proposal, ProposalDistribution
from negbank.snapshot import Snapshot


class _Drawn(NamedTuple):
    rows: Tensor  # (B,)
    ids: Tensor  # (B, n) own draws, or (1, M) the pool
    distribution: ProposalDistribution | PooledDistribution  # of the B rows one by one, or of all together


class Importance:
    """Self-normalised importance sampling of π_i from index draws, the batch, or both.

    Args:
        num_rows: N.
        temperature: τ = 1/β.
        proposal: snapshot → proposal; before the first snapshot draws are uniform.
        draws: M: with `pool` for the whole batch, otherwise for each row, shared by its views; 0: the batch alone.
        pool: whether all anchors share one pool.
        query: "bank", or "fresh": draws are asked for with the rows' fresh embeddings.
        batch: whether the batch's other rows are candidates as well; needs uniform or `drawn` batches.
        positive: whether the positive is in the denominator.
        exclude: rows that are no negatives of each other; only the anchor's own row by default.
        generator: of all random draws; on the CPU.

    Raises:
        ValueError: for a temperature ≤ 0, draws < 0, neither draws nor the batch, draws without a proposal, or an
            unknown query.
    """

    momentum: float | None = None
    learned: Sequence[Tensor] = ()

    def __init__(
        self,
        num_rows: int,
        *,
        temperature: float,
        proposal: Callable[[Snapshot], Proposal] | None = None,
        draws: int = 64,
        pool: bool = True,
        query: str = "bank",
        batch: bool = True,
        positive: bool = True,
        exclude: Exclusions | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature={temperature}: expected a value above 0")
        if draws < 0 or (not draws and not batch) or (draws and proposal is None):
            raise ValueError(
                f"draws={draws}, batch={batch}, proposal={proposal}: expected draws from a proposal, or draws=0 and "
                f"batch=True for the batch alone"
            )
        self.requires, self._batch = "known" if batch else "any", batch
        self._num_rows, self._temperature, self._positive, self._generator = num_rows, temperature, positive, generator
        self._exclude = Exclusions(num_rows) if exclude is None else exclude
        self._index = IndexDraws(
            proposal if draws else None,
            draws=draws,
            pool=pool and draws > 0,
            stratified=True,
            query=query,
            exclude=self._exclude,
            generator=generator,
        )
        self.fresh_queries = self._index.fresh
        self._drawn: _Drawn | None = None

    def update(self, snapshot: Snapshot) -> None:
        """Propose from this version of the bank from now on."""
        self._index.update(snapshot)

    def draw(self, rows: Tensor, queries: Tensor | None = None) -> Tensor:
        """The distinct drawn rows that are not in the batch (E,).

        Raises:
            ValueError: without `queries` under query="fresh".
        """
        ids, distribution = self._index(rows, self._index.queries(rows, queries))
        self._drawn = _Drawn(rows, ids, distribution)
        return further_rows(ids, rows)

    def __call__(self, batch: EncodedBatch) -> tuple[Negatives, Info]:
        """See `NegativeSampler.__call__`.

        Raises:
            RuntimeError: when `draw` was not called with this batch's rows just before.
        """
        drawn, self._drawn = self._drawn, None
        require_drawn(None if drawn is None else drawn.rows, batch)
        assert drawn is not None
        scores = batch.anchors @ batch.candidates.T
        with torch.no_grad():
            log_ratio = self._log_ratio(batch, drawn)
            logits = scores / self._temperature + log_ratio.repeat(batch.views, 1)
            positive = (batch.anchors * batch.positives).sum(-1, keepdim=True) / self._temperature
            every = torch.cat((logits, positive), 1) if self._positive else logits
            weights = torch.softmax(every, 1)[:, : logits.shape[1]].nan_to_num(0.0)
            share = weights / weights.sum(1, keepdim=True).clamp(min=1e-12)
            info = {
                "effective_candidates": float((1 / share.square().sum(1).clamp(min=1e-12)).mean()),
                "hardness": float((share * scores).sum(1).mean()),
                "extra_encodings": float(len(batch.drawn_rows)),
            }
        return Negatives(scores, weights), info

    def _log_ratio(self, batch: EncodedBatch, drawn: _Drawn) -> Tensor:
        """log k/n of every column for every row of the batch (B, C); −∞ outside D_i and where nothing was drawn.

        A drawn row that is in the batch has V columns, each with a V-th of its draws.
        """
        ids, count = batch.candidate_rows, len(drawn.rows)
        distinct, column, repeats = ids.unique(return_inverse=True, return_counts=True)
        each = distinct.expand(count, -1)
        outside = ~self._exclude.to(ids.device).allowed(batch.rows, each)
        log_q = self._index.log_prob(drawn.distribution, distinct, count)
        at = torch.searchsorted(distinct, drawn.ids.contiguous())
        times = torch.zeros(len(drawn.ids), len(distinct), dtype=torch.float64, device=ids.device)
        times = times.scatter_add_(1, at, torch.ones_like(at, dtype=torch.float64)) / repeats
        expected = self._index.count * log_q.exp()
        times = times[:, column]
        if self._batch:
            others = (count - 1) / (self._num_rows - 1) if batch.expected is None else batch.expected(distinct)
            expected = expected + batch.views * others
            times = times + (torch.arange(len(ids), device=ids.device) < len(batch.anchors))
        log_ratio = (times / expected[:, column]).log()
        return torch.where(outside[:, column], -torch.inf, log_ratio).float()

    def state_dict(self) -> dict[str, Any]:
        """Where the generator stands."""
        return {"generator": None if self._generator is None else self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the generator."""
        if self._generator is not None and state["generator"] is not None:
            self._generator.set_state(state["generator"])
