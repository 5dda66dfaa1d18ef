"""The recursion against explicit transition matrices, built from the chain's own accept step."""

from __future__ import annotations

import torch

from samplers.metropolis import acceptance
from samplers.mixing import effective_sample_size, supremum, total_variation

N = 40


def cases():
    """Random targets and proposals: with excluded rows, with ties in π/q, and with q = π."""
    g = torch.Generator().manual_seed(0)
    log_target = 3 * torch.randn(5, N, generator=g, dtype=torch.float64)
    log_q = torch.randn(5, N, generator=g, dtype=torch.float64)
    log_target[2], log_q[2] = log_target[2].round(), 0.0
    log_q[1] = log_target[1]
    log_target[:, ::7] = log_q[:, ::7] = -torch.inf
    start = torch.rand(5, N, generator=g, dtype=torch.float64)  # with mass outside D
    return log_target, log_q.log_softmax(-1), start / start.sum(-1, keepdim=True)


def test_total_variation_is_that_of_the_matrix_powers():
    log_target, log_q, start = cases()
    got = total_variation(log_target, log_q, start, 15)
    for i in range(5):
        pi, w = log_target[i].softmax(0), (log_target[i] - log_q[i]).nan_to_num(-torch.inf)
        matrix = log_q[i].exp() * acceptance(w.expand(N, N), w[:, None].expand(N, N))
        matrix = matrix.fill_diagonal_(0.0)
        matrix = matrix + torch.diag(1 - matrix.sum(1))
        law = start[i]
        for t in range(16):
            assert abs(float(got[t, i]) - float((law - pi).abs().sum() / 2)) < 1e-13
            law = law @ matrix


def test_the_rate_bound_holds_and_is_met_by_perfect_proposals():
    log_target, log_q, start = cases()
    got, bound = total_variation(log_target, log_q, start, 15), supremum(log_target, log_q)
    for t in range(16):
        assert (got[t] <= (1 - 1 / bound) ** t + 1e-12).all()
    assert abs(float(bound[1]) - 1) < 1e-12
    assert float(got[1, 1]) < 1e-12


def test_effective_sample_size_is_the_inverse_second_moment():
    log_target, log_q, _ = cases()
    for i, got in enumerate(effective_sample_size(log_target, log_q).tolist()):
        pi, q = log_target[i].softmax(0), log_q[i].exp()
        second = sum(float(pi[j]) ** 2 / float(q[j]) for j in range(N) if q[j] > 0)
        assert abs(got - 1 / second) < 1e-12
