"""Draws from the softmax over stored embeddings, by Gumbel-max:

    j ~ argmax_j β s̃_ij + G_j, G_j ~ Gumbel(0, 1), which has P(j) = exp(β s̃_ij) / Z_i,    Z_i = Σ_{j ∈ D_i} exp(β s̃_ij)

Exactly, at a cost of N an anchor: it is inverted, one uniform has the law of N noises. Or through an index, where only
noises that can win are drawn (Mussmann, Levy & Ermon 2017), here as a race: j's clock rings at rate exp(β s̃_ij), for
the first time at −log(t_j) = β s̃_ij + G_j.

    head    T_i, the top k, of which each clock is drawn. The first of them rings at time t
    tail    outside of T_i β s̃_ij ≤ b_i = min_{j ∈ T_i} β s̃_ij + β slack. The tail's rings are among those of a clock of
            rate |D_i| exp(b_i) that rings for uniform rows of D_i: one of j counts with probability exp(β s̃_ij − b_i),
            or 0 in T_i. Poisson(t |D_i| exp(b_i)) rings come before t, on average at most |D_i| exp(β slack) / |T_i|

The draws are exact where no row outside T_i is nearer than its last one by more than `slack`: 0 for an exact search;
one that misses rows needs as much as it misses them by.

All clocks together ring at rate Z_i: the first ring comes at a time t ~ Exp(Z_i), whichever clock it is of. So a rival
clock of rate exp(a) rings later with probability exp(−t e^a), whose mean is Z_i / (Z_i + e^a), and which is independent
of the row drawn: what a draw has to be weighed by where e^a is in the denominator, too, without Z_i being known.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from negbank.counter import uniforms
from negbank.exclusions import NO_ROW, Exclusions
from negbank.index.contract import exact_scores
from negbank.proposals.contract import Anchors, search_allowed
from negbank.snapshot import Snapshot

BLOCK = 1 << 15
"""Tail rows scored at once."""


class Draws(NamedTuple):
    """ids (B, n) drawn; log Z (B, 1) where it is known, or the log of each race's time (B, n), float64; and how many
    tail rows were looked at for each draw on average."""

    ids: Tensor
    log_partition: Tensor | None
    log_times: Tensor | None
    tail: float

    def part(self, rows: slice) -> Draws:
        """Those for some of the rows."""
        known, times = (None if each is None else each[rows] for each in (self.log_partition, self.log_times))
        return Draws(self.ids[rows], known, times, self.tail)

    def first(self, log_rates: Tensor) -> Tensor:
        """Weights (V·B, n or 1) of the draws, with mean Z / (Z + exp(log_rates)), for log_rates (V·B,) of V views."""
        if self.log_partition is not None:
            return torch.sigmoid(self.log_partition.repeat(len(log_rates) // len(self.ids), 1) - log_rates[:, None])
        assert self.log_times is not None
        times = self.log_times.repeat(len(log_rates) // len(self.ids), 1)
        return (-(times + log_rates[:, None]).exp()).exp()


def draw_exact(
    vectors: Tensor,
    written: Tensor,
    rows: Tensor,
    queries: Tensor,
    n: int,
    *,
    temperature: float,
    exclude: Exclusions,
    generator: torch.Generator | None,
) -> Draws:
    """n independent draws for each of rows (B,) from the softmax over the written ones (N,) bool of vectors (N, D).

    Anchors none of whose allowed rows is written draw uniformly from D_i; their log Z is +∞.
    """
    count, device = len(vectors), vectors.device
    inside = exclude.allowed(rows, torch.arange(count, device=device).expand(len(rows), -1)) & written
    logits = torch.where(inside, queries @ vectors.T / temperature, -torch.inf)
    top = logits.amax(1, keepdim=True)
    empty = top == -torch.inf
    width = math.isqrt(count) + 1  # inverted in two stages, blocks of rows and rows: single sums of N would lose digits
    mass = torch.nn.functional.pad(torch.where(empty, 0.0, logits - top).exp_(), (0, -count % width))
    mass = mass.view(len(rows), -1, width)
    blocks = mass.sum(2, dtype=torch.float64).cumsum(1)
    point = uniforms((len(rows), n), generator=generator, device=device) * blocks[:, -1:]
    block = torch.searchsorted(blocks, point, right=True).clamp(max=blocks.shape[1] - 1)
    point = point - torch.nn.functional.pad(blocks, (1, 0)).gather(1, block)
    of_block = mass.gather(1, block[:, :, None].expand(-1, -1, width)).double().cumsum(2)
    at = torch.searchsorted(of_block, point[:, :, None], right=True)[:, :, 0].clamp(max=width - 1)
    drawn = (block * width + at).clamp(max=count - 1)
    rounded = ~inside.gather(1, drawn)  # a point rounded up to the last sum, one in 2^53
    below = exclude.uniform(rows, n, generator=generator)
    log_partition = torch.where(empty, torch.inf, blocks[:, -1:].log() + top)
    return Draws(torch.where(empty | rounded, below, drawn), log_partition, None, 0.0)


def draw_indexed(
    snapshot: Snapshot,
    rows: Tensor,
    queries: Tensor,
    n: int,
    *,
    k: int,
    temperature: float,
    slack: float,
    exclude: Exclusions,
    generator: torch.Generator | None,
) -> Draws:
    """`draw_exact` over a snapshot, by its index: k rows retrieved and the tail's noise drawn lazily.

    Anchors none of whose k rows is in D_i are drawn for by `draw_exact`.
    """
    device, count = rows.device, len(rows)
    found, inside = search_allowed(snapshot.index, exclude, Anchors(rows, queries), k)
    head = torch.where(inside, found.scores.double() / temperature, -torch.inf)
    last = torch.where(inside, head, torch.inf).amin(1)
    bound = torch.where(inside.any(1), last + slack / temperature, -torch.inf)
    # log of when each clock rings; ties and u = 0 have no probability to speak of
    noise = uniforms((count, n, head.shape[1]), generator=generator, device=device)
    log_first, at = ((-noise.log()).log() - head[:, None]).min(2)
    drawn = found.ids.gather(1, at)
    # the tail's rings before that: whose race it is, and of which row
    rate = (log_first + bound[:, None] + exclude.count(rows).double().log()[:, None]).exp().nan_to_num(0.0)
    rings = torch.poisson(rate.cpu(), generator=generator).long().flatten().to(device)
    race = torch.arange(count * n, device=device).repeat_interleave(rings)
    anchor = race // n
    ids = exclude.uniform(rows[anchor], 1, generator=generator)[:, 0]
    listed = torch.where(inside, found.ids, NO_ROW)
    share = _tail_shares(snapshot, queries, anchor, ids, listed, bound, temperature)
    counts = uniforms((len(race),), generator=generator, device=device) < share
    # of those that count the first one wins
    moment = uniforms((len(race),), generator=generator, device=device)  # of the time until the head's first ring
    moment = torch.where(counts, moment, torch.inf)
    earliest = moment.new_ones(count * n).scatter_reduce(0, race, moment, "amin")
    wins = moment == earliest[race]
    drawn = drawn.flatten().index_put((race[wins],), ids[wins]).view(count, n)
    log_times = log_first + earliest.view(count, n).log()
    alone = ~inside.any(1)
    if bool(alone.any()):  # all that was retrieved is excluded: there is no head to race against
        exact = draw_exact(
            snapshot.vectors, snapshot.written, rows[alone], queries[alone], n,
            temperature=temperature, exclude=exclude, generator=generator,
        )  # fmt: skip
        assert exact.log_partition is not None
        noise = uniforms((len(exact.ids), n), generator=generator, device=device)
        drawn[alone], log_times[alone] = exact.ids, (-noise.log()).log() - exact.log_partition
    return Draws(drawn, None, log_times, len(race) / max(1, count * n))


def _tail_shares(
    snapshot: Snapshot, queries: Tensor, anchor: Tensor, ids: Tensor, head: Tensor, bound: Tensor, temperature: float
) -> Tensor:
    """exp(β s̃ − b) of rows ids (R,) for anchors (R,), at most 1; 0 for rows of the head (B, k) or never written."""
    parts = []
    for i, j in zip(anchor.split(BLOCK), ids.split(BLOCK)):
        logits = exact_scores(snapshot.vectors, queries[i], j[:, None])[:, 0].double() / temperature
        out = (head[i] == j[:, None]).any(1)
        if snapshot.rows is not None:
            at = torch.searchsorted(snapshot.rows, j).clamp(max=len(snapshot.rows) - 1)
            out = out | (snapshot.rows[at] != j)
        parts.append(torch.where(out, 0.0, (logits - bound[i]).clamp(max=0).exp()))
    return torch.cat(parts)
