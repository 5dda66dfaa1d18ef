"""The one surrogate whose gradient every method's negatives and weights define, and a loss value for reports.

    L = mean_i β (Σ_r w_ir s_ir − p_i s_i⁺),    w, p detached,    p_i = Σ_r w_ir by default

∇L = mean_i β (Σ_r w_ir ∇s_ir − p_i ∇s_i⁺) is the method's estimate of the global contrastive loss's gradient. L itself
is not a loss that falls: `info_nce` is, and is what runs report for every method alike. β is the loss's 1/τ, or the
negatives' own; a learned one has the gradient Σ_r w_ir s_ir − p_i s_i⁺ of InfoNCE.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from negbank.samplers.negatives import EncodedBatch, Info, Negatives, NegativeSampler, Ticket

BLOCK = 256
"""Anchors of which InfoNCE is taken at once."""


def surrogate(batch: EncodedBatch, negatives: Negatives, *, temperature: float) -> Tensor:
    """The scalar to call `backward` on.

    Args:
        batch: its anchors and positives (A, D) carry gradient.
        negatives: scores (A, C) with gradient, weights (A, C) without.
        temperature: τ = 1/β, unless the negatives have their own.
    """
    scores, weights, positive_weight, own, _ = negatives
    positive_weight = weights.sum(1) if positive_weight is None else positive_weight
    positive = (batch.anchors * batch.positives).sum(-1)
    return (((weights * scores).sum(1) - positive_weight * positive) / (temperature if own is None else own)).mean()


def contrasted(
    negatives: NegativeSampler,
    batch: EncodedBatch,
    ticket: Ticket,
    embeddings: Sequence[Tensor],
    *,
    temperature: float,
    size: int | None,
) -> tuple[Tensor, Info, list[Callable[[], None]]]:
    """The surrogate over a batch under its negatives, what these report, and `Negatives.commit` of each part.

    Args:
        embeddings: that the batch was made of.
        temperature: see `surrogate`.
        size: anchors taken at once, each against all candidates; None: all. Parts have scores of their own anchors
            alone in memory; what is returned then stands for ∂L/∂z at `embeddings`, which is all that is kept of them.
    """
    rows = len(batch.rows) if size is None else max(1, size // batch.views)
    if rows >= len(batch.rows):
        weighed, found = negatives(batch, ticket)
        return surrogate(batch, weighed, temperature=temperature), found, [weighed.commit]
    inputs, info, commits = [*embeddings, *negatives.learned], defaultdict[str, float](float), []
    slopes, value = [torch.zeros_like(each) for each in inputs], batch.anchors.new_zeros(())
    for first in range(0, len(batch.rows), rows):
        some = slice(first, min(first + rows, len(batch.rows)))
        part, share = batch.part(some), (some.stop - first) / len(batch.rows)
        weighed, found = negatives(part, ticket.part(some))
        loss = share * surrogate(part, weighed, temperature=temperature)
        for slope, more in zip(slopes, torch.autograd.grad(loss, inputs, allow_unused=True)):
            slope += 0 if more is None else more
        value += loss.detach()
        commits.append(weighed.commit)
        for name, number in found.items():
            info[name] += share * number
    return value + sum(((z - z.detach()) * slope).sum() for z, slope in zip(inputs, slopes)), info, commits


@torch.no_grad()
def info_nce(batch: EncodedBatch, *, temperature: float) -> Tensor:
    """InfoNCE over the batch's own views (Chen et al. 2020, eq. 1), without gradient: the value that runs report.

    Momentum keys have no part in it. Of pairs it is one direction of the two-way loss (Radford et al. 2021).
    """
    others = batch.anchors if batch.views > 1 or batch.keys is None else batch.keys
    positives, rows, values = others.roll(len(batch.rows), 0), batch.rows.repeat(batch.views), []
    for anchors, own, theirs in zip(batch.anchors.split(BLOCK), rows.split(BLOCK), positives.split(BLOCK)):
        logits = (anchors @ others.T / temperature).masked_fill_(own[:, None] == rows, -torch.inf)
        positive = (anchors * theirs).sum(-1, keepdim=True) / temperature
        values.append(torch.cat((logits, positive), 1).logsumexp(1) - positive[:, 0])
    return torch.cat(values).mean()
