"""Temperature and floor that follow how stale the bank is: fitted on a probe of fresh similarities, not set by hand.

Scores of a stale bank are noisy readings of the fresh ones. With s = ρ s̃ + noise the best softmax over s̃ is flatter,
of temperature τ / ρ: a sharp one trusts the rows that look hardest, and those are picked for their noise. Nothing is
assumed here, though. What a proposal q costs an estimator or a chain with target π is measured by

    1 / ESS = E_q [(π / q)²] = Σ_j π_j² / q_j = 1 + χ²(π ‖ q)

the variance of its importance weights (ESS: effective sample size per draw). For probe anchors i and rows j_1..j_M,
drawn from any q̄ that reaches D_i, both sums are estimated from fresh similarities s of just those rows:

    Σ_j π_j² / q_j = Σ_j e^{2βs_j} / q_j / (Σ_j e^{βs_j})²
                   ≈ [(1/M) Σ_r e^{2βs_r} / (q(j_r) q̄(j_r))] / [(1/M) Σ_r e^{βs_r} / q̄(j_r)]²,      r with j_r ∈ D_i

a ratio estimator, optimistic by an order of 1/M, on the same rows for every candidate. The fit takes the candidate of
the least mean logarithm over anchors. Floors below 0.05 are not tried: they gain little there, and the rate of a chain
depends on the worst row, sup π/q (samplers/metropolis.py), which a probe may not see.

    probe = measure(snapshot, rows, encode, temperature=0.07)
    proposal = HeadTail(snapshot, temperature=0.07, adapt=True, probe=probe)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from negbank.index import Index, Neighbors
from negbank.proposals.contract import Anchors, Proposal

FACTORS = (1.0, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0)
"""Temperatures tried, in units of the target's."""
FLOORS = (0.05, 0.1, 0.2, 0.4)
TAILS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Factors tried on the tail of a proposal that has a head and a tail."""


class Probe(NamedTuple):
    """Fresh similarities scores (P, M) of P anchors to rows ids (M,), drawn with log density log_q (M,)."""

    anchors: Anchors
    ids: Tensor
    log_q: Tensor
    scores: Tensor


class Fitted(NamedTuple):
    """The temperature and floor of least χ², and the effective sample size per draw predicted for them."""

    temperature: float
    floor: float
    ess: float


def fit(
    bind: Callable[[float, float], Proposal],
    probe: Probe,
    temperature: float,
    *,
    factors: Sequence[float] = FACTORS,
    floors: Sequence[float] = FLOORS,
) -> Fitted:
    """The best of all factors × floors.

    Args:
        bind: (temperature, floor) → proposal.
        probe: anchors with the queries the proposal will be searched with, and rows with fresh similarities to them.
        temperature: τ of the target.
        factors, floors: candidates; temperatures in units of τ.

    Raises:
        ValueError: for shapes that do not fit, or an anchor none of whose allowed rows is in the probe.
    """
    shape = (len(probe.anchors.rows), len(probe.ids))
    if probe.scores.shape != shape or probe.log_q.shape != shape[1:] or 0 in shape:
        raise ValueError(
            f"probe: scores {tuple(probe.scores.shape)}, log_q {tuple(probe.log_q.shape)}, "
            f"expected {shape} and {shape[1:]} for its anchors and ids, none of them 0"
        )
    cost, best, floor = min(
        (_cost(bind(factor * temperature, floor), probe, temperature), factor * temperature, floor)
        for factor in factors
        for floor in floors
    )
    return Fitted(best, floor, min(1.0, math.exp(-cost)))


def tune(proposal: Any, probe: Probe | None) -> None:
    """Set `temperature`, which is the target's τ so far, and `floor` of a proposal to the fitted ones; then its `tail`.

    Before there is a probe they stay as they were set.
    """
    if probe is None:
        return

    index = _Once(proposal._index) if hasattr(proposal, "_index") else None

    def varied(**settings: float) -> Proposal:
        made = copy.copy(proposal)
        vars(made).update(settings if index is None else {**settings, "_index": index})
        return made

    target = proposal.temperature
    best = fit(lambda temperature, floor: varied(temperature=temperature, floor=floor), probe, target)
    proposal.temperature, proposal.floor = best.temperature, best.floor
    if hasattr(proposal, "tail"):
        proposal.tail = min((_cost(varied(tail=tail), probe, target), tail) for tail in TAILS)[1]


class _Once:
    """An index that is asked the same again and again: candidates differ in what they make of one search."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._found: dict[tuple[int, int], Neighbors] = {}

    def __len__(self) -> int:
        return len(self._index)

    def search(self, queries: Tensor, k: int) -> Neighbors:
        """See `Index.search`; of the one probe's queries, which live as long as this does."""
        key = (id(queries), k)
        if key not in self._found:
            self._found[key] = self._index.search(queries, k)
        return self._found[key]


def _cost(proposal: Proposal, probe: Probe, temperature: float) -> float:
    log_q = proposal(probe.anchors).log_prob(probe.ids.expand(probe.scores.shape))
    return float(log_inverse_ess(log_q, probe, temperature).mean())


def log_inverse_ess(log_q: Tensor, probe: Probe, temperature: float) -> Tensor:
    """log Σ_j π_j² / q_j estimated from log_q (P, M) at the probe's rows, −∞ where they are not allowed: (P,)."""
    logits = probe.scores.double() / temperature
    inside = log_q > -torch.inf
    if not bool(inside.any(1).all()):
        rows = probe.anchors.rows[~inside.any(1)].tolist()[:8]
        raise ValueError(f"probe: no allowed row for anchors {rows}; draw more rows")
    squares = torch.where(inside, 2 * logits - log_q - probe.log_q, -torch.inf)
    total = torch.where(inside, logits - probe.log_q, -torch.inf)
    return squares.logsumexp(1) - 2 * total.logsumexp(1) + math.log(len(probe.ids))
