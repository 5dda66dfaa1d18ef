"""EMC² (Yau et al. 2024): each anchor keeps a Metropolis–Hastings chain whose target is the softmax over the data set.

    π_i(j) ∝ exp(β s_ij), j ∈ D_i          w_ir = (visits of r after burn-in) / (states kept)

so that Σ_r w_ir ∇s_ir is an average over draws from π_i, the exact negative part of the global loss's gradient.

One chain per (row, view) goes on from visit to visit. A visit carries the last state's *row*; its score is computed
anew, with this step's anchor and this step's encoding of the row, since a score kept from an earlier visit is stale.
`start="fresh"` carries nothing: each visit takes its first proposal as its state, encodes no carried rows, and is as
far from π_i as the burn-in leaves it. Chains are offered the batch's rows, index draws, or both (visit.py).

Each other row of the batch is proposed once a visit, under one of its views at random. Published code proposes both
views (`batch_views="all"`): twice as many proposals, but the second of a row is no fresh draw from D_i. It is proposed
*because* the first was, and the chain drifts from π_i towards the softmax over the batch (docs/emc2.md has the sizes).

Stale scores choose, fresh scores weigh: index draws and carried states are known before the forward pass, so they are
encoded together with the views, each distinct row once. What the chain runs on is `score`:

    fresh     this step's embeddings; every proposal is encoded
    bank      the bank's scores s̃; kept states alone are encoded. Its target is the softmax of *stale* scores: rows that
              look hardest in the bank are picked for their noise, and learning suffers
    delayed   the bank's scores, and one correction of the chain's end j against its start c with fresh embeddings: the
              target is π_i exactly (Christen & Fox 2005), for the encodings of c and j. Weights are the probabilities α
              on j and 1 − α on c, the expectation over the last coin

A state is a row; the view it is seen under is drawn anew at every encoding, so with random views the chain is noisy
in the augmentation, and exact where views are fixed. The in-batch steps of one visit never repeat a row: they are
independent draws from D_i up to terms of order B/N.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from negbank.bank import require_rows
from negbank.bounds import Annotated, Count, Ge, Lt, Positive, Section, checked
from negbank.counter import Counter
from negbank.exclusions import Exclusions
from negbank.proposals import Proposal
from negbank.samplers.metropolis import NO_STATE
from negbank.samplers.negatives.contract import (
    EncodedBatch,
    Info,
    Negatives,
    NegativeSampler,
    Ticket,
    hardness,
    keep_nothing,
)
from negbank.samplers.negatives.index_draws import Drawn, IndexDraws
from negbank.samplers.negatives.visit import Kernels, Stale, rows_of, spread
from negbank.snapshot import Snapshot


class Visit(NamedTuple):
    """A ticket's own: what the index drew, and the walk over the bank's scores where there was one."""

    drawn: Drawn
    views: int
    stale: Stale | None = None

    def part(self, rows: slice) -> Visit:
        """That of some of the rows."""
        stale = None if self.stale is None else self.stale.part(rows, self.views)
        return Visit(self.drawn.part(rows), self.views, stale)


class Emc2(NegativeSampler):
    """EMC²: Metropolis–Hastings chains with in-batch and index proposals.

    Args:
        num_rows: N.
        temperature: τ = 1/β of the target.
        views: V, views a row.
        proposals: what chains are offered: the batch's rows (as published), index draws, or both in alternation.
        proposal: snapshot → proposal of the index steps; before the first snapshot they are uniform.
        draws: index draws a visit: of each row, shared by its views, with pool of the whole batch.
        pool: all anchors are offered one pool of draws.
        query: what the index is asked with; fresh: a second pass, no batch norm.
        start: persistent, or fresh: no state is carried or encoded.
        burn_in: share of a visit's steps whose states are not kept.
        score: bank: cheaper, but a stale target; delayed: bank scores and one exact correction a chain.
        batch_views: in-batch proposals of a row; all: as published, with a bias (docs/emc2.md).
        exclude: rows that are no negatives of each other; only the anchor's own row by default.
        counter: place of the random draws, of which each step has its own.
        device: where the chains live.

    Raises:
        ValueError: for options that do not go together, or index steps without `proposal`.
    """

    @checked
    def __init__(
        self,
        num_rows: int,
        *,
        temperature: Positive,
        views: int = 2,
        proposals: Literal["in_batch", "index", "both"] = "both",
        proposal: Annotated[Callable[[Snapshot], Proposal] | None, Section("proposal", "head_tail")] = None,
        draws: Count = 2,
        pool: bool = False,
        query: Literal["bank", "fresh"] = "bank",
        start: Literal["persistent", "fresh"] = "persistent",
        burn_in: Annotated[float, Ge(0), Lt(1)] = 0.5,
        score: Literal["fresh", "bank", "delayed"] = "fresh",
        batch_views: Literal["one", "all"] = "one",
        exclude: Exclusions | None = None,
        counter: Counter = Counter.of(0),
        device: torch.device | str = "cpu",
    ) -> None:
        if proposals == "in_batch":
            if pool or query == "fresh":
                raise ValueError(
                    f"proposals='in_batch': draws nothing from the index; drop pool={pool} query={query!r}"
                )
            proposal = None
        elif proposal is None:
            raise ValueError(f"proposals={proposals!r}: needs `proposal`, or take proposals='in_batch'")
        if batch_views == "all" and (pool or score != "fresh"):
            raise ValueError(
                f"batch_views='all': a pool, and bank scores, offer rows once and not by view; take 'one', or "
                f"pool=False and score='fresh' (now pool={pool}, score={score!r})"
            )
        self.requires = "any" if proposals == "index" else "uniform"
        self.reads_snapshot = proposals != "in_batch" or score != "fresh"
        self._views, self._score, self._persistent, self._counter = views, score, start == "persistent", counter
        exclude = (exclude or Exclusions(num_rows)).to(torch.device(device))
        self._index = IndexDraws(
            proposal, draws=draws, pool=pool, stratified=False, fresh=query == "fresh", exclude=exclude
        )
        self.fresh_queries = self._index.fresh
        self.draws_ahead = not self.fresh_queries  # a chain changes when its row is met
        self._kernels = Kernels(
            num_rows,
            views,
            temperature,
            burn_in,
            in_batch=proposals != "index",
            all_views=batch_views == "all",
            reversible=score == "delayed",
            exclude=exclude,
        )
        self.chains = torch.full((num_rows, views), NO_STATE, dtype=torch.int64, device=device)

    def update(self, snapshot: Snapshot) -> None:
        """Propose from this version of the bank from now on."""
        self._index.update(snapshot)

    def draw(self, rows: Tensor, *, step: int, queries: Tensor | None = None) -> Ticket:
        """See `NegativeSampler.draw`: index proposals and carried states."""
        require_rows(rows, len(self.chains))
        queries = self._index.queries(rows, queries)
        drawn = self._index(rows, queries, self._counter.at("draw", step).generator())
        states = self.chains[rows].T.flatten()
        ids = torch.cat((drawn.ids.flatten(), states))
        ticket = Ticket.of(step, rows, ids, Visit(drawn, self._views))
        snapshot = self._index.snapshot
        if self._score == "fresh" or snapshot is None:
            return ticket
        ids = torch.cat((rows, ticket.further))
        scores = (queries @ snapshot.vectors[ids].T).repeat(self._views, 1)
        place = self._counter.at("walk", step)
        counts, start, end, info = self._kernels.walk(scores, ids, len(rows), ticket, states, drawn, place)
        pair = scores.gather(1, torch.stack((start, end), 1).clamp(min=0)) / self._kernels.temperature
        stale = Stale(counts, rows_of(start, ids), rows_of(end, ids), pair[:, 0] - pair[:, 1], info)
        if self._score == "bank":
            kept = (counts[:, len(rows) :] > 0).any(0)
        else:
            kept = torch.isin(ticket.further, torch.cat((stale.start, stale.end)))
        stale = stale._replace(counts=torch.cat((counts[:, : len(rows)], counts[:, len(rows) :][:, kept]), 1))
        return Ticket(step, rows, ticket.further[kept], Visit(drawn, self._views, stale))

    def __call__(self, batch: EncodedBatch, ticket: Ticket) -> tuple[Negatives, Info]:
        """See `NegativeSampler.__call__`."""
        ticket.require(batch)
        rows, (drawn, _, stale) = batch.rows, ticket.own
        scores, ids = batch.scores, batch.candidate_rows
        view = torch.arange(self._views, device=rows.device).repeat_interleave(len(rows))
        chains = (rows.repeat(self._views), view)
        place = self._counter.at("walk" if stale is None else "end", ticket.step)
        if stale is None:
            kept, _, end, info = self._kernels.walk(
                scores.detach(), ids, batch.inside, ticket, self.chains[chains], drawn, place
            )
            states = rows_of(end, ids)
        elif self._score == "bank":
            source = torch.cat((batch.batch_rows, batch.drawn_rows))
            kept = spread(stale.counts, source, ids, place.uniforms(ticket.slots(self._views), len(source)))
            states, info = stale.end, stale.info
        else:
            kept, states, info = self._kernels.correct(stale, scores.detach(), ids, ticket.slots(self._views), place)
        kept = kept.to(scores.dtype)
        weights = kept / kept.sum(1, keepdim=True).clamp(min=1)
        extra = {"extra_encodings": float(len(batch.drawn_rows)), "hardness": hardness(weights, scores)}
        commit = partial(self._keep, chains, states) if self._persistent else keep_nothing
        return Negatives(scores, weights, commit=commit), {**info, **extra}

    def _keep(self, chains: tuple[Tensor, Tensor], states: Tensor) -> None:
        """Carry the states (A,) of chains on."""
        self.chains[chains] = states

    def state_dict(self) -> dict[str, Any]:
        """The chains (N, V)."""
        return {"chains": self.chains.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the chains.

        Raises:
            ValueError: when they are of another data set's shape.
        """
        if state["chains"].shape != self.chains.shape:
            raise ValueError(f"chains: {tuple(state['chains'].shape)} in the state, {tuple(self.chains.shape)} here")
        self.chains.copy_(state["chains"])
