"""One visit of EMC²'s chains: what they are offered, in which order, and how an end on stale scores is put right.

Proposals, in one scan of alternating kernels (samplers/metropolis.py):

    in batch   the batch's other rows, in one random order: q uniform over D_i if batches are
    index      draws from an index proposal, whose density corrects for where it looks
    pool       M index draws for the whole batch (proposals/pooled.py) and, with "both", the batch's other rows, in an
               order of its own for every chain: one kernel, q(j) = (M q̄(j) + (B − 1)/(N − 1)) / (M + B − 1)

A walk over the bank's scores s̃ is corrected once, its end j against its start c, by fresh scores (Christen & Fox 2005):

    α = min{1, exp(β (s_ij − s_ic − s̃_ij + s̃_ic))}

For that its R steps are to be reversible as a whole: the order of kernels is turned round at random.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from negbank.counter import Counter
from negbank.exclusions import Exclusions
from negbank.samplers.metropolis import NO_STATE, accept, acceptance, log_uniforms, scan
from negbank.samplers.negatives.contract import Info, Ticket, number, of_rows
from negbank.samplers.negatives.index_draws import Drawn

IN_BATCH, INDEX = 0, 1
"""Kernels of the scan. A pool has one, in place of INDEX."""


class Walk(NamedTuple):
    """Where chains went over columns of scores: counts (A, C) of kept states, the columns start and end (A,), and what
    happened."""

    counts: Tensor
    start: Tensor
    end: Tensor
    info: Info


class Stale(NamedTuple):
    """A walk over the bank's scores: counts (A, B + E), the rows start and end (A,), β(s̃_ic − s̃_ij) as gap (A,)."""

    counts: Tensor
    start: Tensor
    end: Tensor
    gap: Tensor
    info: Info

    def part(self, rows: slice, views: int) -> Stale:
        """That of some of the rows."""
        counts, start, end, gap = (of_rows(each, rows, views) for each in (self.counts, self.start, self.end, self.gap))
        return Stale(counts, start, end, gap, self.info)


