"""Moving averages of each anchor's normaliser, which SogCLR and iSogCLR weigh their negatives against:

    u_i ← (1 − γ) u_i + γ ĝ_i,    ĝ_i = mean_r exp(β s_ir)        w_ir = exp(β s_ir) / (R u_i)

over the R negatives of the batch. A first visit sets u_i = ĝ_i. Everything is done with log u: neither exp(β) nor its
average is ever formed, and w_ir ≤ softmax_r / γ whatever β is.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from negbank.bank import require_rows
from negbank.exclusions import Exclusions
from negbank.samplers.negatives.contract import EncodedBatch, Info, hardness, number

NEVER = -math.inf
"""log u of a row that was never visited."""


class MovingAverages:
    """log u of every row and view, or of every row with one average for all its views.

    Args:
        num_rows, views: N and V.
        gamma: γ in (0, 1].
        decay: steps over which γ falls from 1 to `gamma` by a half cosine; 0: it is constant.
        per_view: whether each view of a row has its own u.
        device: where they live.
    """

    def __init__(
        self, num_rows: int, views: int, *, gamma: float, decay: int, per_view: bool, device: torch.device | str
    ) -> None:
        self.log_u = torch.full((num_rows, views if per_view else 1), NEVER, device=device)
        self._views, self._gamma, self._decay = views, gamma, decay

    def gamma(self, step: int) -> float:
        """γ of a step: γ + (1 − γ) (1 + cos(π t / decay)) / 2 for t < decay."""
        share = 0.5 * (1 + math.cos(math.pi * step / self._decay)) if step < self._decay else 0.0
        return self._gamma + (1 - self._gamma) * share

    def moved(self, rows: Tensor, log_mean: Tensor, step: int) -> Tensor:
        """The log u (V·B,) of rows (B,) with log ĝ (V·B,) taken in, which each anchor is to be weighed against.

        An anchor without negatives, log ĝ = −∞, changes nothing.
        """
        gamma, found = self.gamma(step), log_mean.view(self._views, -1).T
        old = self.log_u[rows].to(found.dtype).expand(found.shape)
        kept = old + (math.log1p(-gamma) if gamma < 1 else NEVER)
        new = torch.where(old == NEVER, found, torch.logaddexp(kept, math.log(gamma) + found))
        return torch.where(found == NEVER, old, new).T.flatten()

    def keep(self, rows: Tensor, log_u: Tensor) -> None:
        """Keep the log u (V·B,) of rows (B,): with one u a row the mean of its views' (algorithm 1)."""
        new = log_u.view(self._views, -1).T
        per_view = self.log_u.shape[1] == self._views
        self.log_u[rows] = (new if per_view else new.logsumexp(1, keepdim=True) - math.log(self._views)).to(self.log_u)

    def weigh(self, rows: Tensor, logits: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Weights exp(logits) / (R u) of all anchors (A, C), and the log u (A,) that took the batch in.

        Raises:
            ValueError: for rows that are not of the data set.
        """
        require_rows(rows, len(self.log_u))
        count = (logits > NEVER).sum(1)
        log_count = count.to(logits.dtype).log()
        log_u = self.moved(rows, torch.where(count > 0, logits.logsumexp(1) - log_count, NEVER), step)
        return torch.where(logits > NEVER, (logits - (log_count + log_u)[:, None]).exp(), 0.0), log_u

    def state_dict(self) -> dict[str, Any]:
        """log u (N, V) or (N, 1)."""
        return {"log_u": self.log_u.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it.

        Raises:
            ValueError: when it is of another shape.
        """
        if state["log_u"].shape != self.log_u.shape:
            raise ValueError(f"log_u: {tuple(state['log_u'].shape)} in the state, {tuple(self.log_u.shape)} here")
        self.log_u.copy_(state["log_u"])


def compared(batch: EncodedBatch, scores: Tensor, exclude: Exclusions | None, *, relative: bool) -> Tensor:
    """What is averaged (A, C): s, or relative to the positive h = s − s⁺; −∞ for what is no negative."""
    if relative:
        scores = scores - batch.positive_scores[:, None]
    return torch.where(batch.allowed(exclude), scores, NEVER)


def report(weights: Tensor, scores: Tensor, log_u: Tensor, gamma: float) -> Info:
    """What both report of a step."""
    total = number(weights.sum(1).mean())
    return {"hardness": hardness(weights, scores), "log_u": number(log_u.mean()), "weight": total, "gamma": gamma}
