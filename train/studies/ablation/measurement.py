"""What a proposal is worth to anchor i: exact, from its density on every row. Only the clock is measured.

z are the rows of the truth, unit; q_i is bound to a bank that lags behind it; a chain starts uniform over D_i.

    π_i(j) ∝ exp(z_i·z_j / τ), j ∈ D_i          p_R: law of the chain's state after R proposals (samplers/mixing.py)
    μ = P Σ_j π_i(j) z_j,  m_R = P Σ_j p_R(j) z_j,  P = I − z_i z_iᵀ

P z_j is the gradient of cos(x, z_j) in x at z_i, so that μ is the direction of the negatives in the exact gradient
and m_R its expectation when the last state of a chain stands for them:

    tv          ½ Σ_j |p_R(j) − π_i(j)|
    bias        |m_R − μ| / |μ|
    variance    E_{j~p_R} |P z_j − m_R|² / |μ|² = (Σ_j p_R(j) (1 − s_ij²) − |m_R|²) / |μ|²
    ess         1 / Σ_j π_i(j)² / q_i(j), effective draws a draw as an importance sample
    sup         max_j π_i(j) / q_i(j)
    acceptance  Σ_c π_i(c) Σ_j q_i(j) min{1, w_j/w_c}, w = π_i/q_i
    encodings   Σ_j 1 − (1 − q_i(j))^R, expected distinct rows of R draws: what the encoder has to pass
    ess_per_encoding  R · ess / encodings
    ms          wall time of proposal(anchors), sample(R) and log_prob of the draws, an anchor: median over calls
    ess_per_ms  R · ess / ms
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from negbank import Exclusions, Snapshot
from negbank.proposals import Anchors, Proposal
from negbank.samplers.mixing import acceptance_rate, effective_sample_size, laws, supremum

MEASURES = (
    "tv", "bias", "variance", "ess", "ess_per_ms", "ess_per_encoding", "sup", "acceptance", "encodings", "ms",
)  # fmt: skip
BLOCK = 1 << 21
"""Entries of an (anchors, N) float64 tensor, of which about twenty live at once: 16 MiB each."""
TIMED = 64
"""Anchors of a timed call, at most."""
ROUNDS, SECONDS = 7, 0.05
"""Each budget is timed this often at least, and more often until that time has passed a budget."""
ZERO = 1e-12
"""|μ| below this is no direction: all rows that weigh anything lie on the anchor, and bias and variance are NaN."""


class Key(NamedTuple):
    """What a measurement is of: proposal, target temperature, level of staleness, and "bank" or "fresh" queries."""

    proposal: str
    temperature: float
    level: str
    query: str


class Measurement(NamedTuple):
    """Every measure of anchors (A,) at ascending budgets: values[measure] (A, len(budgets)) float64 on the CPU.

    staleness is 1 − mean cosine of the bank's rows to the truth. Beside `MEASURES`, ms_low and ms_high are the 95 %
    interval of the median over timed calls.
    """

    key: Key
    staleness: float
    anchors: Tensor
    budgets: tuple[int, ...]
    values: dict[str, Tensor]


def measure(
    bank: Snapshot,
    truth: Tensor,
    anchors: Tensor,
    proposal: Proposal,
    key: Key,
    *,
    budgets: Sequence[int],
    exclude: Exclusions | None = None,
    generator: torch.Generator | None = None,
) -> Measurement:
    """All measures of one proposal, block by block over the anchors.

    Args:
        bank: what the proposal is bound to; gives the queries of `key.query` "bank".
        truth: (N, D) float64 unit rows on the bank's device.
        anchors: (A,) rows.
        proposal: with its density over D_i.
        key: names the measurement; its temperature is the target's.
        budgets: ascending, at least 1.
        exclude: D_i, the proposal's own; by default every row but the anchor.
        generator: of the draws that are timed.

    Raises:
        ValueError: for a proposal whose density is not positive on D_i, zero outside of it, and normalised.
    """
    exclude = (bank.exclude_self if exclude is None else exclude).to(truth.device)
    queries = bank.vectors if key.query == "bank" else truth
    parts = []
    for rows in anchors.split(block(len(truth))):
        log_q = proposal(Anchors(rows, queries[rows].float())).log_prob(_every(rows, truth))
        allowed = exclude.allowed(rows, _every(rows, truth))
        _check(key.proposal, rows, log_q, allowed)
        parts.append(_exact(truth, rows, log_q, allowed, key.temperature, budgets))
    values = {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}
    timed = anchors[: min(TIMED, block(len(truth)))]
    clock = milliseconds(proposal, Anchors(timed, queries[timed].float()), budgets, generator=generator)
    values |= {name: each.expand(len(anchors), -1) for name, each in zip(("ms", "ms_low", "ms_high"), clock)}
    effective = torch.tensor(budgets) * values["ess"]
    values["ess_per_ms"], values["ess_per_encoding"] = effective / values["ms"], effective / values["encodings"]
    return Measurement(key, staleness(bank, truth), anchors.cpu(), tuple(budgets), values)


def block(rows: int) -> int:
    """Anchors at once over N rows."""
    return max(1, BLOCK // rows)


def staleness(bank: Snapshot, truth: Tensor) -> float:
    """1 − mean cosine of the bank's rows to the truth, over those that were ever written."""
    rows = slice(None) if bank.rows is None else bank.rows
    return 1 - float((bank.vectors[rows].double() * truth[rows]).sum(1).mean())


