"""Metropolis–Hastings with independence proposals, in the log domain. Pure functions: state in, state out.

Target π(j) ∝ exp(β s_j) on D, kernel m proposes j ~ q_m whatever the current state c is. With w_m = β s − log q_m,

    accept with probability min{1, π(j) q_m(c) / (π(c) q_m(j))} = exp(min{0, w_m(j) − w_m(c)})       (Hastings 1970)

Each kernel leaves π in place, and so does any sequence of them that is fixed before the draws: in-batch uniform steps
(w = β s) and index steps may alternate in one scan. Rows outside D have w = −∞: never entered, always left.

Rate: with M = sup π/q the total variation to π after t steps is at most (1 − 1/M)^t (Mengersen & Tweedie 1996).
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

NO_STATE = -1
"""State of a chain that has not started, and a proposal that is to be skipped."""


class Scan(NamedTuple):
    """Where A chains over C candidates ended after R proposals.

    state (A,): column of the last state, `NO_STATE` where nothing was ever proposed.
    counts (A, C): how often each column was the state after burn-in; as weights, counts / their row sum. A chain whose
    kept steps were all skipped keeps its last state.
    proposed, accepted (A, M): per chain and kernel. A first state is taken, not accepted: it counts in neither.
    """

    state: Tensor
    counts: Tensor
    proposed: Tensor
    accepted: Tensor


def acceptance(log_weight_proposed: Tensor, log_weight_current: Tensor) -> Tensor:
    """Probability exp(min{0, w(j) − w(c)}) of moving from c to j, elementwise; 0 into w = −∞, 1 out of it."""
    ratio = (log_weight_proposed - log_weight_current).clamp(max=0).exp()
    return torch.where(log_weight_proposed == -torch.inf, 0.0, ratio)


def scan(
    log_weights: Tensor, proposals: Tensor, kernels: Tensor, log_uniforms: Tensor, start: Tensor, *, burn_in: int = 0
) -> Scan:
    """Run A chains through R proposals each: accept iff log u < w(j) − w(c).

    Args:
        log_weights: (M, A, C) w_m = β s − log q_m of every kernel, chain and candidate column.
        proposals: (A, R) long columns; `NO_STATE` skips the step, which then keeps no state either.
        kernels: (R,) long, the kernel m of each step.
        log_uniforms: (A, R) logarithms of uniform draws, in the dtype of `log_weights`.
        start: (A,) long columns; a chain at `NO_STATE` takes its first proposal with w > −∞ as its state.
        burn_in: the first steps, whose states are not counted.

    Raises:
        ValueError: for a burn-in outside 0..R−1, which would keep no state.

    On the CPU one compiled loop; elsewhere the same steps, vectorised over chains. The results are the same.
    """
    steps = proposals.shape[1]
    if not 0 <= burn_in < max(1, steps):
        raise ValueError(f"burn_in={burn_in}: expected 0..{steps - 1} of {steps} proposals, or no state is kept")
    if log_weights.device.type != "cpu":
        return scan_reference(log_weights, proposals, kernels, log_uniforms, start, burn_in=burn_in)
    kinds, chains, candidates = log_weights.shape
    state, counts = start.clone(), torch.zeros(chains, candidates, dtype=torch.int32)
    proposed, accepted = torch.zeros(2, chains, kinds, dtype=torch.int32)
    _compiled(
        log_weights.contiguous().numpy(),
        proposals.contiguous().numpy(),
        kernels.numpy(),
        log_uniforms.contiguous().numpy(),
        burn_in,
        state.numpy(),
        counts.numpy(),
        proposed.numpy(),
        accepted.numpy(),
    )
    return Scan(state, counts, proposed, accepted)


@numba.njit(cache=True, nogil=True)
def _compiled(
    w: np.ndarray,
    proposals: np.ndarray,
    kernels: np.ndarray,
    log_u: np.ndarray,
    burn_in: int,
    state: np.ndarray,
    counts: np.ndarray,
    proposed: np.ndarray,
    accepted: np.ndarray,
) -> None:
    for a in range(proposals.shape[0]):
        c, kept = state[a], 0
        for r in range(proposals.shape[1]):
            j = proposals[a, r]
            if j == NO_STATE:
                continue
            m = kernels[r]
            if c == NO_STATE:
                if w[m, a, j] > -np.inf:
                    c = j
            else:
                proposed[a, m] += 1
                if log_u[a, r] < w[m, a, j] - w[m, a, c]:
                    accepted[a, m] += 1
                    c = j
            if r >= burn_in and c != NO_STATE:
                counts[a, c] += 1
                kept += 1
        if kept == 0 and c != NO_STATE:
            counts[a, c] = 1
        state[a] = c


def scan_reference(
    log_weights: Tensor, proposals: Tensor, kernels: Tensor, log_uniforms: Tensor, start: Tensor, *, burn_in: int = 0
) -> Scan:
    """`scan` in plain torch, one step at a time over all chains: what the compiled loop is tested against."""
    kinds, chains, candidates = log_weights.shape
    every = torch.arange(chains, device=start.device)
    state, counts = start.clone(), torch.zeros(chains, candidates, dtype=torch.int32, device=start.device)
    proposed, accepted = torch.zeros(2, chains, kinds, dtype=torch.int32, device=start.device)
    for r, m in enumerate(kernels.tolist()):
        j = proposals[:, r]
        valid, started = j != NO_STATE, state != NO_STATE
        w_j = log_weights[m, every, j.clamp(min=0)]
        w_c = log_weights[m, every, state.clamp(min=0)]
        accept = valid & started & (log_uniforms[:, r] < w_j - w_c)
        proposed[:, m] += (valid & started).int()
        accepted[:, m] += accept.int()
        state = torch.where(accept | (valid & ~started & (w_j > -torch.inf)), j, state)
        if r >= burn_in:
            counts[every, state.clamp(min=0)] += (valid & (state != NO_STATE)).int()
    counts[every, state.clamp(min=0)] += ((counts.sum(1) == 0) & (state != NO_STATE)).int()
    return Scan(state, counts, proposed, accepted)
