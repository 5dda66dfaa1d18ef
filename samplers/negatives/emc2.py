"""EMC² (Yau et al. 2024): each anchor keeps a Metropolis–Hastings chain whose target is the softmax over the data set.

    π_i(j) ∝ exp(β s_ij), j ∈ D_i          w_ir = (visits of r after burn-in) / (states kept)

so that Σ_r w_ir ∇s_ir is an average over draws from π_i, the exact negative part of the global loss's gradient.

One chain per (row, view) goes on from visit to visit. A visit carries the last state's *row*; its score is computed
anew, with this step's anchor and this step's encoding of the row, since a score kept from an earlier visit is stale.
Proposals, in one scan of alternating kernels (samplers/metropolis.py):

    in batch   the batch's other rows, in one random order: q uniform over D_i if batches are
    index      draws from an index proposal, whose density corrects for where it looks

Each other row of the batch is proposed once a visit, under one of its views at random. Published code proposes both
views (`batch_views="all"`): twice as many proposals, but the second of a row is no fresh draw from D_i. It is proposed
*because* the first was, and the chain drifts from π_i towards the softmax over the batch (docs/emc2.md has the sizes).

Stale scores choose, fresh scores weigh: index draws and carried states are known before the forward pass (the query is
the anchor's bank row), so they are encoded together with the views, each distinct row once. With `score="bank"` the
chain runs on the bank's scores instead and only kept states are encoded. That is cheaper, and its target is the
softmax of *stale* scores: rows that look hardest in the bank are picked for their noise, and learning suffers.

A state is a row; the view it is seen under is drawn anew at every encoding, so with random views the chain is noisy
in the augmentation, and exact where views are fixed. The in-batch steps of one visit never repeat a row: they are
independent draws from D_i up to terms of order B/N.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from negbank.filters import Exclusions
from negbank.proposals import Anchors, Proposal, ProposalDistribution, Uniform
from negbank.random import uniforms
from negbank.snapshot import Snapshot
from samplers.metropolis import NO_STATE, scan
from samplers.negatives.contract import EncodedBatch, Info, Negatives

PROPOSALS = ("in_batch", "index", "both")
SCORES = ("fresh", "bank")
BATCH_VIEWS = ("one", "all")
IN_BATCH, INDEX = 0, 1
"""Kernels of the scan."""


class _Drawn(NamedTuple):
    """What one visit drew before the forward pass."""

    rows: Tensor  # (B,)
    proposed: Tensor  # (B, n) ids from the index proposal
    distribution: ProposalDistribution  # their density, of the B rows
    kept: Tensor | None  # (V·B, B + E) counts, when the chain has run on bank scores already
    info: Info


class Emc2:
    """Persistent chains with in-batch proposals, index proposals, or both in alternation.

    Args:
        num_rows: N.
        temperature: τ = 1/β of the target.
        views: V, views a row.
        proposals: "in_batch" (as published), "index", or "both".
        proposal: snapshot → proposal of the index steps; before the first snapshot they are uniform.
        draws: index proposals a visit, shared by the views of a row.
        burn_in: share of a visit's proposals whose states are not kept, in [0, 1).
        score: "fresh", or "bank".
        batch_views: in-batch proposals of a row: "one" of its views at random, or "all" of them, as published.
        exclude: rows that are no negatives of each other; only the anchor's own row by default.
        generator: of all random draws; on the CPU.
        device: where the chains live.

    Raises:
        ValueError: for values out of range, or index steps without `proposal`.
    """

    def __init__(
        self,
        num_rows: int,
        *,
        temperature: float,
        views: int = 2,
        proposals: str = "both",
        proposal: Callable[[Snapshot], Proposal] | None = None,
        draws: int = 2,
        burn_in: float = 0.5,
        score: str = "fresh",
        batch_views: str = "one",
        exclude: Exclusions | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature={temperature}: expected a value above 0")
        if proposals not in PROPOSALS:
            raise ValueError(f"proposals={proposals!r}: expected one of {', '.join(PROPOSALS)}")
        if score not in SCORES:
            raise ValueError(f"score={score!r}: expected one of {', '.join(SCORES)}")
        if batch_views not in BATCH_VIEWS:
            raise ValueError(f"batch_views={batch_views!r}: expected one of {', '.join(BATCH_VIEWS)}")
        if not 0 <= burn_in < 1:
            raise ValueError(f"burn_in={burn_in}: expected a share in [0, 1) of a visit's proposals")
        if proposals != "in_batch" and (proposal is None or draws < 1):
            raise ValueError(f"proposals={proposals!r}: needs `proposal` and draws ≥ 1, not draws={draws}")
        self.in_batch = proposals != "index"
        self._temperature, self._views, self._burn_in, self._score = temperature, views, burn_in, score
        self._all_views = batch_views == "all"
        self._bind, self._draws = proposal, 0 if proposals == "in_batch" else draws
        self._exclude = (Exclusions(num_rows) if exclude is None else exclude).to(torch.device(device))
        self._proposal: Proposal = Uniform(exclude=self._exclude)
        self._snapshot: Snapshot | None = None
        self._generator = generator
        self.chains = torch.full((num_rows, views), NO_STATE, dtype=torch.int64, device=device)
        self._drawn: _Drawn | None = None

    def update(self, snapshot: Snapshot) -> None:
        """Propose from this version of the bank from now on."""
        self._snapshot = snapshot
        if self._bind is not None:
            self._proposal = self._bind(snapshot)

    def draw(self, rows: Tensor) -> Tensor:
        """Index proposals and carried states of rows (B,), as the distinct further rows (E,) to encode."""
        queries = rows.new_zeros(len(rows), 1, dtype=torch.float32)
        if self._snapshot is not None:
            queries = self._snapshot.vectors[rows]
        distribution = self._proposal(Anchors(rows, queries))
        index = distribution.sample(self._draws, generator=self._generator)
        wanted = torch.cat((index, self.chains[rows]), 1).unique()
        further = wanted[(wanted != NO_STATE) & ~torch.isin(wanted, rows)]
        self._drawn = _Drawn(rows, index, distribution, None, {})
        if self._score == "fresh" or self._snapshot is None:
            return further
        ids = torch.cat((rows, further))
        scores = (queries @ self._snapshot.vectors[ids].T).repeat(self._views, 1)
        kept, info = self._visit(self._drawn, scores, ids, len(rows))
        self._drawn = self._drawn._replace(kept=kept, info=info)
        return further[(kept[:, len(rows) :] > 0).any(0)]

    def __call__(self, batch: EncodedBatch) -> tuple[Negatives, Info]:
        """See `NegativeSampler.__call__`.

        Raises:
            RuntimeError: when `draw` was not called with this batch's rows just before.
        """
        drawn, self._drawn = self._drawn, None
        if drawn is None or not torch.equal(drawn.rows, batch.rows):
            raise RuntimeError("batch: call draw(batch.rows) first, and encode the rows it returns with the batch")
        scores = batch.anchors @ batch.candidates.T
        ids = batch.candidate_rows
        if drawn.kept is None:
            counts, info = self._visit(drawn, scores.detach(), ids, len(batch.anchors))
        else:
            counts, info = self._spread(drawn, ids), drawn.info
        counts = counts.to(scores.dtype)
        weights = counts / counts.sum(1, keepdim=True).clamp(min=1)
        info["extra_encodings"] = float(len(batch.drawn_rows))
        info["hardness"] = float((weights * scores.detach()).sum(1).mean())
        return Negatives(scores, weights), info

    def _visit(self, drawn: _Drawn, scores: Tensor, ids: Tensor, inside: int) -> tuple[Tensor, Info]:
        """Scan all chains over candidate columns of rows ids (C,), of which the first `inside` are the batch's.

        Returns occupancy counts (A, C) and what happened; the chains move on to their last rows.
        """
        rows, device, views = drawn.rows, scores.device, self._views
        own = rows.repeat(views)
        view = torch.arange(views, device=device).repeat_interleave(len(rows))
        columns = _Columns(ids, self._generator)
        start = columns.of(self.chains[own, view][:, None])[:, 0]
        index = columns.of(drawn.proposed.repeat(views, 1))
        batch = self._batch_order(len(rows), inside).to(device).expand(len(own), -1)
        batch = torch.where(ids[batch] == own[:, None], NO_STATE, batch)
        proposals, kernels = _alternate(batch, index)
        # w = β s − log q, and −∞ outside D_i, where log q is −∞; the uniform density is a constant and drops out.
        log_q = drawn.distribution.log_prob(columns.distinct.expand(len(rows), -1)).to(scores.dtype)
        outside = log_q == -torch.inf
        shift = torch.stack((torch.where(outside, torch.inf, 0.0), torch.where(outside, torch.inf, log_q)))
        log_weights = scores / self._temperature - shift[:, :, columns.inverse].repeat(1, views, 1)
        log_u = uniforms(proposals.shape, generator=self._generator, device=device).log().to(log_weights)
        burn_in = int(self._burn_in * proposals.shape[1])
        done = scan(log_weights, proposals, kernels, log_u, start, burn_in=burn_in)
        self.chains[own, view] = torch.where(done.state == NO_STATE, NO_STATE, ids[done.state.clamp(min=0)])
        proposed, accepted = done.proposed.sum(0).tolist(), done.accepted.sum(0).tolist()
        info = {
            f"acceptance_{name}": accepted[m] / proposed[m]
            for m, name in ((IN_BATCH, "in_batch"), (INDEX, "index"))
            if proposed[m]
        }
        info["moved"] = float((done.state != start).double().mean())
        return done.counts, info

    def _batch_order(self, rows: int, inside: int) -> Tensor:
        """Columns of the in-batch steps, the same for all chains: every row of the batch once, or every view once."""
        if not self.in_batch:
            return torch.empty(0, dtype=torch.int64)
        if self._all_views:
            return torch.randperm(inside, generator=self._generator)
        view = torch.randint(inside // rows, (rows,), generator=self._generator)
        return torch.randperm(rows, generator=self._generator) + rows * view

    def _spread(self, drawn: _Drawn, ids: Tensor) -> Tensor:
        """Counts over the bank's rows (A, B + E) laid onto the encoded columns ids (C,), each on one view at random."""
        assert drawn.kept is not None
        source = torch.cat((drawn.rows, ids[self._views * len(drawn.rows) :]))
        inside = torch.arange(drawn.kept.shape[1], device=ids.device) < len(drawn.rows)
        kept = drawn.kept[:, inside | (drawn.kept > 0).any(0)]
        columns = _Columns(ids, self._generator).of(source.expand(len(kept), -1))
        return kept.new_zeros(len(kept), len(ids)).scatter_add_(1, columns, kept)

    def state_dict(self) -> dict[str, Any]:
        """The chains (N, V), and where the generator stands."""
        random = None if self._generator is None else self._generator.get_state()
        return {"chains": self.chains.clone(), "generator": random}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the chains and the generator.

        Raises:
            ValueError: when they are of another data set's shape.
        """
        if state["chains"].shape != self.chains.shape:
            raise ValueError(f"chains: {tuple(state['chains'].shape)} in the state, {tuple(self.chains.shape)} here")
        self.chains.copy_(state["chains"])
        if self._generator is not None and state["generator"] is not None:
            self._generator.set_state(state["generator"])


class _Columns:
    """Which columns hold a row's encodings: several where the row is in the batch under several views."""

    def __init__(self, ids: Tensor, generator: torch.Generator | None) -> None:
        self.distinct, self.inverse, self._counts = ids.unique(return_inverse=True, return_counts=True)
        self._order = self.inverse.argsort(stable=True)
        self._first = self._counts.cumsum(0) - self._counts
        self._generator = generator

    def of(self, rows: Tensor) -> Tensor:
        """A random one of each row's columns, for rows (...,) that have one; `NO_STATE` stays."""
        at = torch.searchsorted(self.distinct, rows.clamp(min=0)).clamp(max=len(self.distinct) - 1)
        pick = uniforms(rows.shape, generator=self._generator, device=rows.device)
        column = self._order[self._first[at] + (pick * self._counts[at]).long()]
        return torch.where(rows == NO_STATE, NO_STATE, column)


def _alternate(batch: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """In-batch steps (A, R) with index steps (A, n) spread evenly among them, an index step last: columns, kernels."""
    total, n = batch.shape[1] + index.shape[1], index.shape[1]
    kernels = torch.zeros(total, dtype=torch.int64)
    kernels[torch.tensor([(i + 1) * total // n - 1 for i in range(n)], dtype=torch.int64)] = INDEX
    proposals = batch.new_empty(len(index), total)
    proposals[:, kernels == IN_BATCH] = batch
    proposals[:, kernels == INDEX] = index
    return proposals, kernels
