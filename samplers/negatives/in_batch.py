"""SimCLR (Chen et al. 2020, eq. 1): the other rows of the batch, under the softmax that holds the positive too.

    w_ir = exp(β s_ir) / (exp(β s_i⁺) + Σ_r' exp(β s_ir'))

The gradient of −log(exp(β s⁺) / (exp(β s⁺) + Σ exp(β s_r))) with respect to s_r is β w_ir, and to s⁺ it is −β Σ_r w_ir:
so the surrogate has the gradient of InfoNCE exactly. With respect to β it is Σ_r w_ir (s_ir − s_i⁺), and that is the
surrogate's, too: `learn` makes log β a parameter of the optimiser, as CLIP does (Radford et al. 2021, sec. 2.5).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from negbank.samplers.negatives.contract import EncodedBatch, Info, Negatives
from torch import Tensor

from negbank.exclusions import Exclusions
from negbank.snapshot import Snapshot


class InBatch:
    """All candidates of the step that are allowed negatives, at their softmax weights.

    Args:
        temperature: τ = 1/β; with `learn` at the start.
        learn: whether β is learned, one for all anchors.
        lowest: smallest τ that can be learned.
        exclude: rows that are no negatives of each other; only the anchor's own row by default.
        device: where a learned β lives.

    Raises:
        ValueError: for a temperature ≤ 0, or with `learn` one below `lowest`, or a `lowest` ≤ 0.
    """

    requires = "any"
    fresh_queries = False
    momentum: float | None = None

    def __init__(
        self,
        *,
        temperature: float,
        learn: bool = False,
        lowest: float = 0.01,
        exclude: Exclusions | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature={temperature}: expected a value above 0")
        if learn and not 0 < lowest <= temperature:
            raise ValueError(f"lowest={lowest}: expected a value above 0 and at most temperature={temperature}")
        self._temperature, self._lowest, self._exclude = temperature, lowest, exclude
        self._log_beta = torch.tensor(-math.log(temperature), device=device, requires_grad=learn)
        self.learned: Sequence[Tensor] = (self._log_beta,) if learn else ()

    def update(self, snapshot: Snapshot) -> None:
        """Nothing: the batch is all there is."""

    def draw(self, rows: Tensor, queries: Tensor | None = None) -> Tensor:
        """No further rows."""
        return rows[:0]

    def __call__(self, batch: EncodedBatch) -> tuple[Negatives, Info]:
        """See `NegativeSampler.__call__`."""
        scores = batch.anchors @ batch.candidates.T
        allowed = allowed_columns(batch, self._exclude)
        temperature: Tensor | float = self._temperature
        if self.learned:
            with torch.no_grad():
                self._log_beta.clamp_(max=-math.log(self._lowest))
            temperature = (-self._log_beta).exp()
        with torch.no_grad():
            positive = (batch.anchors * batch.positives).sum(-1, keepdim=True)
            logits = torch.where(allowed, scores, -torch.inf)
            weights = torch.softmax(torch.cat((logits, positive), 1) / temperature, 1)[:, :-1]
        hardness = (weights * scores.detach()).sum(1) / weights.sum(1).clamp(min=1e-12)
        info = {"hardness": float(hardness.mean())}
        if not isinstance(temperature, Tensor):
            return Negatives(scores, weights), info
        info["temperature"] = float(temperature.detach())
        return Negatives(scores, weights, temperature=temperature), info

    def state_dict(self) -> dict[str, Any]:
        """log β where it is learned; else nothing is kept between steps."""
        return {"log_beta": self._log_beta.detach().clone()} if self.learned else {}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it."""
        if self.learned:
            self._log_beta.copy_(state["log_beta"])


def allowed_columns(batch: EncodedBatch, exclude: Exclusions | None) -> Tensor:
    """(A, C) bool: which candidates are allowed negatives of which anchor; without `exclude`, all but its own row."""
    ids = batch.candidate_rows
    if exclude is None:
        allowed = batch.rows[:, None] != ids
    else:
        allowed = exclude.to(ids.device).allowed(batch.rows, ids.expand(len(batch.rows), -1))
    return allowed.repeat(batch.views, 1)
