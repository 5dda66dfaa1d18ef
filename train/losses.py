"""The one surrogate whose gradient every method's negatives and weights define, and a loss value for reports.

    L = mean_i β (Σ_r w_ir s_ir − p_i s_i⁺),    w, p detached,    p_i = Σ_r w_ir by default

∇L = mean_i β (Σ_r w_ir ∇s_ir − p_i ∇s_i⁺) is the method's estimate of the global contrastive loss's gradient. L itself
is not a loss that falls: `info_nce` is, and is what runs report for every method alike.
"""

from __future__ import annotations

import torch
from torch import Tensor

from samplers.negatives import EncodedBatch, Negatives


def surrogate(batch: EncodedBatch, negatives: Negatives, *, temperature: float) -> Tensor:
    """The scalar to call `backward` on.

    Args:
        batch: its anchors and positives (A, D) carry gradient.
        negatives: scores (A, C) with gradient, weights (A, C) without.
        temperature: τ = 1/β.
    """
    scores, weights, positive_weight = negatives
    positive_weight = weights.sum(1) if positive_weight is None else positive_weight
    positive = (batch.anchors * batch.positives).sum(-1)
    return ((weights * scores).sum(1) - positive_weight * positive).mean() / temperature


@torch.no_grad()
def info_nce(batch: EncodedBatch, *, temperature: float) -> Tensor:
    """InfoNCE over the batch's own views (Chen et al. 2020, eq. 1), without gradient: the value that runs report."""
    logits = batch.anchors @ batch.anchors.T / temperature
    logits.masked_fill_((batch.rows[:, None] == batch.rows).repeat(batch.views, batch.views), -torch.inf)
    positive = (batch.anchors * batch.positives).sum(-1, keepdim=True) / temperature
    return (torch.cat((logits, positive), 1).logsumexp(1) - positive[:, 0]).mean()
