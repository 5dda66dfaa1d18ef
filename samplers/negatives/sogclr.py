"""SogCLR (Yuan et al. 2022) and iSogCLR (Qiu et al. 2023): in-batch negatives, weighed against a moving average.

The global loss F = mean_i −β s_i⁺ + log g_i, g_i = mean_{j∈D_i} exp(β s_ij), has the gradient ∇g_i / g_i, of which a
batch knows ∇g_i well and g_i badly. So every anchor keeps an average of what it saw, u_i ≈ g_i:

    u_i ← (1 − γ) u_i + γ ĝ_i,    ĝ_i = mean_r exp(β s_ir)        w_ir = exp(β s_ir) / (R u_i),    p_i = 1

over the R negatives of the batch (Yuan et al., algorithm 1). A first visit sets u_i = ĝ_i. γ = 1 is the softmax over
the batch's negatives without the positive, and over the full batch it is ∇F exactly. Everything is done with log u:
neither exp(β) nor its average is ever formed, and w_ir ≤ softmax_r / γ whatever β is.

`relative` puts h_ir = s_ir − s_i⁺ in place of s_ir, as the two-way loss and iSogCLR have it. The average then knows
the positive, too, and the positive's weight is Σ_r w_ir, which is not 1 where u_i lags behind.

iSogCLR has a temperature for every row. It descends its robust loss (Qiu et al., eq. 6 and algorithm 1)

    F = mean_i τ_i log g_i(τ_i) + τ_i ρ,    g_i(τ) = mean_j exp(h_ij / τ)
    ∂F/∂τ_i ∝ log u_i + ρ − Σ_r w_ir h_ir / τ_i          v_i ← (1 − b) v_i + b ∂F/∂τ_i,    τ_i ← clip(τ_i − η v_i)

in which ρ bounds the divergence of the negatives' weights from uniform. With respect to the encoder its gradient is
mean_i Σ_r w_ir (∇s_ir − ∇s_i⁺), w at τ_i, without a factor 1/τ_i: the surrogate's one β is the same for all anchors.

u_i is an expectation over the data set: the batch's rows must be uniform draws from it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from negbank.samplers.negatives.contract import EncodedBatch, Info, Negatives
from negbank.samplers.negatives.in_batch import allowed_columns
from torch import Tensor

from negbank.exclusions import Exclusions
from negbank.snapshot import Snapshot

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

    Raises:
        ValueError: for a γ outside (0, 1] or a negative decay.
    """

    def __init__(
        self, num_rows: int, views: int, *, gamma: float, decay: int, per_view: bool, device: torch.device | str
    ) -> None:
        if not 0 < gamma <= 1:
            raise ValueError(f"gamma={gamma}: expected (0, 1], the share of the newest batch in u; 0.9 is usual")
        if decay < 0:
            raise ValueError(f"decay={decay}: expected a number of steps, 0 for a constant gamma")
        self.log_u = torch.full((num_rows, views if per_view else 1), NEVER, device=device)
        self.step = 0
        self._views, self._gamma, self._decay = views, gamma, decay

    @property
    def gamma(self) -> float:
        """γ of the next step: γ + (1 − γ) (1 + cos(π t / decay)) / 2 for t < decay."""
        share = 0.5 * (1 + math.cos(math.pi * self.step / self._decay)) if self.step < self._decay else 0.0
        return self._gamma + (1 - self._gamma) * share

    def update(self, rows: Tensor, log_mean: Tensor) -> Tensor:
        """Take log ĝ (V·B,) of rows (B,) in; the log u (V·B,) that each anchor is to be weighed against.

        With one u a row, each view is weighed against its own new average, and the mean of these is kept (algorithm 1).
        An anchor without negatives, log ĝ = −∞, changes nothing.
        """
        gamma, found = self.gamma, log_mean.view(self._views, -1).T
        self.step += 1
        old = self.log_u[rows].to(found.dtype).expand(found.shape)
        kept = old + (math.log1p(-gamma) if gamma < 1 else NEVER)
        new = torch.where(old == NEVER, found, torch.logaddexp(kept, math.log(gamma) + found))
        new = torch.where(found == NEVER, old, new)
        per_view = self.log_u.shape[1] == self._views
        self.log_u[rows] = (new if per_view else new.logsumexp(1, keepdim=True) - math.log(self._views)).to(self.log_u)
        return new.T.flatten()

    def state_dict(self) -> dict[str, Any]:
        """log u (N, V) or (N, 1), and the steps taken."""
        return {"log_u": self.log_u.clone(), "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them.

        Raises:
            ValueError: when they are of another shape.
        """
        if state["log_u"].shape != self.log_u.shape:
            raise ValueError(f"log_u: {tuple(state['log_u'].shape)} in the state, {tuple(self.log_u.shape)} here")
        self.log_u.copy_(state["log_u"])
        self.step = state["step"]


class SogClr:
    """SogCLR: one temperature for all.

    Args:
        num_rows: N.
        temperature: τ = 1/β.
        views: V, views a row.
        gamma, decay, per_view: see `MovingAverages`.
        relative: average exp(β (s − s⁺)), with Σ_r w_ir as the positive's weight, instead of exp(β s).
        exclude: rows that are no negatives of each other; only the anchor's own row by default.
        device: where u lives.

    Raises:
        ValueError: for a temperature ≤ 0, or as `MovingAverages`.
    """

    requires = "uniform"
    fresh_queries = False
    momentum: float | None = None
    learned: Sequence[Tensor] = ()

    def __init__(
        self,
        num_rows: int,
        *,
        temperature: float,
        views: int = 2,
        gamma: float = 0.9,
        decay: int = 0,
        per_view: bool = True,
        relative: bool = False,
        exclude: Exclusions | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature={temperature}: expected a value above 0")
        self._temperature, self._relative, self._exclude = temperature, relative, exclude
        self.averages = MovingAverages(num_rows, views, gamma=gamma, decay=decay, per_view=per_view, device=device)

    def update(self, snapshot: Snapshot) -> None:
        """Nothing: the batch is all there is."""

    def draw(self, rows: Tensor, queries: Tensor | None = None) -> Tensor:
        """No further rows."""
        return rows[:0]

    def __call__(self, batch: EncodedBatch) -> tuple[Negatives, Info]:
        """See `NegativeSampler.__call__`."""
        gamma = self.averages.gamma
        scores = batch.anchors @ batch.candidates.T
        with torch.no_grad():
            h = _compared(batch, scores, self._exclude, relative=self._relative)
            weights, log_u = _weigh(self.averages, batch.rows, h / self._temperature)
        ones = None if self._relative else torch.ones_like(log_u)
        return Negatives(scores, weights, ones), {**_report(weights, scores, log_u), "gamma": gamma}

    def state_dict(self) -> dict[str, Any]:
        """See `MovingAverages.state_dict`."""
        return self.averages.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the averages.

        Raises:
            ValueError: when they are of another data set's shape.
        """
        self.averages.load_state_dict(state)


class ISogClr:
    """iSogCLR: a temperature for every row, learned with the encoder.

    Args:
        num_rows: N.
        temperature: τ_i at the start.
        views: V, views a row; they share the row's temperature.
        gamma, decay, per_view: see `MovingAverages`.
        rho: ρ, the price of a temperature: the smaller, the higher temperatures become.
        lowest, highest: bounds of τ_i.
        rate: η, step size of the temperatures.
        newest: b in (0, 1], the share of the newest gradient in v_i.
        relative, exclude, device: as in `SogClr`.

    Raises:
        ValueError: for bounds that are not above 0 and around `temperature`, rho < 0, rate ≤ 0, a share `newest`
            outside (0, 1], or as `MovingAverages`.
    """

    requires = "uniform"
    fresh_queries = False
    momentum: float | None = None
    learned: Sequence[Tensor] = ()

    def __init__(
        self,
        num_rows: int,
        *,
        temperature: float,
        views: int = 2,
        gamma: float = 0.9,
        decay: int = 0,
        per_view: bool = True,
        rho: float = 0.3,
        lowest: float = 0.05,
        highest: float = 0.7,
        rate: float = 0.01,
        newest: float = 0.9,
        relative: bool = True,
        exclude: Exclusions | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if not 0 < lowest <= temperature <= highest:
            raise ValueError(
                f"lowest={lowest}, highest={highest}: expected 0 < lowest ≤ temperature={temperature} ≤ highest; widen "
                f"them, or choose another temperature to start from"
            )
        if rho < 0 or not rate > 0:
            raise ValueError(f"rho={rho}, rate={rate}: expected rho of at least 0 and a rate above 0")
        if not 0 < newest <= 1:
            raise ValueError(f"newest={newest}: expected (0, 1]; 1 keeps no momentum")
        self._rho, self._lowest, self._highest = rho, lowest, highest
        self._rate, self._newest = rate, newest
        self._relative, self._exclude = relative, exclude
        self.averages = MovingAverages(num_rows, views, gamma=gamma, decay=decay, per_view=per_view, device=device)
        self.temperatures = torch.full((num_rows,), temperature, device=device)
        self.velocities = torch.zeros(num_rows, device=device)

    def update(self, snapshot: Snapshot) -> None:
        """Nothing: the batch is all there is."""

    def draw(self, rows: Tensor, queries: Tensor | None = None) -> Tensor:
        """No further rows."""
        return rows[:0]

    def __call__(self, batch: EncodedBatch) -> tuple[Negatives, Info]:
        """See `NegativeSampler.__call__`. Weights are at the temperatures from before this step's descent."""
        gamma = self.averages.gamma
        scores = batch.anchors @ batch.candidates.T
        with torch.no_grad():
            tau = self.temperatures[batch.rows].to(scores.dtype)
            logits = _compared(batch, scores, self._exclude, relative=self._relative) / tau.repeat(batch.views)[:, None]
            weights, log_u = _weigh(self.averages, batch.rows, logits)
            slope = log_u + self._rho - (weights * torch.where(weights > 0, logits, 0.0)).sum(1)
            slope = torch.where((logits > NEVER).any(1), slope, NEVER)
            self._descend(batch.rows, tau, slope.view(batch.views, -1).mean(0))
        ones = None if self._relative else torch.ones_like(log_u)
        info = {**_report(weights, scores, log_u), "gamma": gamma, "temperature": float(tau.mean())}
        return Negatives(scores, weights, ones), info

    def _descend(self, rows: Tensor, tau: Tensor, slope: Tensor) -> None:
        """One step of the temperatures of rows (B,), from tau (B,) along the gradients slope (B,)."""
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


def _compared(batch: EncodedBatch, scores: Tensor, exclude: Exclusions | None, *, relative: bool) -> Tensor:
    """What is averaged (A, C): s or h = s − s⁺; −∞ for what is no negative."""
    if relative:
        scores = scores - (batch.anchors * batch.positives).sum(-1, keepdim=True)
    return torch.where(allowed_columns(batch, exclude), scores, NEVER)


def _weigh(averages: MovingAverages, rows: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Weights exp(logits) / (R u) of all anchors (A, C) after u took the batch in, and log u (A,)."""
    count = (logits > NEVER).sum(1)
    log_count = count.to(logits.dtype).log()
    log_u = averages.update(rows, torch.where(count > 0, logits.logsumexp(1) - log_count, NEVER))
    return torch.where(logits > NEVER, (logits - (log_count + log_u)[:, None]).exp(), 0.0), log_u


def _report(weights: Tensor, scores: Tensor, log_u: Tensor) -> Info:
    total = weights.sum(1)
    hardness = (weights * scores.detach()).sum(1) / total.clamp(min=1e-12)
    return {"hardness": float(hardness.mean()), "log_u": float(log_u.mean()), "weight": float(total.mean())}
