"""Negative Cache (Lindgren et al. 2021): draws from the softmax over cached embeddings s̃, by Gumbel-max (gumbel.py).

    j ~ exp(β s̃_ij) / Z_i,  Z_i = Σ_{j ∈ D_i} exp(β s̃_ij)
    w_ir = (1 − p_i⁺) · (times r was drawn) / n,                  p_i⁺ = exp(β s_i⁺) / (exp(β s_i⁺) + Z_i)

with s̃ from the cache and s_i⁺ fresh (sec. 3). Were the cache fresh, the mean of Σ_r w_ir ∇s_ir would be the gradient
of the cross-entropy over all of D_i. `positive=False` leaves the positive out of the denominator, p_i⁺ = 0. Through an
index Z_i is not known, and a draw whose race took the time t weighs exp(−t e^{βs_i⁺}) in place of 1 − p_i⁺, its mean:
so it is exact at any number of draws, where an estimate of Z_i in p_i⁺ would not be.

`search="exact"`: the sampler keeps a cache of its own, a row for a row of the data set. A step writes to it all that
is encoded: the batch, the drawn rows, and the ρN rows that were written longest ago, which `draw` asks for to no
other end. The softmax is over all rows written so far.

`search="index"`: the cache is the snapshot. An index takes no single rows, so it is refreshed as a whole, as often as
`refresh.every` says, with what the bank was given in between.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from negbank.bank import EmbeddingBank, require_rows, unit_rows
from negbank.bounds import Annotated, Count, Ge, Positive, Share, checked
from negbank.counter import Counter, uniforms
from negbank.exclusions import Exclusions
from negbank.samplers.negatives.contract import (
    EncodedBatch,
    Info,
    Negatives,
    NegativeSampler,
    Ticket,
    hardness,
    keep_nothing,
    number,
)
from negbank.samplers.negatives.gumbel import Draws, draw_exact, draw_indexed
from negbank.samplers.negatives.index_draws import asked
from negbank.snapshot import Snapshot


class NegativeCache(NegativeSampler):
    """Negative Cache: Gumbel-max draws from the softmax over cached embeddings.

    Args:
        num_rows: N.
        temperature: τ = 1/β.
        draws: rows drawn for each row of the batch, independent and shared by its views.
        search: exact: over a cache of its own; index: over the snapshot, in less than N.
        refresh: ρ, share of the cache that is encoded anew each step; with exact.
        k: rows retrieved from the index; None: √N, for which the tail, too, is of at most √N rows or so.
        slack: by how much in cosine the index may miss a row and draws stay exact.
        positive: the positive is in the softmax's denominator, as in InfoNCE.
        query: what rows are drawn for; fresh, as published: a second pass, no batch norm.
        exclude: rows that are no negatives of each other; only the anchor's own row by default.
        counter: place of the random draws, of which each step has its own.
        device: where the cache lives.

    Raises:
        ValueError: for a refresh with "index", a k above N − 1, or a slack above τ log k.
    """

    @checked
    def __init__(
        self,
        num_rows: int,
        *,
        temperature: Positive,
        draws: Count = 1,
        search: Literal["exact", "index"] = "exact",
        refresh: Share = 0.0,
        k: Count | None = None,
        slack: Annotated[float, Ge(0)] = 0.0,
        positive: bool = True,
        query: Literal["bank", "fresh"] = "bank",
        exclude: Exclusions | None = None,
        counter: Counter = Counter.of(0),
        device: torch.device | str = "cpu",
    ) -> None:
        if refresh and search == "index":
            raise ValueError(
                f"refresh={refresh}: with search='index' the cache is the snapshot, which is refreshed as a whole; "
                f"take refresh=0 and set how often by the refresher's `every`, or search='exact'"
            )
        k = math.isqrt(num_rows) if k is None else k
        if k >= num_rows and search == "index":
            raise ValueError(f"k={k}: expected 1..{num_rows - 1}, the other rows of the data set")
        most = temperature * math.log(max(k, 1))
        if slack > most:
            raise ValueError(
                f"slack={slack}: expected 0..{most:.3g}, in cosine; beyond, a draw looks at more rows than there are: "
                f"raise k, or take search='exact'"
            )
        self.fresh_queries, self.reads_snapshot = query == "fresh", search == "index"
        self.draws_ahead = self.reads_snapshot and not self.fresh_queries  # a cache of its own changes at every step
        self._num_rows, self._temperature, self._positive = num_rows, temperature, positive
        self._count, self._indexed, self._k, self._slack = draws, search == "index", k, slack
        self._stale = math.ceil(refresh * num_rows)
        self._exclude = (exclude or Exclusions(num_rows)).to(torch.device(device))
        self._counter, self._device = counter, device
        self.cache: EmbeddingBank | None = None
        self._snapshot: Snapshot | None = None

    def update(self, snapshot: Snapshot) -> None:
        """With search="index", draw from this version of the bank from now on."""
        self._snapshot = snapshot if self._indexed else None

    def draw(self, rows: Tensor, *, step: int, queries: Tensor | None = None) -> Ticket:
        """See `NegativeSampler.draw`: drawn rows, and those whose turn it is to be refreshed."""
        require_rows(rows, self._num_rows)
        vectors = None if self._snapshot is None else self._snapshot.vectors
        vectors = vectors if self.cache is None else self.cache.vectors
        queries = asked(rows, queries, vectors, fresh=self.fresh_queries)
        generator = self._counter.at("draw", step).generator()
        draws = self._draws(rows, queries, generator)
        return Ticket.of(step, rows, torch.cat((draws.ids.flatten(), self._oldest(rows, generator))), draws)

    def _draws(self, rows: Tensor, queries: Tensor, generator: torch.Generator) -> Draws:
        settings: dict[str, Any] = {
            "temperature": self._temperature, "exclude": self._exclude, "generator": generator,
        }  # fmt: skip
        if self._snapshot is not None:
            return draw_indexed(self._snapshot, rows, queries, self._count, k=self._k, slack=self._slack, **settings)
        if self.cache is not None:
            return draw_exact(self.cache.vectors, self.cache.written, rows, queries, self._count, **settings)
        uniform = self._exclude.uniform(rows, self._count, generator=generator)  # nothing is cached yet
        return Draws(uniform, torch.full((len(rows), 1), torch.inf, dtype=torch.float64, device=rows.device), None, 0.0)

    def __call__(self, batch: EncodedBatch, ticket: Ticket) -> tuple[Negatives, Info]:
        """See `NegativeSampler.__call__`."""
        ticket.require(batch)
        draws, scores = ticket.own, batch.scores
        with torch.no_grad():
            positive = batch.positive_scores.double() / self._temperature
            share = draws.first(positive) if self._positive else None  # 1 − p⁺
            weights = batch.times(draws.ids, share) / self._count
        info = {
            "hardness": hardness(weights, scores),
            "weight": number(weights.sum(1).mean()),
            "tail_rows": draws.tail,
            "extra_encodings": float(len(batch.drawn_rows)),
        }
        commit = partial(self._write, batch, ticket.step) if ticket.last else keep_nothing
        return Negatives(scores, weights, commit=commit), info

    def _oldest(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """The rows (ρN,) that were written longest ago, those never written first, in random order of equals."""
        if self._stale == 0:
            return rows[:0]
        age = uniforms((self._num_rows,), generator=generator, device=rows.device)
        if self.cache is not None:
            age = age + self.cache.written_at
        age[rows] = torch.inf  # they are written anyway
        return age.topk(min(self._stale, self._num_rows - len(rows)), largest=False).indices

    @torch.no_grad()
    def _write(self, batch: EncodedBatch, step: int) -> None:
        """Keep what was encoded: of a row of the batch the mean of its views."""
        if self._indexed:
            return
        if self.cache is None:
            self.cache = EmbeddingBank(self._num_rows, batch.anchors.shape[1], device=self._device)
        views = batch.candidates[: batch.inside].view(batch.views, len(batch.batch_rows), -1)
        rows = torch.cat((batch.batch_rows, batch.drawn_rows))
        self.cache.write(rows, torch.cat((unit_rows(views.sum(0)), batch.drawn)), step=step)

    def state_dict(self) -> dict[str, Any]:
        """The cache, if there is one yet."""
        return {"cache": None if self.cache is None else self.cache.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it.

        Raises:
            ValueError: when the cache is of another data set's shape.
        """
        self.cache = None
        if state["cache"] is not None:
            rows, dim = state["cache"]["vectors"].shape
            if rows != self._num_rows:
                raise ValueError(f"cache: {rows} rows in the state, {self._num_rows} here")
            self.cache = EmbeddingBank(rows, dim, device=self._device)
            self.cache.load_state_dict(state["cache"])
