"""DCL (Chuang et al. 2020) and HCL (Robinson et al. 2021): the batch's other rows, less what are positives among them.

A share τ⁺ of all rows are of the anchor's latent class, and so are τ⁺ of its R negatives, falsely. Both losses take,
for the sum over negatives, R times an estimate of its mean over true ones, HCL moreover under q_b ∝ exp(b βs), b ≥ 0:

    S = R Σ_r e^{(1+b) βs_r} / Σ_r e^{b βs_r}           G = max{(S − τ⁺ R e^{βs⁺}) / (1 − τ⁺),  R e^{−β}}
    L = −log e^{βs⁺} / (e^{βs⁺} + G)                    (Chuang et al., eq. 7 and 8; Robinson et al., sec. 3)

DCL is b = 0. Differentiated as it stands, importance weights and all, as the official code does. Over the negatives,
with the softmaxes a ∝ e^{(1+b) βs} and c ∝ e^{b βs},

    w_r = S / ((1 − τ⁺) (e^{βs⁺} + G)) · ((1 + b) a_r − b c_r),      p = Σ_r w_r

The positive's two parts, its own and what it takes from the negatives, add up to Σ_r w_r. In HCL the easiest rows
have w_r < 0. Where the bound R e^{−β} holds G, negatives have no gradient and the positive has its own weight,

    w_r = 0,      p = R e^{−β} / (e^{βs⁺} + R e^{−β})
"""

from __future__ import annotations

import torch

from negbank.bounds import Annotated, Ge, Lt, Positive, checked
from negbank.exclusions import Exclusions
from negbank.samplers.negatives.contract import EncodedBatch, Info, Negatives, NegativeSampler, Ticket, hardness, number


class Dcl(NegativeSampler):
    """DCL, debiased contrast: the batch's sum of negatives less the share that are positives.

    Args:
        temperature: τ = 1/β.
        tau_plus: τ⁺, probability that a row is of the anchor's class: one over the number of classes or so.
        exclude: rows that are no negatives of each other; only the anchor's own row by default.
    """

    @checked
    def __init__(
        self,
        *,
        temperature: Positive,
        tau_plus: Annotated[float, Ge(0), Lt(1)] = 0.1,
        exclude: Exclusions | None = None,
    ) -> None:
        self._temperature, self._tau_plus, self._exclude = temperature, tau_plus, exclude

    def __call__(self, batch: EncodedBatch, ticket: Ticket | None = None) -> tuple[Negatives, Info]:
        """See `NegativeSampler.__call__`."""
        return debiased(batch, self._exclude, temperature=self._temperature, prior=self._tau_plus, b=0.0)


def debiased(
    batch: EncodedBatch, exclude: Exclusions | None, *, temperature: float, prior: float, b: float
) -> tuple[Negatives, Info]:
    """w and p of the formulas above for prior τ⁺ and concentration b; an anchor without a negative has weight 0."""
    scores, allowed = batch.scores, batch.allowed(exclude)
    with torch.no_grad():
        positive = batch.positive_scores / temperature
        logits = torch.where(allowed, scores / temperature, -torch.inf)
        soft = torch.where(allowed, b * logits, -torch.inf)  # 0 times −∞ is no number
        hard = torch.where(allowed, (1 + b) * logits, -torch.inf)
        count = allowed.sum(1).to(logits.dtype)
        log_sum = count.log() + hard.logsumexp(1) - soft.logsumexp(1)  # log S
        log_bound = count.log() - 1 / temperature
        top = torch.maximum(torch.maximum(log_sum, positive), log_bound)  # no exponential above 1
        found, own, bound = ((x - top).exp() for x in (log_sum, positive, log_bound))
        true = (found - prior * count * own) / (1 - prior)
        bounded = true < bound
        whole = own + torch.where(bounded, bound, true)  # e^{βs⁺} + G
        share = torch.where(bounded, 0.0, found / ((1 - prior) * whole))
        weights = (share[:, None] * ((1 + b) * hard.softmax(1) - b * soft.softmax(1))).nan_to_num(0.0)
        positive_weight = torch.where(bounded, bound / whole, share).nan_to_num(0.0)
    info = {"hardness": hardness(weights, scores), "bounded": number(bounded.double().mean())}
    return Negatives(scores, weights, positive_weight), info
