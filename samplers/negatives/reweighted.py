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

from collections.abc import Sequence
from typing import Any

import torch
from negbank.samplers.negatives.contract import EncodedBatch, Info, Negatives
from negbank.samplers.negatives.in_batch import allowed_columns
from torch import Tensor

from negbank.exclusions import Exclusions
from negbank.snapshot import Snapshot


class Reweighted:
    """DCL, and with a concentration above 0 HCL.

    Args:
        temperature: τ = 1/β.
        tau_plus: τ⁺ in [0, 1), the prior probability of the anchor's class.
        concentration: b ≥ 0, β in the paper: how much harder negatives than those of the batch.
        exclude: rows that are no negatives of each other; only the anchor's own row by default.

    Raises:
        ValueError: for a temperature ≤ 0, a prior outside [0, 1), or a negative concentration.
    """

    requires = "any"
    fresh_queries = False
    momentum: float | None = None
    learned: Sequence[Tensor] = ()

    def __init__(
        self,
        *,
        temperature: float,
        tau_plus: float = 0.1,
        concentration: float = 0.0,
        exclude: Exclusions | None = None,
    ) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature={temperature}: expected a value above 0")
        if not 0 <= tau_plus < 1:
            raise ValueError(f"tau_plus={tau_plus}: expected [0, 1), one over the number of classes or so")
        if not concentration >= 0:
            raise ValueError(f"concentration={concentration}: expected at least 0, which is DCL")
        self._temperature, self._tau_plus, self._concentration = temperature, tau_plus, concentration
        self._exclude = exclude

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
            positive = (batch.anchors * batch.positives).sum(-1) / self._temperature
            logits = torch.where(allowed, scores / self._temperature, -torch.inf)
            weights, positive_weight, bounded = self._weigh(logits, positive, allowed)
            total = weights.sum(1)
            hardness = (weights * scores).sum(1) / total.clamp(min=1e-12)
        info = {"hardness": float(hardness.mean()), "bounded": float(bounded.double().mean())}
        return Negatives(scores, weights, positive_weight), info

    def _weigh(self, logits: Tensor, positive: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Weights (A, C) and the positive's (A,) of βs, −∞ where not allowed (A, C), and βs⁺ (A,); where G is bounded.

        An anchor without a single negative has weight 0.
        """
        b, prior = self._concentration, self._tau_plus
        soft = torch.where(allowed, b * logits, -torch.inf)  # 0 times −∞ is no number
        hard = torch.where(allowed, (1 + b) * logits, -torch.inf)
        count = allowed.sum(1).to(logits.dtype)
        log_sum = count.log() + hard.logsumexp(1) - soft.logsumexp(1)  # log S
        log_bound = count.log() - 1 / self._temperature
        top = torch.maximum(torch.maximum(log_sum, positive), log_bound)  # no exponential above 1
        found, own, bound = ((x - top).exp() for x in (log_sum, positive, log_bound))
        debiased = (found - prior * count * own) / (1 - prior)
        bounded = debiased < bound
        whole = own + torch.where(bounded, bound, debiased)  # e^{βs⁺} + G
        share = torch.where(bounded, 0.0, found / ((1 - prior) * whole))
        weights = share[:, None] * ((1 + b) * hard.softmax(1) - b * soft.softmax(1))
        positive_weight = torch.where(bounded, bound / whole, share)
        return weights.nan_to_num(0.0), positive_weight.nan_to_num(0.0), bounded

    def state_dict(self) -> dict[str, Any]:
        """Empty: nothing is kept between steps."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""
