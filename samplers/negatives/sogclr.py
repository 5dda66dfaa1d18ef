"""SogCLR (Yuan et al. 2022): in-batch negatives, weighed against a moving average.

The global loss F = mean_i −β s_i⁺ + log g_i, g_i = mean_{j∈D_i} exp(β s_ij), has the gradient ∇g_i / g_i, of which a
batch knows ∇g_i well and g_i badly. So every anchor keeps an average of what it saw, u_i ≈ g_i (averages.py):

    u_i ← (1 − γ) u_i + γ mean_r exp(β s_ir)        w_ir = exp(β s_ir) / (R u_i),    p_i = 1        (algorithm 1)

γ = 1 is the softmax over the batch's negatives without the positive, and over the full batch it is ∇F exactly.

`relative` puts h_ir = s_ir − s_i⁺ in place of s_ir, as the two-way loss has it. The average then knows the positive,
too, and the positive's weight is Σ_r w_ir, which is not 1 where u_i lags behind.

u_i is an expectation over the data set: the batch's rows must be uniform draws from it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from negbank.bounds import Annotated, Ge, Gt, Le, Positive, checked
from negbank.exclusions import Exclusions
from negbank.samplers.negatives.averages import MovingAverages, compared, report
from negbank.samplers.negatives.contract import EncodedBatch, Info, Negatives, NegativeSampler, Ticket


class SogClr(NegativeSampler):
    """SogCLR: the other views of the batch, weighed against a moving average of each anchor's normaliser.

    Args:
        num_rows: N.
        temperature: τ = 1/β.
        views: V, views a row.
        gamma: γ, share of the newest batch in the average u.
        decay: steps over which γ falls from 1 to gamma by a half cosine; 0: constant; published: half the run.
        per_view: each view of a row has its own u; false: one a row, as published.
        relative: u averages exp(β(s − s⁺)) instead of exp(βs), with Σ_r w_ir as the positive's weight.
        exclude: rows that are no negatives of each other; only the anchor's own row by default.
        device: where u lives.
    """

    requires = "uniform"

    @checked
    def __init__(
        self,
        num_rows: int,
        *,
        temperature: Positive,
        views: int = 2,
        gamma: Annotated[float, Gt(0), Le(1)] = 0.9,
        decay: Annotated[int, Ge(0)] = 0,
        per_view: bool = True,
        relative: bool = False,
        exclude: Exclusions | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self._temperature, self._relative, self._exclude = temperature, relative, exclude
        self.averages = MovingAverages(num_rows, views, gamma=gamma, decay=decay, per_view=per_view, device=device)

    def __call__(self, batch: EncodedBatch, ticket: Ticket) -> tuple[Negatives, Info]:
        """See `NegativeSampler.__call__`."""
        ticket.require(batch)
        scores = batch.scores
        with torch.no_grad():
            h = compared(batch, scores, self._exclude, relative=self._relative)
            weights, log_u = self.averages.weigh(batch.rows, h / self._temperature, ticket.step)
        ones = None if self._relative else torch.ones_like(log_u)
        commit = partial(self.averages.keep, batch.rows, log_u)
        info = report(weights, scores, log_u, self.averages.gamma(ticket.step))
        return Negatives(scores, weights, ones, commit=commit), info

    def state_dict(self) -> dict[str, Any]:
        """See `MovingAverages.state_dict`."""
        return self.averages.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `MovingAverages.load_state_dict`."""
        self.averages.load_state_dict(state)
