"""Negative Cache (Lindgren et al. 2021): draws from the softmax over cached embeddings, by Gumbel-max.

    j ~ argmax_j β s̃_ij + G_j, G_j ~ Gumbel(0, 1), which has P(j) = exp(β s̃_ij) / Z_i,    Z_i = Σ_{j ∈ D_i} exp(β s̃_ij)
    w_ir = (1 − p_i⁺) · (times r was drawn) / n,                  p_i⁺ = exp(β s_i⁺) / (exp(β s_i⁺) + Z_i)

with s̃ from the cache and s_i⁺ fresh (sec. 3). Were the cache fresh, the mean of Σ_r w_ir ∇s_ir would be the gradient
of the cross-entropy over all of D_i. `positive=False` leaves the positive out of the denominator, p_i⁺ = 0.

`search="exact"`: the sampler keeps a cache of its own, a row for a row of the data set. A step writes to it all that
is encoded: the batch, the drawn rows, and the ρN rows that were written longest ago, which `draw` asks for to no
other end. The softmax is over all rows written so far, at a cost of N an anchor. It is inverted: one uniform has the
law of N noises.

`search="index"`: the cache is the snapshot. An index takes no single rows, so it is refreshed as a whole, as often as
`refresh.every` says, with what the bank was given in between. Only noises that can win are drawn (Mussmann, Levy &
Ermon 2017), here as a race: j's clock rings at rate exp(β s̃_ij), for the first time at −log(t_j) = β s̃_ij + G_j.

    head    T_i, the top k, of which each clock is drawn. The first of them rings at time t
    tail    outside of T_i β s̃_ij ≤ b_i = min_{j ∈ T_i} β s̃_ij + β slack. The tail's rings are among those of a clock of
            rate |D_i| exp(b_i) that rings for uniform rows of D_i: one of j counts with probability exp(β s̃_ij − b_i),
            or 0 in T_i. Poisson(t |D_i| exp(b_i)) rings come before t, on average at most |D_i| exp(β slack) / |T_i|

The draws are exact where no row outside T_i is nearer than its last one by more than `slack`: 0 for an exact search;
one that misses rows needs as much as it misses them by. The same rings give an unbiased estimate of Z_i.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from negbank.samplers.negatives.contract import EncodedBatch, Info, Negatives, further_rows, require_drawn
from negbank.samplers.negatives.index_draws import check_query, require_queries
from torch import Tensor

from negbank.bank import EmbeddingBank, unit_rows
from negbank.counter import uniforms
from negbank.exclusions import NO_ROW, Exclusions
from negbank.index.contract import exact_scores
from negbank.proposals.contract import Anchors, search_allowed
from negbank.snapshot import Snapshot

SEARCHES = ("exact", "index")
BLOCK = 1 << 15
"""Tail rows scored at once."""


class Draws(NamedTuple):
    """ids (B, n) drawn, log Z (B,) float64, and how many tail rows were looked at for each draw on average."""

    ids: Tensor
    log_partition: Tensor
    tail: float


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
    log_partition = torch.where(empty[:, 0], torch.inf, blocks[:, -1].log() + top[:, 0])
    return Draws(torch.where(empty | rounded, below, drawn), log_partition, 0.0)


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

    log Z is that of an unbiased estimate of Z. Anchors none of whose k rows is in D_i are drawn for by `draw_exact`.
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
    # of those that count the first one wins; they are alike whenever they ring, so that any of them may stand for it
    order = torch.where(counts, torch.arange(len(race), device=device), len(race))
    winner = order.new_full((count * n,), len(race)).scatter_reduce(0, race, order, "amin")
    ids = torch.cat((ids, ids.new_full((1,), NO_ROW)))
    drawn = torch.where(winner < len(race), ids[winner], drawn.flatten())
    # Z = Σ_T exp(βs̃) + Z_tail: rings of rate |D| exp(b), over the time of all n races, each worth its share of exp(b)
    seen = share.new_zeros(count).scatter_add_(0, anchor, share)
    log_partition = torch.logaddexp(head.logsumexp(1), seen.log() - log_first.logsumexp(1))
    drawn = drawn.view(count, n)
    alone = ~inside.any(1)
    if bool(alone.any()):  # all that was retrieved is excluded: there is no head to race against
        exact = draw_exact(
            snapshot.vectors, snapshot.written, rows[alone], queries[alone], n,
            temperature=temperature, exclude=exclude, generator=generator,
        )  # fmt: skip
        drawn[alone], log_partition[alone] = exact.ids, exact.log_partition
    return Draws(drawn, log_partition, len(race) / max(1, count * n))


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


class _Pending(NamedTuple):
    rows: Tensor  # (B,)
    draws: Draws


class NegativeCache:
    """Draws from the softmax over a cache of stale embeddings.

    Args:
        num_rows: N.
        temperature: τ = 1/β.
        draws: n of each row of the batch, independent and shared by its views.
        search: "exact" over a cache of its own, or "index" over the snapshot.
        refresh: ρ in [0, 1], the share of its own cache that is encoded anew each step.
        k: rows retrieved from the index; None: √N, for which the tail, too, is of at most √N rows or so.
        slack: see above, in cosine.
        positive: whether the positive is in the denominator.
        query: "bank": a row is drawn for by its cached embedding, or "fresh", as published.
        exclude: rows that are no negatives of each other; only the anchor's own row by default.
        generator: of all random draws; on the CPU.
        device: where the cache lives.

    Raises:
        ValueError: for a temperature ≤ 0, draws < 1, a refresh outside [0, 1] or with "index", a k outside 1..N−1, a
            slack outside 0..τ log k, or an unknown search or query.
    """

    requires = "any"
    momentum: float | None = None
    learned: Sequence[Tensor] = ()

    def __init__(
        self,
        num_rows: int,
        *,
        temperature: float,
        draws: int = 1,
        search: str = "exact",
        refresh: float = 0.0,
        k: int | None = None,
        slack: float = 0.0,
        positive: bool = True,
        query: str = "bank",
        exclude: Exclusions | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature={temperature}: expected a value above 0")
        if draws < 1:
            raise ValueError(f"draws={draws}: expected at least 1")
        if search not in SEARCHES:
            raise ValueError(f"search={search!r}: expected one of {', '.join(SEARCHES)}")
        if not 0 <= refresh <= 1:
            raise ValueError(f"refresh={refresh}: expected a share in [0, 1] of the cache")
        if refresh and search == "index":
            raise ValueError(
                f"refresh={refresh}: with search='index' the cache is the snapshot, which is refreshed as a whole; "
                f"take refresh=0 and set how often by the refresher's `every`, or search='exact'"
            )
        k = math.isqrt(num_rows) if k is None else k
        if not 1 <= k < num_rows and search == "index":
            raise ValueError(f"k={k}: expected 1..{num_rows - 1}, the other rows of the data set")
        most = temperature * math.log(max(k, 1))
        if not 0 <= slack <= most:
            raise ValueError(
                f"slack={slack}: expected 0..{most:.3g}, in cosine; beyond, a draw looks at more rows than there are: "
                f"raise k, or take search='exact'"
            )
        check_query(query)
        self.fresh_queries = query == "fresh"
        self._num_rows, self._temperature, self._positive = num_rows, temperature, positive
        self._count, self._indexed, self._k, self._slack = draws, search == "index", k, slack
        self._stale = math.ceil(refresh * num_rows)
        self._exclude = (Exclusions(num_rows) if exclude is None else exclude).to(torch.device(device))
        self._generator, self._device = generator, device
        self.cache: EmbeddingBank | None = None
        self.step = 0
        self._snapshot: Snapshot | None = None
        self._pending: _Pending | None = None

    def update(self, snapshot: Snapshot) -> None:
        """With search="index", draw from this version of the bank from now on."""
        self._snapshot = snapshot if self._indexed else None

    def draw(self, rows: Tensor, queries: Tensor | None = None) -> Tensor:
        """The drawn rows that are not in the batch, and those whose turn it is to be refreshed (E,).

        Raises:
            ValueError: without `queries` under query="fresh".
        """
        require_queries(queries, wanted=self.fresh_queries)
        vectors = None if self._snapshot is None else self._snapshot.vectors
        vectors = vectors if self.cache is None else self.cache.vectors
        settings: dict[str, Any] = {
            "temperature": self._temperature, "exclude": self._exclude, "generator": self._generator,
        }  # fmt: skip
        if vectors is None:  # nothing is cached yet
            uniform = self._exclude.uniform(rows, self._count, generator=self._generator)
            draws = Draws(uniform, torch.full((len(rows),), torch.inf, dtype=torch.float64, device=rows.device), 0.0)
        else:
            queries = vectors[rows] if queries is None else queries.detach().float()
            if self._snapshot is not None:
                draws = draw_indexed(
                    self._snapshot, rows, queries, self._count, k=self._k, slack=self._slack, **settings
                )
            else:
                assert self.cache is not None
                draws = draw_exact(vectors, self.cache.written, rows, queries, self._count, **settings)
        self._pending = _Pending(rows, draws)
        return further_rows(torch.cat((draws.ids.flatten(), self._oldest(rows))), rows)

    def __call__(self, batch: EncodedBatch) -> tuple[Negatives, Info]:
        """See `NegativeSampler.__call__`.

        Raises:
            RuntimeError: when `draw` was not called with this batch's rows just before.
        """
        pending, self._pending = self._pending, None
        require_drawn(None if pending is None else pending.rows, batch)
        assert pending is not None
        draws = pending.draws
        scores = batch.anchors @ batch.candidates.T
        with torch.no_grad():
            weights = batch.times(draws.ids) / self._count
            if self._positive:  # 1 − p⁺
                positive = (batch.anchors * batch.positives).sum(-1).double() / self._temperature
                share = torch.sigmoid(draws.log_partition.repeat(batch.views) - positive)
                weights = weights * share.to(weights)[:, None]
            total = weights.sum(1)
            hardness = (weights * scores).sum(1) / total.clamp(min=1e-12)
            self._write(batch)
        info = {
            "hardness": float(hardness.mean()),
            "weight": float(total.mean()),
            "tail_rows": draws.tail,
            "extra_encodings": float(len(batch.drawn_rows)),
        }
        return Negatives(scores, weights), info

    def _oldest(self, rows: Tensor) -> Tensor:
        """The rows (ρN,) that were written longest ago, those never written first, in random order of equals."""
        if self._stale == 0:
            return rows[:0]
        age = uniforms((self._num_rows,), generator=self._generator, device=rows.device)
        if self.cache is not None:
            age = age + self.cache.written_at
        age[rows] = torch.inf  # they are written anyway
        return age.topk(min(self._stale, self._num_rows - len(rows)), largest=False).indices

    def _write(self, batch: EncodedBatch) -> None:
        """Keep what was encoded: of a row of the batch the mean of its views."""
        if self._indexed:
            return
        if self.cache is None:
            self.cache = EmbeddingBank(self._num_rows, batch.anchors.shape[1], device=self._device)
        self.step += 1
        views = batch.candidates[: len(batch.anchors)].view(batch.views, len(batch.rows), -1)
        self.cache.write(
            torch.cat((batch.rows, batch.drawn_rows)), torch.cat((unit_rows(views.sum(0)), batch.drawn)), step=self.step
        )

    def state_dict(self) -> dict[str, Any]:
        """The cache if there is one yet, the steps it has seen, and where the generator stands."""
        return {
            "cache": None if self.cache is None else self.cache.state_dict(),
            "step": self.step,
            "generator": None if self._generator is None else self._generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them.

        Raises:
            ValueError: when the cache is of another data set's shape.
        """
        self.step, self.cache = state["step"], None
        if state["cache"] is not None:
            rows, dim = state["cache"]["vectors"].shape
            if rows != self._num_rows:
                raise ValueError(f"cache: {rows} rows in the state, {self._num_rows} here")
            self.cache = EmbeddingBank(rows, dim, device=self._device)
            self.cache.load_state_dict(state["cache"])
        if self._generator is not None and state["generator"] is not None:
            self._generator.set_state(state["generator"])
