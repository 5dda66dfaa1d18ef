"""The exact law of an independence Metropolis–Hastings chain over a finite set, without its transition matrix.

Proposals j ~ q, target π, w = π/q. One step takes the law p of the state to

    p'(j) = Σ_c p(c) q(j) min{1, w_j/w_c} + p(j) r(j)
          = q(j) Σ_{w_c ≤ w_j} p(c) + π(j) Σ_{w_c > w_j} p(c)/w_c + p(j) r(j)
    r(j)  = 1 − Σ_{w_k > w_j} q(k) − Σ_{w_k ≤ w_j} π(k) / w_j                           (the probability to stay at j)

so that in the order of w a step is two cumulative sums: O(N) a step after one sort (Liu 1996 has the spectrum, on which
the same order rests; Smith & Tierney 1996 the n-step probabilities). Memory is that of one law, however many steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class _Ordered(NamedTuple):
    """A chain with its states in the order of w, each (..., N) float64; a state outside D is always left."""

    order: Tensor
    pi: Tensor
    q: Tensor
    inverse: Tensor  # 1/w, 0 outside D
    stay: Tensor  # r, 0 outside D


def _ordered(log_target: Tensor, log_q: Tensor) -> _Ordered:
    log_pi = log_target.double().log_softmax(-1)
    log_w = torch.where(log_pi == -torch.inf, -torch.inf, log_pi - log_q.double())
    log_w, order = log_w.sort(-1)
    outside = log_w == -torch.inf
    pi = log_pi.exp().gather(-1, order)
    q = torch.where(outside, 0.0, log_q.double().exp().gather(-1, order))
    inverse = torch.where(outside, 0.0, (-log_w).exp())
    stay = (1 - _above(q) - pi.cumsum(-1) * inverse).clamp(min=0)
    return _Ordered(order, pi, q, inverse, torch.where(outside, 0.0, stay))


def _step(chain: _Ordered, p: Tensor) -> Tensor:
    """The law after one more proposal, in the order of w."""
    return chain.q * p.cumsum(-1) + chain.pi * _above(p * chain.inverse) + p * chain.stay


def _above(x: Tensor) -> Tensor:
    """Sums over the entries behind each one: (..., N)."""
    return x.flip(-1).cumsum(-1).flip(-1) - x


def total_variation(log_target: Tensor, log_q: Tensor, start: Tensor, steps: int) -> Tensor:
    """Total variation ½ Σ_j |p_t(j) − π(j)| of the chain to its target, t = 0..steps.

    Args:
        log_target: (..., N) log π up to a constant; −∞ outside D.
        log_q: (..., N) log of the normalised proposal; −∞ only outside D.
        start: (..., N) probabilities of the first state.
        steps: proposals.

    Returns:
        (steps + 1, ...) float64.
    """
    chain = _ordered(log_target, log_q)
    p = start.double().gather(-1, chain.order)
    distances = [(p - chain.pi).abs().sum(-1) / 2]
    for _ in range(steps):
        p = _step(chain, p)
        distances.append((p - chain.pi).abs().sum(-1) / 2)
    return torch.stack(distances)


def laws(log_target: Tensor, log_q: Tensor, start: Tensor, budgets: Sequence[int]) -> Iterator[Tensor]:
    """The law p_R of the state after R proposals, for each R of `budgets` in turn: (..., N) float64 at a time.

    Args:
        log_target, log_q, start: as in `total_variation`.
        budgets: ascending counts of proposals, none negative.

    Raises:
        ValueError: for budgets that are not ascending.
    """
    if any(a >= b for a, b in zip((-1, *budgets), budgets)):
        raise ValueError(f"budgets={list(budgets)}: expected ascending counts of proposals, 0 or more; sort them")
    chain = _ordered(log_target, log_q)
    p = start.double().gather(-1, chain.order)
    done = 0
    for budget in budgets:
        for _ in range(budget - done):
            p = _step(chain, p)
        done = budget
        yield torch.empty_like(p).scatter_(-1, chain.order, p)


def acceptance_rate(log_target: Tensor, log_q: Tensor) -> Tensor:
    """Σ_c π(c) Σ_j q(j) min{1, w_j/w_c}, the share of proposals accepted at stationarity: (...,).

    In the order of w it is Σ_c π(c) Σ_{w_j > w_c} q(j) + q(c) Σ_{w_j ≤ w_c} π(j). A proposal of the state itself counts
    as accepted. A high rate is no sign of fast mixing: a proposal that never finds the heavy rows has one.
    """
    chain = _ordered(log_target, log_q)
    return (chain.pi * _above(chain.q) + chain.q * chain.pi.cumsum(-1)).sum(-1)


def effective_sample_size(log_target: Tensor, log_q: Tensor) -> Tensor:
    """1 / E_q[(π/q)²] of draws from q as an importance sample, per draw: (...,)."""
    log_pi = log_target.double().log_softmax(-1)
    return torch.where(log_pi == -torch.inf, 0.0, (2 * log_pi - log_q.double()).exp()).sum(-1).reciprocal()


def supremum(log_target: Tensor, log_q: Tensor) -> Tensor:
    """M = sup_j π(j)/q(j): TV after t steps is at most (1 − 1/M)^t (Mengersen & Tweedie 1996): (...,)."""
    log_pi = log_target.double().log_softmax(-1)
    return torch.where(log_pi == -torch.inf, -torch.inf, log_pi - log_q.double()).amax(-1).exp()
