"""EMC² (Yau et al. 2024): each anchor keeps a Metropolis–Hastings chain whose target is the softmax over the data set.

    π_i(j) ∝ exp(β s_ij), j ∈ D_i          w_ir = (visits of r after burn-in) / (states kept)

so that Σ_r w_ir ∇s_ir is an average over draws from π_i, the exact negative part of the global loss's gradient.

One chain per (row, view) goes on from visit to visit. A visit carries the last state's *row*; its score is computed
anew, with this step's anchor and this step's encoding of the row, since a score kept from an earlier visit is stale.
`start="fresh"` carries nothing: each visit takes its first proposal as its state, encodes no carried rows, and is as
far from π_i as the burn-in leaves it. Proposals, in one scan of alternating kernels (samplers/metropolis.py):

    in batch   the batch's other rows, in one random order: q uniform over D_i if batches are
    index      draws from an index proposal, whose density corrects for where it looks
    pool       M index draws for the whole batch (proposals/pooled.py) and, with "both", the batch's other rows, in an
               order of its own for every chain: one kernel, q(j) = (M q̄(j) + (B − 1)/(N − 1)) / (M + B − 1)

Each other row of the batch is proposed once a visit, under one of its views at random. Published code proposes both
views (`batch_views="all"`): twice as many proposals, but the second of a row is no fresh draw from D_i. It is proposed
*because* the first was, and the chain drifts from π_i towards the softmax over the batch (docs/emc2.md has the sizes).

Stale scores choose, fresh scores weigh: index draws and carried states are known before the forward pass, so they are
encoded together with the views, each distinct row once. What the chain runs on is `score`:

    fresh     this step's embeddings; every proposal is encoded
    bank      the bank's scores s̃; kept states alone are encoded. Its target is the softmax of *stale* scores: rows that
              look hardest in the bank are picked for their noise, and learning suffers
    delayed   the bank's scores, and one correction of the chain's end j against its start c with fresh embeddings,
              α = min{1, exp(β (s_ij − s_ic − s̃_ij + s̃_ic))}: the target is π_i exactly (Christen & Fox 2005), for the
              encodings of c and j. Weights are α on j and 1 − α on c, the expectation over the last coin

`delayed` needs the R steps on s̃ to be reversible as a whole: the order of kernels is turned round at random.

A state is a row; the view it is seen under is drawn anew at every encoding, so with random views the chain is noisy
in the augmentation, and exact where views are fixed. The in-batch steps of one visit never repeat a row: they are
independent draws from D_i up to terms of order B/N.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from negbank.samplers.metropolis import NO_STATE, Scan, acceptance, log_uniforms, scan
from negbank.samplers.negatives.contract import EncodedBatch, Info, Negatives, further_rows, require_drawn
from negbank.samplers.negatives.index_draws import IndexDraws
from torch import Tensor

from negbank.counter import uniforms
from negbank.exclusions import Exclusions
from negbank.proposals import PooledDistribution, Proposal, ProposalDistribution
from negbank.snapshot import Snapshot

PROPOSALS = ("in_batch", "index", "both")
SCORES = ("fresh", "bank", "delayed")
STARTS = ("persistent", "fresh")
BATCH_VIEWS = ("one", "all")
IN_BATCH, INDEX = 0, 1
"""Kernels of the scan. A pool has one, in place of INDEX."""


class _Drawn(NamedTuple):
    """What one visit drew before the forward pass."""

    rows: Tensor  # (B,)
    proposed: Tensor  # (B, n) ids from the index proposal, or (1, M) of the pool
    distribution: ProposalDistribution | PooledDistribution  # their density, of the B rows or of all together
    kept: Tensor | None  # (V·B, B + E) counts, when the chain has run on bank scores already
    ends: tuple[Tensor, Tensor, Tensor] | None  # rows c, j (V·B,) and β(s̃_ic − s̃_ij), when it waits for its correction
    info: Info


class Emc2:
    """Chains with in-batch proposals, index proposals, or both in alternation.

    Args:
        num_rows: N.
        temperature: τ = 1/β of the target.
        views: V, views a row.
        proposals: "in_batch" (as published), "index", or "both".
        proposal: snapshot → proposal of the index steps; before the first snapshot they are uniform.
        draws: index proposals a visit: of each row, shared by its views, or with `pool` of the whole batch.
        pool: whether all anchors are offered one pool of draws.
        query: "bank", or "fresh": index draws are asked for with the rows' fresh embeddings.
        start: "persistent", or "fresh".
        burn_in: share of a visit's proposals whose states are not kept, in [0, 1).
        score: "fresh", "bank", or "delayed".
        batch_views: in-batch proposals of a row: "one" of its views at random, or "all" of them, as published.
        exclude: rows that are no negatives of each other; only the anchor's own row by default.
        generator: of all random draws; on the CPU.
        device: where the chains live.

    Raises:
        ValueError: for values out of range, or index steps without `proposal`.
    """

    momentum: float | None = None
    learned: Sequence[Tensor] = ()

    def __init__(
        self,
        num_rows: int,
        *,
        temperature: float,
        views: int = 2,
        proposals: str = "both",
        proposal: Callable[[Snapshot], Proposal] | None = None,
        draws: int = 2,
        pool: bool = False,
        query: str = "bank",
        start: str = "persistent",
        burn_in: float = 0.5,
        score: str = "fresh",
        batch_views: str = "one",
        exclude: Exclusions | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature={temperature}: expected a value above 0")
        for name, value, choices in (
            ("proposals", proposals, PROPOSALS),
            ("score", score, SCORES),
            ("start", start, STARTS),
            ("batch_views", batch_views, BATCH_VIEWS),
        ):
            if value not in choices:
                raise ValueError(f"{name}={value!r}: expected one of {', '.join(choices)}")
        if not 0 <= burn_in < 1:
            raise ValueError(f"burn_in={burn_in}: expected a share in [0, 1) of a visit's proposals")
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
        self._in_batch = proposals != "index"
        self.requires = "uniform" if self._in_batch else "any"
        self._num_rows, self._temperature, self._views = num_rows, temperature, views
        self._burn_in, self._score, self._persistent = burn_in, score, start == "persistent"
        self._all_views = batch_views == "all"
        self._exclude = (Exclusions(num_rows) if exclude is None else exclude).to(torch.device(device))
        self._generator = generator
        self._index = IndexDraws(
            proposal, draws=draws, pool=pool, stratified=False, query=query, exclude=self._exclude, generator=generator
        )
        self.fresh_queries = self._index.fresh
        self.chains = torch.full((num_rows, views), NO_STATE, dtype=torch.int64, device=device)
        self._drawn: _Drawn | None = None

    def update(self, snapshot: Snapshot) -> None:
        """Propose from this version of the bank from now on."""
        self._index.update(snapshot)

    def draw(self, rows: Tensor, queries: Tensor | None = None) -> Tensor:
        """Index proposals and carried states of rows (B,), as the distinct further rows (E,) to encode.

        Raises:
            ValueError: without `queries` under query="fresh".
        """
        queries = self._index.queries(rows, queries)
        index, distribution = self._index(rows, queries)
        further = further_rows(torch.cat((index.flatten(), self.chains[rows].flatten())), rows)
        self._drawn = drawn = _Drawn(rows, index, distribution, None, None, {})
        snapshot = self._index.snapshot
        if self._score == "fresh" or snapshot is None:
            return further
        ids = torch.cat((rows, further))
        scores = (queries @ snapshot.vectors[ids].T).repeat(self._views, 1)
        done, before, info = self._visit(drawn, scores, ids, len(rows))
        if self._score == "bank":
            self._move(rows, ids, done.state)
            self._drawn = drawn._replace(kept=done.counts, info=info)
            return further[(done.counts[:, len(rows) :] > 0).any(0)]
        ends = torch.stack((before, done.state))
        stale = scores.gather(1, ends.T.clamp(min=0)) / self._temperature
        ends = torch.where(ends == NO_STATE, NO_STATE, ids[ends.clamp(min=0)])
        self._drawn = drawn._replace(ends=(ends[0], ends[1], stale[:, 0] - stale[:, 1]), info=info)
        return further[torch.isin(further, ends)]

    def __call__(self, batch: EncodedBatch) -> tuple[Negatives, Info]:
        """See `NegativeSampler.__call__`.

        Raises:
            RuntimeError: when `draw` was not called with this batch's rows just before.
        """
        drawn, self._drawn = self._drawn, None
        require_drawn(None if drawn is None else drawn.rows, batch)
        assert drawn is not None
        scores = batch.anchors @ batch.candidates.T
        ids, info = batch.candidate_rows, drawn.info
        if drawn.ends is not None:
            kept = self._correct(drawn, scores.detach(), ids, info)
        elif drawn.kept is not None:
            kept = self._spread(drawn, ids)
        else:
            done, _, info = self._visit(drawn, scores.detach(), ids, len(batch.anchors))
            self._move(drawn.rows, ids, done.state)
            kept = done.counts
        kept = kept.to(scores.dtype)
        weights = kept / kept.sum(1, keepdim=True).clamp(min=1)
        info["extra_encodings"] = float(len(batch.drawn_rows))
        info["hardness"] = float((weights * scores.detach()).sum(1).mean())
        return Negatives(scores, weights), info

    def _visit(self, drawn: _Drawn, scores: Tensor, ids: Tensor, inside: int) -> tuple[Scan, Tensor, Info]:
        """Scan all chains over candidate columns of rows ids (C,), of which the first `inside` are the batch's.

        Returns the scan, the columns (A,) of the states it started from, and what happened.
        """
        rows, device, views = drawn.rows, scores.device, self._views
        own, view = self._chain(rows)
        columns = _Columns(ids, self._generator)
        before = columns.of(self.chains[own, view])
        index = columns.of(drawn.proposed.expand(len(rows), -1).repeat(views, 1))
        batch = self._batch_order(len(rows), inside).to(device).expand(len(own), -1)
        batch = torch.where(ids[batch] == own[:, None], NO_STATE, batch)
        allowed = self._exclude.allowed(rows, columns.distinct.expand(len(rows), -1))
        log_q = self._index.log_prob(drawn.distribution, columns.distinct, len(rows)) if self._index.count else None
        if self._index.pool and log_q is not None:
            proposals = _shuffle(torch.cat((batch, index), 1), self._generator)
            kernels = torch.zeros(proposals.shape[1], dtype=torch.int64)
            if self._in_batch:
                expected = (len(rows) - 1) / (self._num_rows - 1) / self._index.count
                log_q = torch.logaddexp(log_q, log_q.new_tensor(expected).log())  # up to a constant, which drops out
            log_q = log_q.expand(len(rows), -1)[None]
        else:
            proposals, kernels = _alternate(batch, index)
            # The uniform density is a constant, and drops out of its kernel's ratio.
            log_q = torch.stack([torch.zeros_like(allowed, dtype=torch.float64)] + ([] if log_q is None else [log_q]))
        # w = β s − log q, and −∞ outside D_i
        shift = torch.where(allowed, log_q, torch.inf).to(scores.dtype)[:, :, columns.inverse].repeat(1, views, 1)
        log_weights = scores / self._temperature - shift
        if self._score == "delayed":  # a correction is against a state: a chain without one takes its first allowed row
            open_to = allowed[:, columns.inverse].repeat(views, 1).gather(1, proposals.clamp(min=0)) & (proposals >= 0)
            first = proposals.gather(1, open_to.int().argmax(1, keepdim=True))[:, 0]
            before = torch.where((before == NO_STATE) & open_to.any(1), first, before)
        if self._score == "delayed" and float(torch.rand((), generator=self._generator)) < 0.5:
            kernels, proposals = kernels.flip(0), proposals.flip(1)
        log_u = log_uniforms(proposals.shape[1], len(own), generator=self._generator, device=device)
        burn_in = int(self._burn_in * proposals.shape[1])
        done = scan(log_weights, proposals, kernels, log_u, before, burn_in=burn_in)
        proposed, accepted = done.proposed.sum(0).tolist(), done.accepted.sum(0).tolist()
        names = ("pool",) if self._index.pool else ("in_batch", "index")
        info = {f"acceptance_{name}": a / p for name, a, p in zip(names, accepted, proposed) if p}
        info["moved"] = float((done.state != before).double().mean())
        return done, before, info

    def _chain(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Row and view of the chains of a batch's rows (B,), in the order of its anchors: two (V·B,)."""
        view = torch.arange(self._views, device=rows.device).repeat_interleave(len(rows))
        return rows.repeat(self._views), view

    def _move(self, rows: Tensor, ids: Tensor, state: Tensor) -> None:
        """The chains of rows (B,) go on from columns `state` (V·B,) of ids."""
        if self._persistent:
            self.chains[self._chain(rows)] = torch.where(state == NO_STATE, NO_STATE, ids[state.clamp(min=0)])

    def _batch_order(self, rows: int, inside: int) -> Tensor:
        """Columns of the in-batch steps, the same for all chains: every row of the batch once, or every view once."""
        if not self._in_batch:
            return torch.empty(0, dtype=torch.int64)
        if self._all_views:
            return torch.randperm(inside, generator=self._generator)
        view = torch.randint(inside // rows, (rows,), generator=self._generator)
        return torch.randperm(rows, generator=self._generator) + rows * view

    def _correct(self, drawn: _Drawn, scores: Tensor, ids: Tensor, info: Info) -> Tensor:
        """The second stage of delayed acceptance: weights (A, C) of start and end, and the chains' next states."""
        assert drawn.ends is not None
        start, end, stale = drawn.ends
        columns = _Columns(ids, self._generator)
        before, after = columns.of(start), columns.of(end)
        after = torch.where(start == end, before, after)
        fresh = scores.gather(1, torch.stack((before, after), 1).clamp(min=0)) / self._temperature
        accept = acceptance(fresh[:, 1] + stale, fresh[:, 0])
        coin = uniforms(tuple(accept.shape), generator=self._generator, device=scores.device)
        self._move(drawn.rows, ids, torch.where(coin < accept, after, before))
        moving = start != end
        if bool(moving.any()):
            info["acceptance_delayed"] = float(accept[moving].mean())
        weights = torch.zeros_like(scores).scatter_add_(1, after.clamp(min=0)[:, None], accept[:, None])
        weights.scatter_add_(1, before.clamp(min=0)[:, None], 1 - accept[:, None])
        return torch.where(end[:, None] == NO_STATE, 0.0, weights)

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
        pick = uniforms(tuple(rows.shape), generator=self._generator, device=rows.device)
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


def _shuffle(proposals: Tensor, generator: torch.Generator | None) -> Tensor:
    """Proposals (A, R), each chain's in a random order of its own."""
    keys = uniforms(tuple(proposals.shape), generator=generator, device=proposals.device)
    return proposals.gather(1, keys.argsort(1))