def _every(rows: Tensor, truth: Tensor) -> Tensor:
    """All ids for each anchor: (A, N)."""
    return torch.arange(len(truth), device=rows.device).expand(len(rows), -1)


def _check(name: str, rows: Tensor, log_q: Tensor, allowed: Tensor) -> None:
    total = log_q.exp().sum(1)
    bad = ((log_q > -torch.inf) != allowed).any(1) | ((total - 1).abs() > 1e-6)
    if bool(bad.any()):
        raise ValueError(
            f"proposals: {name!r} is no density over D_i for anchors {rows[bad].tolist()[:8]}, where it sums to "
            f"{float(total[bad][0]):.6f}; bind it with the same `exclude`, to all rows, and not as a pool or a batch"
        )


def _exact(
    truth: Tensor, rows: Tensor, log_q: Tensor, allowed: Tensor, temperature: float, budgets: Sequence[int]
) -> dict[str, Tensor]:
    """The measures that need no clock, for anchors rows (A,): name → (A, len(budgets))."""
    own = truth[rows]
    scores = own @ truth.T
    log_target = torch.where(allowed, scores / temperature, -torch.inf)
    pi = log_target.softmax(1)
    across = 1 - scores.square()  # |P z_j|²
    mu = tangent(pi @ truth, own)
    size = mu.norm(dim=1)
    size = torch.where(size > ZERO, size, torch.nan)
    q = log_q.exp()
    found: dict[str, list[Tensor]] = {"tv": [], "bias": [], "variance": [], "encodings": []}
    start = allowed.double() / allowed.sum(1, keepdim=True)
    for budget, law in zip(budgets, laws(log_target, log_q, start, budgets)):
        mean = tangent(law @ truth, own)
        found["tv"].append((law - pi).abs().sum(1) / 2)
        found["bias"].append((mean - mu).norm(dim=1) / size)
        found["variance"].append(((law * across).sum(1) - mean.square().sum(1)).clamp(min=0) / size.square())
        found["encodings"].append(distinct(q, budget))
    whole = {
        "ess": effective_sample_size(log_target, log_q),
        "sup": supremum(log_target, log_q),
        "acceptance": acceptance_rate(log_target, log_q),
    }
    values = {name: torch.stack(each, 1) for name, each in found.items()}
    return values | {name: each[:, None].expand(-1, len(budgets)) for name, each in whole.items()}


def tangent(vectors: Tensor, at: Tensor) -> Tensor:
    """(I − z zᵀ) v for unit z = at (A, D) and v = vectors (A, D)."""
    return vectors - (vectors * at).sum(1, keepdim=True) * at


def distinct(q: Tensor, draws: int) -> Tensor:
    """Expected distinct rows of independent draws, Σ_j 1 − (1 − q_j)^draws, for q (A, N): (A,)."""
    return -torch.expm1(draws * torch.log1p(-q.clamp(max=1))).sum(1)


def milliseconds(
    proposal: Proposal, anchors: Anchors, budgets: Sequence[int], *, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Wall time an anchor of a call with each budget's draws and their density: median, low, high (len(budgets),).

    Budgets take turns, so that a busy spell of the machine falls on all of them. Low and high are the order statistics
    that hold the median with probability 95 %: ranks n/2 ± 0.98 √n.
    """
    rounds: list[list[float]] = []
    begun = _clock(anchors.rows.device)
    while len(rounds) <= ROUNDS or _clock(anchors.rows.device) - begun < SECONDS * len(budgets):
        rounds.append([])
        for draws in budgets:
            started = _clock(anchors.rows.device)
            distribution = proposal(anchors)
            distribution.log_prob(distribution.sample(draws, generator=generator))
            rounds[-1].append(_clock(anchors.rows.device) - started)
    each = torch.tensor(rounds[1:], dtype=torch.float64).sort(0).values * 1000 / len(anchors.rows)  # the first warms up
    rank = max(0, math.floor(len(each) / 2 - 0.98 * math.sqrt(len(each))))
    return each.median(0).values, each[rank], each[-1 - rank]


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
