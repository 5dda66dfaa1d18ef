"""InfoNCE against the harder part of the batch.

w_ir = exp(β s_ir) / (exp(β s_i⁺) + Σ_{r' ∈ H_i} exp(β s_ir')),     H_i the share of the batch nearest to anchor i
"""

from __future__ import annotations

from typing import Annotated

import torch

from negbank.bounds import Gt, Le, checked
from negbank.exclusions import Exclusions
from negbank.samplers.negatives import EncodedBatch, InBatch, Info, Negatives, Ticket


class HarderHalf(InBatch):
    """InfoNCE against the harder part of the batch.

    Args:
        temperature: τ = 1/β.
        share: how much of the batch is kept.
        exclude: rows that are no negatives of each other; only the anchor's own row by default.
    """

    @checked
    def __init__(
        self, *, temperature: float, share: Annotated[float, Gt(0), Le(1)] = 0.5, exclude: Exclusions | None = None
    ) -> None:
        super().__init__(temperature=temperature, exclude=exclude)
        self._share = share

    def __call__(self, batch: EncodedBatch, ticket: Ticket) -> tuple[Negatives, Info]:
        """See `NegativeSampler.__call__`."""
        negatives, info = super().__call__(batch, ticket)
        with torch.no_grad():
            kept = negatives.weights >= negatives.weights.quantile(1 - self._share, 1, keepdim=True)
            positive = 1 - negatives.weights.sum(1, keepdim=True)  # e^{βs⁺} over the denominator
            weights = torch.where(kept, negatives.weights, 0.0)
            weights = weights / (positive + weights.sum(1, keepdim=True))
        return Negatives(negatives.scores, weights), {**info, "kept": float(kept.float().mean())}