@dataclass(frozen=True)
class Kernels:
    """What chains are offered at a visit.

    num_rows, views, temperature, burn_in: as in `Emc2`. in_batch: whether the batch's rows are offered, and all_views:
    under every view. reversible: whether kernels are turned round at random. exclude: what no chain enters.
    """

    num_rows: int
    views: int
    temperature: float
    burn_in: float
    in_batch: bool
    all_views: bool
    reversible: bool
    exclude: Exclusions

    def walk(
        self,
        scores: Tensor,
        ids: Tensor,
        inside: int,
        ticket: Ticket,
        start: Tensor,
        drawn: Drawn,
        counter: Counter,
    ) -> Walk:
        """Scan the chains of a ticket's rows (B,), A = V·B, from the rows start (A,).

        scores (A, C): of columns of rows ids (C,), of which the first `inside` are the batch's. counter: of the visit.
        What all chains share is drawn at the place itself, what is a chain's own in its slot.
        """
        generator, rows, slots = counter.generator(), ticket.rows, ticket.slots(self.views)
        own, device = rows.repeat(self.views), scores.device
        columns = Columns(ids)
        before = columns.of(start[:, None], counter.at("start").uniforms(slots, 1))[:, 0]
        index = drawn.ids.expand(len(rows), -1).repeat(self.views, 1)
        index = columns.of(index, counter.at("index").uniforms(slots, index.shape[1]))
        batch = self._batch_order(ticket.batch_size, inside, generator).to(device).expand(len(own), -1)
        batch = torch.where(ids[batch] == own[:, None], NO_STATE, batch)
        if drawn.pooled:
            proposals = torch.cat((batch, index), 1)
            keys = counter.at("order").uniforms(slots, proposals.shape[1])
            proposals = proposals.gather(1, keys.argsort(1))  # each chain's in a random order of its own
            kernels = torch.zeros(proposals.shape[1], dtype=torch.int64)
        else:
            proposals, kernels = _alternate(batch, index)
        log_weights = self._log_weights(scores, ticket, drawn, columns)
        if self.reversible:  # a correction is against a state: a chain without one takes its first allowed row
            enters = (proposals >= 0) & (log_weights[0].gather(1, proposals.clamp(min=0)) > -torch.inf)
            first = proposals.gather(1, enters.int().argmax(1, keepdim=True))[:, 0]
            before = torch.where((before == NO_STATE) & enters.any(1), first, before)
            if float(torch.rand((), generator=generator)) < 0.5:
                kernels, proposals = kernels.flip(0), proposals.flip(1)
        log_u = log_uniforms(proposals.shape[1], slots, counter=counter.at("uniforms"))
        done = scan(log_weights, proposals, kernels, log_u, before, burn_in=int(self.burn_in * proposals.shape[1]))
        names = ("pool",) if drawn.pooled else ("in_batch", "index")
        proposed, taken = done.proposed.sum(0).tolist(), done.accepted.sum(0).tolist()
        info = {f"acceptance_{name}": a / p for name, a, p in zip(names, taken, proposed) if p}
        info["moved"] = number((done.state != before).double().mean())
        return Walk(done.counts, before, done.state, info)

    def _log_weights(self, scores: Tensor, ticket: Ticket, drawn: Drawn, columns: Columns) -> Tensor:
        """w = β s − log q of every kernel (M, A, C), −∞ outside D_i; constants of a kernel drop out of its ratio."""
        rows = ticket.rows
        allowed = self.exclude.allowed(rows, columns.distinct.expand(len(rows), -1))
        uniform = torch.zeros_like(allowed, dtype=torch.float64)
        draws = drawn.ids.shape[1]
        if not draws:
            log_q = uniform[None]
        elif not drawn.pooled:
            log_q = torch.stack((uniform, drawn.log_prob(columns.distinct, len(rows))))
        else:
            log_q = drawn.log_prob(columns.distinct, len(rows))
            if self.in_batch:
                expected = (ticket.batch_size - 1) / (self.num_rows - 1) / draws
                log_q = torch.logaddexp(log_q, log_q.new_tensor(expected).log())
            log_q = log_q.expand(len(rows), -1)[None]
        shift = torch.where(allowed, log_q, torch.inf).to(scores.dtype)[:, :, columns.inverse].repeat(1, self.views, 1)
        return scores / self.temperature - shift

    def _batch_order(self, rows: int, inside: int, generator: torch.Generator) -> Tensor:
        """Columns of the in-batch steps, the same for all chains: every row of the batch once, or every view once."""
        if not self.in_batch:
            return torch.empty(0, dtype=torch.int64)
        if self.all_views:
            return torch.randperm(inside, generator=generator)
        view = torch.randint(inside // rows, (rows,), generator=generator)
        return torch.randperm(rows, generator=generator) + rows * view

    def correct(
        self, stale: Stale, scores: Tensor, ids: Tensor, slots: Tensor, counter: Counter
    ) -> tuple[Tensor, Tensor, Info]:
        """Correct a walk by fresh scores (A, C) of columns of rows ids (C,), of chains in slots (A,) of a place.

        Returns weights (A, C), α on the end and 1 − α on the start, their expectation over the coin; the rows (A,) that
        the chains are in after it; and what happened.
        """
        u, coin = counter.uniforms(slots, 3).to(scores.device).split((2, 1), 1)
        before, after = Columns(ids).of(torch.stack((stale.start, stale.end), 1), u).T
        moving = stale.start != stale.end
        after = torch.where(moving, after, before)
        fresh = scores.gather(1, torch.stack((before, after), 1).clamp(min=0)) / self.temperature
        proposed, current = fresh[:, 1] + stale.gap, fresh[:, 0]
        alpha = acceptance(proposed, current)
        state = torch.where(accept(proposed, current, coin[:, 0]), stale.end, stale.start)
        info = {**stale.info, "acceptance_delayed": float(alpha[moving].mean())} if bool(moving.any()) else stale.info
        weights = torch.zeros_like(scores).scatter_add_(1, after.clamp(min=0)[:, None], alpha[:, None])
        weights.scatter_add_(1, before.clamp(min=0)[:, None], 1 - alpha[:, None])
        return torch.where(stale.end[:, None] == NO_STATE, 0.0, weights), state, info


class Columns:
    """Which columns hold a row's encodings: several where the row is in the batch under several views."""

    def __init__(self, ids: Tensor) -> None:
        self.distinct, self.inverse, self._counts = ids.unique(return_inverse=True, return_counts=True)
        self._order = self.inverse.argsort(stable=True)
        self._first = self._counts.cumsum(0) - self._counts

    def of(self, rows: Tensor, u: Tensor) -> Tensor:
        """One of each row's columns by uniforms u (...,), for rows (...,) that have one; `NO_STATE` stays."""
        at = torch.searchsorted(self.distinct, rows.clamp(min=0)).clamp(max=len(self.distinct) - 1)
        column = self._order[self._first[at] + (u * self._counts[at]).long()]
        return torch.where(rows == NO_STATE, NO_STATE, column)


def spread(counts: Tensor, source: Tensor, ids: Tensor, u: Tensor) -> Tensor:
    """Counts (A, n) over rows source (n,) laid onto the encoded columns ids (C,), each on one view by u (A, n)."""
    columns = Columns(ids).of(source.expand(len(counts), -1), u)
    return counts.new_zeros(len(counts), len(ids)).scatter_add_(1, columns, counts)


def rows_of(columns: Tensor, ids: Tensor) -> Tensor:
    """The rows of columns of ids (C,); `NO_STATE` stays."""
    return torch.where(columns == NO_STATE, NO_STATE, ids[columns.clamp(min=0)])


def _alternate(batch: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """In-batch steps (A, R) with index steps (A, n) spread evenly among them, an index step last: columns, kernels."""
    total, n = batch.shape[1] + index.shape[1], index.shape[1]
    kernels = torch.zeros(total, dtype=torch.int64)
    kernels[torch.tensor([(i + 1) * total // n - 1 for i in range(n)], dtype=torch.int64)] = INDEX
    proposals = batch.new_empty(len(index), total)
    proposals[:, kernels == IN_BATCH] = batch
    proposals[:, kernels == INDEX] = index
    return proposals, kernels
