"""The recursion against explicit transition matrices, built from the chain's own accept step."""

from __future__ import annotations

import pytest
import torch

from negbank.samplers.metropolis import acceptance
from negbank.samplers.mixing import acceptance_rate, effective_sample_size, laws, supremum, total_variation

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


def moves(log_target, log_q):
    """Probabilities (N, N) to propose the column's row and accept it, in the row's state; the diagonal too."""
    w = (log_target - log_q).nan_to_num(-torch.inf)
    return log_q.exp() * acceptance(w.expand(N, N), w[:, None].expand(N, N))


def transitions(log_target, log_q):
    matrix = moves(log_target, log_q).fill_diagonal_(0.0)
    return matrix + torch.diag(1 - matrix.sum(1))


def test_total_variation_is_that_of_the_matrix_powers():
    log_target, log_q, start = cases()
    got = total_variation(log_target, log_q, start, 15)
    for i in range(5):
        pi, matrix = log_target[i].softmax(0), transitions(log_target[i], log_q[i])
        law = start[i]
        for t in range(16):
            assert abs(float(got[t, i]) - float((law - pi).abs().sum() / 2)) < 1e-13
            law = law @ matrix


def test_laws_are_the_matrix_powers_at_the_budgets_asked_for():
    log_target, log_q, start = cases()
    budgets = [0, 1, 2, 7, 15]
    got = list(laws(log_target, log_q, start, budgets))
    distances = total_variation(log_target, log_q, start, 15)
    for budget, law in zip(budgets, got, strict=True):
        for i in range(5):
            power = torch.linalg.matrix_power(transitions(log_target[i], log_q[i]), budget)
            assert (law[i] - start[i] @ power).abs().max() < 1e-13
        assert torch.allclose((law - log_target.softmax(-1)).abs().sum(-1) / 2, distances[budget], atol=1e-15)
    assert float(distances[1:].min()) < 0.5 < float(distances[1:].max())  # the cases tell one budget from another


def test_a_law_is_computed_when_it_is_asked_for():
    log_target, log_q, start = cases()
    first = next(laws(log_target, log_q, start, [1, 10**12]))
    assert torch.equal(first, next(laws(log_target, log_q, start, [1])))


@pytest.mark.parametrize("budgets", [[2, 1], [1, 1], [-1, 2]])
def test_budgets_that_do_not_ascend_are_refused(budgets):
    with pytest.raises(ValueError, match="ascending"):
        next(laws(*cases(), budgets))


def test_the_acceptance_rate_is_the_double_sum():
    log_target, log_q, _ = cases()
    rates = acceptance_rate(log_target, log_q)
    for i in range(5):
        assert abs(float(rates[i]) - float(log_target[i].softmax(0) @ moves(log_target[i], log_q[i]).sum(1))) < 1e-13
    assert abs(float(rates[1]) - 1) < 1e-13  # q = π
    assert float(rates[0]) < 0.9


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
