"""iSogCLR (Qiu et al. 2023): SogCLR with a temperature for every row. It descends the robust loss (eq. 6, algorithm 1)

    F = mean_i τ_i log g_i(τ_i) + τ_i ρ,    g_i(τ) = mean_j exp(h_ij / τ),    h_ij = s_ij − s_i⁺
    ∂F/∂τ_i ∝ log u_i + ρ − Σ_r w_ir h_ir / τ_i          v_i ← (1 − b) v_i + b ∂F/∂τ_i,    τ_i ← clip(τ_i − η v_i)

in which ρ bounds the divergence of the negatives' weights from uniform, and u and w are SogCLR's (sogclr.py) at τ_i.
With respect to the encoder its gradient is mean_i Σ_r w_ir (∇s_ir − ∇s_i⁺), w at τ_i, without a factor 1/τ_i: the
surrogate's one β is the same for all anchors.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from negbank.bank import require_rows
from negbank.bounds import Annotated, Ge, Gt, Le, Positive, checked
from negbank.exclusions import Exclusions
from negbank.samplers.negatives.averages import NEVER, MovingAverages, compared, report
from negbank.samplers.negatives.contract import EncodedBatch, Info, Negatives, NegativeSampler, Ticket, number


class ISogClr(NegativeSampler):
    """iSogCLR: SogCLR with a temperature for every row, learned with the encoder.

    Args:
        num_rows: N.
        temperature: τ_i at the start.
        views: V, views a row; they share the row's temperature.
        gamma: γ, share of the newest batch in the average u.
        decay: steps over which γ falls from 1 to gamma by a half cosine; 0: constant; published: half the run.
        per_view: each view of a row has its own u; false: one a row, as published.
        relative: u averages exp(β(s − s⁺)) instead of exp(βs), with Σ_r w_ir as the positive's weight.
        rho: ρ, bound on the divergence of the negatives' weights from uniform: the smaller, the higher temperatures.
        lowest: smallest temperature of a row.
        highest: largest temperature of a row.
        rate: η, step size of the temperatures.
        newest: b, share of the newest gradient in a temperature's step; 1: no momentum.
        exclude: rows that are no negatives of each other; only the anchor's own row by default.
        device: where u and the temperatures live.

    Raises:
        ValueError: for bounds that are not around `temperature`.
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
        relative: bool = True,
        rho: Annotated[float, Ge(0)] = 0.3,
        lowest: Positive = 0.05,
        highest: Positive = 0.7,
        rate: Positive = 0.01,
        newest: Annotated[float, Gt(0), Le(1)] = 0.9,
        exclude: Exclusions | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if not lowest <= temperature <= highest:
            raise ValueError(
                f"lowest={lowest}, highest={highest}: expected lowest ≤ temperature={temperature} ≤ highest; widen "
                f"them, or choose another temperature to start from"
            )
        self._rho, self._lowest, self._highest = rho, lowest, highest
        self._rate, self._newest = rate, newest
        self._relative, self._exclude = relative, exclude
        self.averages = MovingAverages(num_rows, views, gamma=gamma, decay=decay, per_view=per_view, device=device)
        self.temperatures = torch.full((num_rows,), temperature, device=device)
        self.velocities = torch.zeros(num_rows, device=device)

    def __call__(self, batch: EncodedBatch, ticket: Ticket) -> tuple[Negatives, Info]:
        """See `NegativeSampler.__call__`. Weights are at the temperatures from before this step's descent."""
        ticket.require(batch)
        scores = batch.scores
        with torch.no_grad():
            require_rows(batch.rows, len(self.temperatures))
            tau = self.temperatures[batch.rows].to(scores.dtype)
            logits = compared(batch, scores, self._exclude, relative=self._relative) / tau.repeat(batch.views)[:, None]
            weights, log_u = self.averages.weigh(batch.rows, logits, ticket.step)
            slope = log_u + self._rho - (weights * torch.where(weights > 0, logits, 0.0)).sum(1)
            slope = torch.where((logits > NEVER).any(1), slope, NEVER)
        ones = None if self._relative else torch.ones_like(log_u)
        commit = partial(self._keep, batch.rows, log_u, tau, slope.view(batch.views, -1).mean(0))
        info = report(weights, scores, log_u, self.averages.gamma(ticket.step))
        return Negatives(scores, weights, ones, commit=commit), {**info, "temperature": number(tau.mean())}

    def _keep(self, rows: Tensor, log_u: Tensor, tau: Tensor, slope: Tensor) -> None:
        """Keep log u (A,), and take one step of the temperatures of rows (B,), from tau (B,) along slope (B,)."""
        self.averages.keep(rows, log_u)
        found = slope > NEVER  # an anchor without negatives tells nothing
        old = self.velocities[rows].to(slope.dtype)
        velocity = torch.where(found, (1 - self._newest) * old + self._newest * slope, old)
        tau = torch.where(found, (tau - self._rate * velocity).clamp(self._lowest, self._highest), tau)
        self.velocities[rows], self.temperatures[rows] = velocity.to(self.velocities), tau.to(self.temperatures)

    def state_dict(self) -> dict[str, Any]:
        """The averages, the temperatures (N,) and their velocities (N,)."""
        own = {"temperatures": self.temperatures.clone(), "velocities": self.velocities.clone()}
        return {**self.averages.state_dict(), **own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them.

        Raises:
            ValueError: when they are of another data set's shape.
        """
        self.averages.load_state_dict(state)
        self.temperatures.copy_(state["temperatures"])
        self.velocities.copy_(state["velocities"])
