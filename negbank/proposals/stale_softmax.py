"""The softmax over the whole bank, with a uniform floor λ:

    q_i(j) = λ / |D_i| + (1 − λ) · exp(s̃_ij / τ) / Σ_{l ∈ D_i} exp(s̃_il / τ)

s̃ are the bank's similarities, exact: what Nearest, Cells and HeadTail are shortcuts to. It costs O(N) an anchor and is
the reference, not the product. Rows that were never written are reached by the floor alone.
"""

from __future__ import annotations

from typing import Annotated

import torch

from negbank.bounds import Gt, Le, Supplied, checked
from negbank.exclusions import Exclusions
from negbank.index.contract import exact_scores
from negbank.proposals.contract import Anchors
from negbank.proposals.nearest import NearestDistribution
from negbank.snapshot import Snapshot


class StaleSoftmax:
    """Full softmax over the bank, with a uniform floor.

    Args:
        snapshot: whose rows are scored.
        temperature: of the softmax, τ; the loss's own where a run does not say.
        floor: share of uniform draws, λ, without which rows never written are never reached.
        exclude: what may not be drawn; the anchor's own row by default.

    Raises:
        ValueError: for a temperature or floor out of bounds.
    """

    @checked
    def __init__(
        self,
        snapshot: Snapshot,
        temperature: Annotated[float, Gt(0), Supplied("loss.temperature")] = 0.07,
        floor: Annotated[float, Gt(0), Le(1)] = 0.1,
        *,
        exclude: Exclusions | None = None,
    ) -> None:
        self._vectors, self._temperature, self._floor = snapshot.vectors, temperature, floor
        every = torch.arange(len(snapshot), device=snapshot.vectors.device)
        self._written = every if snapshot.rows is None else snapshot.rows
        self._exclude = snapshot.excluded(exclude)

    def __call__(self, anchors: Anchors) -> NearestDistribution:
        ids = self._written.expand(len(anchors.rows), -1)
        scores = exact_scores(self._vectors, anchors.queries, ids).double()
        inside = self._exclude.allowed(anchors.rows, ids)
        logits = torch.where(inside, scores / self._temperature, -torch.inf)
        return NearestDistribution(anchors.rows, ids, logits, self._floor, self._exclude)
