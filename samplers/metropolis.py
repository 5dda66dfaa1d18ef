"""Metropolis–Hastings with independence proposals, in the log domain. Pure functions: state in, state out.

Target π(j) ∝ exp(β s_j) on D, kernel m proposes j ~ q_m whatever the current state c is. With w_m = β s − log q_m,

    accept with probability min{1, π(j) q_m(c) / (π(c) q_m(j))} = exp(min{0, w_m(j) − w_m(c)})       (Hastings 1970)
    that is, for u uniform in [0, 1), iff  log u < w_m(j) − w_m(c)                                     (`accepts`)

Each kernel leaves π in place, and so does any sequence of them that is fixed before the draws: in-batch uniform steps
(w = β s) and index steps may alternate in one scan. Rows outside D have w = −∞: never entered, always left.

Rate: with M = sup π/q the total variation to π after t steps is at most (1 − 1/M)^t (Mengersen & Tweedie 1996).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

from negbank.counter import Counter, fill

NO_STATE = -1
"""State of a chain that has not started, and a proposal that is to be skipped."""


class Scan(NamedTuple):
    """Where A chains over C candidates ended after R proposals.

    state (A,): column of the last state, `NO_STATE` where nothing was ever proposed.
    counts (A, C): how often each column was the state after burn-in; as weights, counts / their row sum. A chain whose
    kept steps were all skipped keeps its last state.
    proposed, accepted (A, M): per chain and kernel, on the CPU. A first state is taken, not accepted, and in neither.
    """

    state: Tensor
    counts: Tensor
    proposed: Tensor
    accepted: Tensor


@numba.njit(inline="always")
def accepts(log_u: Any, proposed: Any, current: Any) -> Any:
    """Whether a chain moves from c to j by log u, w(j) and w(c); never into w = −∞, always out of it."""
    return log_u < proposed - current


_rule: Any = accepts.py_func
"""`accepts` of whole tensors."""


def acceptance(proposed: Tensor, current: Tensor) -> Tensor:
    """The probability of `accepts` over u, exp(min{0, w(j) − w(c)}), elementwise."""
    ratio = (proposed - current).clamp(max=0).exp()
    return torch.where(proposed == -torch.inf, 0.0, ratio)


def accept(proposed: Tensor, current: Tensor, u: Tensor) -> Tensor:
    """`accepts` elementwise, by uniform draws u."""
    moves: Tensor = _rule(u.log(), proposed, current)
    return moves


def log_uniforms(steps: int, slots: Tensor, *, counter: Counter) -> Tensor:
    """log u of R steps of chains in slots (A,) of a place of the counter: (A, R) float32, laid out as `scan` reads.

    A chain's are of its slot alone. On the CPU, where `scan` runs: so they are the same whatever the device.
    """
    u = torch.empty(steps + steps % 2, len(slots))  # of an even number, and perhaps one that is not looked at
    fill(counter.seeds(slots).numpy().view(np.uint64), u.numpy())
    return u[:steps].log_().T


def scan(
    log_weights: Tensor, proposals: Tensor, kernels: Tensor, log_uniforms: Tensor, start: Tensor, *, burn_in: int = 0
) -> Scan:
    """Run A chains through R proposals each: accept iff log u < w(j) − w(c).

    Args:
        log_weights: (M, A, C) w_m = β s − log q_m of every kernel, chain and candidate column; the transposed view of a
            (M, C, A) tensor is read without a copy.
        proposals: (A, R) long columns; `NO_STATE` skips the step, which then keeps no state either.
        kernels: (R,) long, the kernel m of each step.
        log_uniforms: (A, R) logarithms of uniform draws, in the dtype of `log_weights`.
        start: (A,) long columns; a chain at `NO_STATE` takes its first proposal with w > −∞ as its state.
        burn_in: the first steps, whose states are not counted.

    Raises:
        ValueError: for a burn-in outside 0..R−1, which would keep no state.

    One compiled loop on the CPU. From another device what it reads is copied at once and the host waits once: a step at
    a time over there would be some twenty kernels a step, thousands a visit.
    """
    steps = proposals.shape[1]
    if not 0 <= burn_in < max(1, steps):
        raise ValueError(f"burn_in={burn_in}: expected 0..{steps - 1} of {steps} proposals, or no state is kept")
    device = log_weights.device
    if device.type != "cpu":
        # laid out there as the loop reads them, so that the host has nothing to turn round
        log_weights, proposals = log_weights.mT.contiguous().cpu().mT, proposals.T.contiguous().cpu().T
        log_uniforms, start, kernels = log_uniforms.cpu(), start.cpu(), kernels.cpu()
    kinds, chains, candidates = log_weights.shape
    current = log_weights.gather(2, start.clamp(min=0).expand(kinds, -1)[:, :, None])[:, :, 0]
    current = torch.where(start == NO_STATE, -torch.inf, current).contiguous()
    state, counts = start.to(torch.int32), torch.zeros(chains, candidates, dtype=torch.int32)
    proposed, accepted = torch.zeros(2, kinds, chains, dtype=torch.int32)
    _compiled(
        log_weights.mT.contiguous().numpy(),
        proposals.T.to(torch.int32).contiguous().numpy(),
        kernels.numpy(),
        log_uniforms.T.contiguous().numpy(),
        burn_in,
        current.numpy(),
        state.numpy(),
        counts.numpy(),
        proposed.numpy(),
        accepted.numpy(),
    )
    return Scan(state.to(device).long(), counts.to(device), proposed.T, accepted.T)


@numba.njit(cache=True, nogil=True)
def _compiled(
    weights: np.ndarray,  # (M, C, A)
    columns: np.ndarray,  # (R, A)
    kernels: np.ndarray,
    log_u: np.ndarray,  # (R, A)
    burn_in: int,
    current: np.ndarray,  # (M, A) weights of the states
    state: np.ndarray,
    counts: np.ndarray,
    proposed: np.ndarray,  # (M, A)
    accepted: np.ndarray,
) -> None:
    """Steps outside, chains inside: loops without a branch, which run on whole vectors of chains."""
    kinds, chains = current.shape
    offered = np.empty((kinds, chains), weights.dtype)
    moves, kept = np.empty(chains, np.int32), np.zeros(chains, np.bool_)
    for r in range(len(kernels)):
        m, j, u = kernels[r], columns[r], log_u[r]
        for k in range(kinds):
            for a in range(chains):
                offered[k, a] = weights[k, max(j[a], 0), a]
        w_j, w_c, tried, taken = offered[m], current[m], proposed[m], accepted[m]
        for a in range(chains):
            move = accepts(u[a], w_j[a], w_c[a]) & (j[a] >= 0)
            started = np.int32(state[a] >= 0)
            tried[a] += np.int32(j[a] >= 0) & started
            taken[a] += np.int32(move) & started
            state[a] = j[a] if move else state[a]
            moves[a] = np.int32(move)
        for k in range(kinds):
            new, old = offered[k], current[k]
            for a in range(chains):
                x, y = new[a], old[a]  # both are read, or the choice becomes a branch
                old[a] = x if moves[a] != 0 else y
        if r >= burn_in:
            for a in range(chains):
                if (j[a] >= 0) & (state[a] >= 0):
                    counts[a, np.uint64(state[a])] += 1
                    kept[a] = True
    for a in range(chains):
        if state[a] >= 0 and not kept[a]:
            counts[a, state[a]] = 1


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
        w_c = torch.where(started, log_weights[m, every, state.clamp(min=0)], -torch.inf)
        move = valid & _rule(log_uniforms[:, r], w_j, w_c)
        proposed[:, m] += (valid & started).int()
        accepted[:, m] += (move & started).int()
        state = torch.where(move, j, state)
        if r >= burn_in:
            counts[every, state.clamp(min=0)] += (valid & (state != NO_STATE)).int()
    counts[every, state.clamp(min=0)] += ((counts.sum(1) == 0) & (state != NO_STATE)).int()
    return Scan(state, counts, proposed, accepted)
