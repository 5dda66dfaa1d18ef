"""SimCLR (Chen et al. 2020, eq. 1): the other rows of the batch, under the softmax that holds the positive too.

    w_ir = exp(β s_ir) / (exp(β s_i⁺) + Σ_r' exp(β s_ir'))

The gradient of −log(exp(β s⁺) / (exp(β s⁺) + Σ exp(β s_r))) with respect to s_r is β w_ir, and to s⁺ it is −β Σ_r w_ir:
so the surrogate has the gradient of InfoNCE exactly. With respect to β it is Σ_r w_ir (s_ir − s_i⁺), and that is the
surrogate's, too: `learn` makes log β a parameter of the optimiser, as CLIP does (Radford et al. 2021, sec. 2.5).

Rows that are as near as the positive may be positives that nobody has marked. `perc_pos` and `margin_pos` leave them
out, by the scores of this step or those of a guide, another model (near.py; Solatorio 2024, Moreira et al. 2024).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from negbank.bounds import Annotated, Ge, Input, Le, Positive, checked
from negbank.exclusions import Exclusions
from negbank.samplers.negatives.contract import EncodedBatch, Info, Negatives, NegativeSampler, Ticket, hardness, number
from negbank.samplers.negatives.near import NearPositives


class InBatch(NegativeSampler):
    """SimCLR: the other views of the batch, and what else is encoded, at their softmax weights.

    Args:
        temperature: τ = 1/β; with `learn` at the start.
        learn: τ is learned, one for all anchors, from loss.temperature on.
        lowest: smallest τ that is learned.
        perc_pos: no negatives are rows that score above this share of the positive's score, if that is positive; 1 −
            relative_margin of the miner; None: off.
        margin_pos: nor those that score above the positive's score less this; None: off.
        guide: .npy file of the training rows (N, D') by another model, whose scores count for these bounds; of pairs
            of the left side. None: fresh scores do.
        guide_right: of pairs that of the right side.
        exclude: rows that are no negatives of each other; only the anchor's own row by default.
        device: where a learned β lives.
        num_rows: N, of a guide.
        views: of a row; 1: pairs.
        side: 0 for anchors of the first tower, 1 for those of the second.

    Raises:
        ValueError: with `learn` for a temperature below `lowest`; for a guide without a bound, or of other rows.
    """

    @checked
    def __init__(
        self,
        *,
        temperature: Positive,
        learn: bool = False,
        lowest: Positive = 0.01,
        perc_pos: Positive | None = None,
        margin_pos: Annotated[float, Ge(-2), Le(2)] | None = None,
        guide: Annotated[str | None, Input()] = None,
        guide_right: Annotated[str | None, Input()] = None,
        exclude: Exclusions | None = None,
        device: torch.device | str = "cpu",
        num_rows: int | None = None,
        views: int = 2,
        side: int = 0,
    ) -> None:
        if learn and lowest > temperature:
            raise ValueError(f"lowest={lowest}: expected at most temperature={temperature}, where learning starts")
        self._temperature, self._lowest, self._exclude = temperature, lowest, exclude
        self._near = NearPositives(
            perc_pos, margin_pos, guide, guide_right, num_rows=num_rows, views=views, side=side
        )  # fmt: skip
        self._log_beta = torch.tensor(-math.log(temperature), device=device, requires_grad=learn)
        self.learned = (self._log_beta,) if learn else ()

    def __call__(self, batch: EncodedBatch, ticket: Ticket | None = None) -> tuple[Negatives, Info]:
        """See `NegativeSampler.__call__`."""
        scores = batch.scores
        temperature: Tensor | float = self._temperature
        if self.learned:  # as if it were clamped in place, which `commit` does once the step is taken
            value = self._log_beta.detach()
            temperature = (value - self._log_beta - value.clamp(max=-math.log(self._lowest))).exp()
        with torch.no_grad():
            allowed, positive, info = batch.allowed(self._exclude), batch.positive_scores[:, None], {}
            if self._near:
                near = allowed & self._near(batch, scores)
                allowed = allowed & ~near
                info["near_positives"] = number(near.float().mean())
            logits = torch.where(allowed, scores, -torch.inf)
            weights = torch.softmax(torch.cat((logits, positive), 1) / temperature, 1)[:, :-1]
        info["hardness"] = hardness(weights, scores)
        if not isinstance(temperature, Tensor):
            return Negatives(scores, weights), info
        info["temperature"] = number(temperature.detach())
        return Negatives(scores, weights, temperature=temperature, commit=self._clamp), info

    @torch.no_grad()
    def _clamp(self) -> None:
        self._log_beta.clamp_(max=-math.log(self._lowest))

    def state_dict(self) -> dict[str, Any]:
        """log β where it is learned."""
        return {"log_beta": self._log_beta.detach().clone()} if self.learned else {}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it."""
        if self.learned:
            self._log_beta.copy_(state["log_beta"])
