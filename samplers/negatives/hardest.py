"""The index's top k as negatives, as ANCE takes them (Xiong et al. 2021).

T_i are the k rows of D_i that look nearest to anchor i in the bank, or some of them at random. Fresh scores weigh them:

    softmax    w_ir = exp(β s_ir) / (exp(β s_i⁺) + Σ_{r' ∈ T_i} exp(β s_ir'))         InfoNCE against T_i
    pairwise   w_ir = 1/|T_i| · exp(β s_ir) / (exp(β s_i⁺) + exp(β s_ir))              a pair at a time, as published
    uniform    w_ir = 1/|T_i|

This estimates no gradient of the global loss: rows outside T_i have no part in it, however many they are, and those in
T_i look hard in a stale bank, for their noise among other things. Before the first snapshot T_i is uniform over D_i.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from negbank.samplers.negatives.contract import EncodedBatch, Info, Negatives, further_rows, require_drawn
from negbank.samplers.negatives.index_draws import check_query, require_queries
from torch import Tensor

from negbank.counter import uniforms
from negbank.exclusions import NO_ROW, Exclusions
from negbank.proposals.contract import Anchors, search_allowed
from negbank.snapshot import Snapshot

WEIGHTS = ("softmax", "pairwise", "uniform")
REACH = 1024
"""How far the search goes for k rows outside of an anchor's group."""


class _Drawn(NamedTuple):
    rows: Tensor  # (B,)
    ids: Tensor  # (B, n), −1 pads


class Hardest:
    """Hard negatives retrieved from the index.

    Args:
        num_rows: N.
        temperature: τ = 1/β.
        k: rows retrieved for each row of the batch, shared by its views; fewer where the bank or D_i have fewer, or
            `REACH` neighbours do.
        draws: how many of the k are taken, at random; None takes all.
        weights: "softmax", "pairwise" or "uniform".
        positive: whether the positive is in the softmax's denominator.
        query: "bank", or "fresh": the index is asked with the rows' fresh embeddings.
        exclude: rows that are no negatives of each other; only the anchor's own row by default.
        generator: of what is drawn; on the CPU.

    Raises:
        ValueError: for a temperature ≤ 0, a k outside 1..N−1, draws outside 1..k, or an unknown query or weights.
    """

    requires = "any"
    momentum: float | None = None
    learned: Sequence[Tensor] = ()

    def __init__(
        self,
        num_rows: int,
        *,
        temperature: float,
        k: int = 4,
        draws: int | None = None,
        weights: str = "softmax",
        positive: bool = True,
        query: str = "bank",
        exclude: Exclusions | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature={temperature}: expected a value above 0")
        if not 1 <= k < num_rows:
            raise ValueError(f"k={k}: expected 1..{num_rows - 1}, the other rows of the data set")
        if draws is not None and not 1 <= draws <= k:
            raise ValueError(f"draws={draws}: expected 1..{k}, some of the k rows retrieved, or None for all")
        if weights not in WEIGHTS:
            raise ValueError(f"weights={weights!r}: expected one of {', '.join(WEIGHTS)}")
        check_query(query)
        self.fresh_queries = query == "fresh"
        self._temperature, self._k, self._draws, self._weights = temperature, k, draws, weights
        self._positive, self._generator = positive, generator
        self._exclude = Exclusions(num_rows) if exclude is None else exclude
        self._snapshot: Snapshot | None = None
        self._drawn: _Drawn | None = None

    def update(self, snapshot: Snapshot) -> None:
        """Retrieve from this version of the bank from now on."""
        self._snapshot = snapshot

    def draw(self, rows: Tensor, queries: Tensor | None = None) -> Tensor:
        """The retrieved rows that are not in the batch (E,).

        Raises:
            ValueError: without `queries` under query="fresh".
        """
        require_queries(queries, wanted=self.fresh_queries)
        exclude, count = self._exclude.to(rows.device), self._draws or self._k
        if self._snapshot is None:
            ids = exclude.uniform(rows, count, generator=self._generator)
        else:
            queries = self._snapshot.vectors[rows] if queries is None else queries.detach().float()
            ids = self._retrieve(self._snapshot, exclude, rows, queries)
            if self._draws is not None:
                keys = uniforms(tuple(ids.shape), generator=self._generator, device=rows.device)
                chosen = torch.where(ids == NO_ROW, -1.0, keys).topk(min(count, ids.shape[1])).indices
                ids = ids.gather(1, chosen)
        self._drawn = _Drawn(rows, ids)
        return further_rows(ids, rows)

    def _retrieve(self, snapshot: Snapshot, exclude: Exclusions, rows: Tensor, queries: Tensor) -> Tensor:
        """The k best ids of D_i (B, n), −1 for the others found; groups may have the search look further than k."""
        reach = self._k
        while True:
            found, inside = search_allowed(snapshot.index, exclude, Anchors(rows, queries), self._k, reach=reach)
            if reach >= min(REACH, len(snapshot.index)) or bool((inside.sum(1) == self._k).all()):
                return torch.where(inside, found.ids, NO_ROW)
            reach = min(4 * reach, REACH)

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
            times = batch.times(drawn.ids)
            share = times / times.sum(1, keepdim=True).clamp(min=1)
            positive = (batch.anchors * batch.positives).sum(-1, keepdim=True)
            if self._weights == "uniform":
                weights = share
            elif self._weights == "pairwise":
                weights = share * torch.sigmoid((scores - positive) / self._temperature)
            else:
                logits = scores / self._temperature + times.log()
                every = torch.cat((logits, positive / self._temperature), 1) if self._positive else logits
                weights = torch.softmax(every, 1)[:, : logits.shape[1]].nan_to_num(0.0)
            hardness = float((share * scores).sum(1).mean())
        return Negatives(scores, weights), {"hardness": hardness, "extra_encodings": float(len(batch.drawn_rows))}

    def state_dict(self) -> dict[str, Any]:
        """Where the generator stands."""
        return {"generator": None if self._generator is None else self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the generator."""
        if self._generator is not None and state["generator"] is not None:
            self._generator.set_state(state["generator"])
