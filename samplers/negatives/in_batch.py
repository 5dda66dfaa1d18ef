"""SimCLR (Chen et al. 2020, eq. 1): the other rows of the batch, under the softmax that holds the positive too.

    w_ir = exp(β s_ir) / (exp(β s_i⁺) + Σ_r' exp(β s_ir'))

The gradient of −log(exp(β s⁺) / (exp(β s⁺) + Σ exp(β s_r))) with respect to s_r is β w_ir, and to s⁺ it is −β Σ_r w_ir:
so the surrogate has the gradient of InfoNCE exactly.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from negbank.filters import Exclusions
from negbank.snapshot import Snapshot
from samplers.negatives.contract import EncodedBatch, Info, Negatives


class InBatch:
    """All candidates of the step that are allowed negatives, at their softmax weights.

    Args:
        temperature: τ = 1/β.
        exclude: rows that are no negatives of each other; only the anchor's own row by default.

    Raises:
        ValueError: for a temperature ≤ 0.
    """

    in_batch = False
    fresh_queries = False

    def __init__(self, *, temperature: float, exclude: Exclusions | None = None) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature={temperature}: expected a value above 0")
        self._temperature, self._exclude = temperature, exclude

    def update(self, snapshot: Snapshot) -> None:
        """Nothing: the batch is all there is."""

    def draw(self, rows: Tensor, queries: Tensor | None = None) -> Tensor:
        """No further rows."""
        return rows[:0]

    def __call__(self, batch: EncodedBatch) -> tuple[Negatives, Info]:
        """See `NegativeSampler.__call__`."""
        scores = batch.anchors @ batch.candidates.T
        allowed = allowed_columns(batch, self._exclude)
        with torch.no_grad():
            positive = (batch.anchors * batch.positives).sum(-1, keepdim=True)
            logits = torch.where(allowed, scores, -torch.inf)
            weights = torch.softmax(torch.cat((logits, positive), 1) / self._temperature, 1)[:, :-1]
        hardness = (weights * scores.detach()).sum(1) / weights.sum(1).clamp(min=1e-12)
        return Negatives(scores, weights), {"hardness": float(hardness.mean())}

    def state_dict(self) -> dict[str, Any]:
        """Empty: nothing is kept between steps."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


def allowed_columns(batch: EncodedBatch, exclude: Exclusions | None) -> Tensor:
    """(A, C) bool: which candidates are allowed negatives of which anchor; without `exclude`, all but its own row."""
    ids = batch.candidate_rows
    if exclude is None:
        allowed = batch.rows[:, None] != ids
    else:
        allowed = exclude.to(ids.device).allowed(batch.rows, ids.expand(len(batch.rows), -1))
    return allowed.repeat(batch.views, 1)
