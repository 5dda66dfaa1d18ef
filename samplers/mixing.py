"""The exact law of an independence Metropolis–Hastings chain over a finite set, without its transition matrix.

Proposals j ~ q, target π, w = π/q. One step takes the law p of the state to

    p'(j) = Σ_c p(c) q(j) min{1, w_j/w_c} + p(j) r(j)
          = q(j) Σ_{w_c ≤ w_j} p(c) + π(j) Σ_{w_c > w_j} p(c)/w_c + p(j) r(j)
    r(j)  = 1 − Σ_{w_k > w_j} q(k) − Σ_{w_k ≤ w_j} π(k) / w_j                           (the probability to stay at j)

so that in the order of w a step is two cumulative sums: O(N) a step after one sort (Liu 1996 has the spectrum, on which
the same order rests; Smith & Tierney 1996 the n-step probabilities).
"""

from __future__ import annotations

import torch
from torch import Tensor


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
    log_pi = log_target.double().log_softmax(-1)
    log_w = torch.where(log_pi == -torch.inf, -torch.inf, log_pi - log_q.double())
    log_w, order = log_w.sort(-1)
    pi = log_pi.exp().gather(-1, order)
    q = torch.where(log_w == -torch.inf, 0.0, log_q.double().exp().gather(-1, order))
    p = start.double().gather(-1, order)
    inverse = torch.where(log_w == -torch.inf, 0.0, (-log_w).exp())  # 1/w; a state outside D is always left
    stay = (1 - _above(q) - pi.cumsum(-1) * inverse).clamp(min=0)
    stay = torch.where(log_w == -torch.inf, 0.0, stay)
    distances = [(p - pi).abs().sum(-1) / 2]
    for _ in range(steps):
        p = q * p.cumsum(-1) + pi * _above(p * inverse) + p * stay
        distances.append((p - pi).abs().sum(-1) / 2)
    return torch.stack(distances)


def _above(x: Tensor) -> Tensor:
    """Sums over the entries behind each one: (..., N)."""
    return x.flip(-1).cumsum(-1).flip(-1) - x


def effective_sample_size(log_target: Tensor, log_q: Tensor) -> Tensor:
    """1 / E_q[(π/q)²] of draws from q as an importance sample, per draw: (...,)."""
    log_pi = log_target.double().log_softmax(-1)
    return torch.where(log_pi == -torch.inf, 0.0, (2 * log_pi - log_q.double()).exp()).sum(-1).reciprocal()


def supremum(log_target: Tensor, log_q: Tensor) -> Tensor:
    """M = sup_j π(j)/q(j): TV after t steps is at most (1 − 1/M)^t (Mengersen & Tweedie 1996): (...,)."""
    log_pi = log_target.double().log_softmax(-1)
    return torch.where(log_pi == -torch.inf, -torch.inf, log_pi - log_q.double()).amax(-1).exp()
