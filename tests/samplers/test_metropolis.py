"""The chain's law by enumeration: the transition matrix is built from the moves of the scan, and densities."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from scipy import stats

from negbank import Exclusions, Snapshot
from negbank.proposals import Anchors, Cells, HeadTail, Mixture, Nearest, StaleSoftmax, Uniform
from negbank.samplers.metropolis import NO_STATE, accept, acceptance, scan, scan_reference
from negbank.samplers.mixing import total_variation

N, BETA = 250, 14.28


def mixture(snapshot, *, exclude):
    return Mixture((Uniform(snapshot, exclude=exclude), Nearest(snapshot, 10, 0.05, exclude=exclude)), (0.4, 0.6))


PROPOSALS = {
    "in batch or uniform": Uniform,
    "nearest": partial(Nearest, k=30, temperature=1 / BETA, floor=0.3),
    "nearest, sharp": partial(Nearest, k=5, temperature=0.02, floor=0.05),
    "cells": Cells,
    "head and tail": partial(HeadTail, k=30),
    "stale softmax": StaleSoftmax,
    "mixture": mixture,
}


def setting(clustered, proposal, exclude=None, factory="exact"):
    """Fresh scores, stale bank: log-target (N, N) and log-density (N, N) of every anchor."""
    fresh = clustered(N, spread=0.6).double()
    stale = fresh + 0.1 * torch.randn(fresh.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    snapshot = Snapshot.build(stale, factory=factory, target_recall=0.5)
    rows = torch.arange(N)
    log_q = proposal(snapshot, exclude=exclude)(Anchors(rows, snapshot.vectors)).log_prob(rows.expand(N, N))
    log_target = torch.where(log_q > -torch.inf, BETA * fresh @ fresh.T, -torch.inf)
    return log_target, log_q


def measured(proposed, current, run=scan):
    """Probability over u that the chain that is *run* moves from w(c) to w(j), for every pair, by bisection of log u.

    One chain a pair, of two candidates: it is in column 0 and is offered column 1.
    """
    pairs = torch.stack((current.flatten(), proposed.flatten()), 1)[None]
    chains = pairs.shape[1]
    start, offer, kernel = (torch.full(shape, value) for shape, value in (((chains,), 0), ((chains, 1), 1), ((1,), 0)))
    low, high = torch.full((chains,), -700.0, dtype=torch.float64), torch.zeros(chains, dtype=torch.float64)
    for _ in range(64):
        middle = (low + high) / 2
        moves = run(pairs, offer, kernel, middle[:, None], start).state == 1
        low, high = torch.where(moves, middle, low), torch.where(moves, high, middle)
    return torch.where(low == -700.0, 0.0, low.exp()).view(proposed.shape)


def transition(log_weight, q):
    """P[c, j] = q(j) a(c → j) off the diagonal, the rest on it, from the scan's own moves for every pair at once."""
    proposed, current = log_weight[None, :].expand(N, N), log_weight[:, None].expand(N, N)
    matrix = q * measured(proposed, current)
    matrix = matrix.fill_diagonal_(0.0)
    return matrix + torch.diag(1 - matrix.sum(1))


@pytest.mark.parametrize("run", [scan, scan_reference])
def test_one_accept_rule_is_run_by_the_scans_and_by_the_correction(run):
    g = torch.Generator().manual_seed(0)
    proposed, current = 3 * torch.randn(2, 500, generator=g, dtype=torch.float64)
    proposed[::17], current[::13] = -torch.inf, -torch.inf
    probability = acceptance(proposed, current)
    torch.testing.assert_close(measured(proposed, current, run), probability, atol=1e-14, rtol=1e-12)
    for shift, expected in ((1 - 1e-9, probability > 0), (1 + 1e-9, probability == 1)):
        u = (probability * shift).clamp(max=1 - 1e-12)
        assert torch.equal(accept(proposed, current, u), expected)


@pytest.mark.parametrize("proposal", PROPOSALS)
@pytest.mark.parametrize("factory", ["exact", "IVF12,Flat"])
@pytest.mark.parametrize("exclude", [None, Exclusions(N, groups=torch.arange(N) % 40)])
def test_every_kernel_and_their_alternation_leave_the_target_in_place(clustered, proposal, factory, exclude):
    log_target, log_q = setting(clustered, PROPOSALS[proposal], exclude, factory)
    pi = torch.softmax(log_target, 1)
    for anchor in (0, 17, 101):
        log_weight = torch.where(log_q[anchor] > -torch.inf, log_target[anchor] - log_q[anchor], -torch.inf)
        index_step = transition(log_weight, log_q[anchor].exp())
        uniform_q = (pi[anchor] > 0).double() / (pi[anchor] > 0).sum()
        uniform_step = transition(log_target[anchor], uniform_q)
        for matrix in (index_step, uniform_step, uniform_step @ index_step):
            assert (pi[anchor] @ matrix - pi[anchor]).abs().sum() < 1e-10


def test_dropping_the_density_ratio_would_be_seen(clustered):
    log_target, log_q = setting(clustered, PROPOSALS["nearest"])
    pi = torch.softmax(log_target[0], 0)
    wrong = transition(log_target[0], log_q[0].exp())
    assert (pi @ wrong - pi).abs().sum() > 0.05


def corrected(inner, log_weight):
    """The second stage of delayed acceptance, for every pair: log_weight = log π / π̃."""
    alpha = acceptance(log_weight[None, :].expand(N, N), log_weight[:, None].expand(N, N))  # which weighs the two ends
    matrix = (inner * alpha).fill_diagonal_(0.0)
    return matrix + torch.diag(1 - matrix.sum(1))


@pytest.mark.parametrize("proposal", PROPOSALS)
def test_delayed_acceptance_has_the_fresh_target_where_bank_scores_have_not(clustered, proposal):
    """A visit: steps on the bank's scores, in one order of kernels or the other, and one correction by fresh ones."""
    log_target, log_q = setting(clustered, PROPOSALS[proposal])
    bank = clustered(N, spread=0.6).double()
    bank = bank + 0.1 * torch.randn(bank.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    bank = torch.nn.functional.normalize(bank, dim=1)
    log_stale = torch.where(log_q > -torch.inf, BETA * bank @ bank.T, -torch.inf)
    for anchor in (0, 17, 101):
        pi, log_pi, log_pi_stale = torch.softmax(log_target[anchor], 0), log_target[anchor], log_stale[anchor]
        log_weight = torch.where(log_q[anchor] > -torch.inf, log_pi_stale - log_q[anchor], -torch.inf)
        index_step = transition(log_weight, log_q[anchor].exp())
        uniform_step = transition(log_pi_stale, (pi > 0).double() / (pi > 0).sum())
        inner = (uniform_step @ index_step @ index_step + index_step @ index_step @ uniform_step) / 2
        visit = corrected(inner, torch.where(pi > 0, log_pi - log_pi_stale, -torch.inf))
        assert (pi @ visit - pi).abs().sum() < 1e-10
        assert (pi @ inner - pi).abs().sum() > 0.02  # bank scores alone


@pytest.mark.parametrize("batch", [0, 15])
def test_a_pool_and_the_batch_are_one_kernel_with_the_mixture_density(clustered, batch):
    """Proposals from M q̄ + (B − 1) / (N − 1), which may be the anchor's own row: never entered."""
    log_target, log_q = setting(clustered, PROPOSALS["nearest"])
    members, draws = torch.arange(0, 160, 10), 24
    pooled = log_q[members].exp().mean(0)
    for anchor in (0, 70):
        uniform = (torch.arange(N) != anchor).double() / (N - 1)
        mixed = (draws * pooled + batch * uniform) / (draws + batch)
        log_weight = torch.where(log_target[anchor] > -torch.inf, log_target[anchor] - mixed.log(), -torch.inf)
        pi, matrix = torch.softmax(log_target[anchor], 0), transition(log_weight, mixed)
        assert (pi @ matrix - pi).abs().sum() < 1e-10


@pytest.mark.parametrize("proposal", PROPOSALS)
def test_a_fresh_start_is_a_first_proposal_and_comes_to_the_target_at_the_rate_that_mixing_says(clustered, proposal):
    log_target, log_q = setting(clustered, PROPOSALS[proposal])
    law, pi = log_q[5].exp(), torch.softmax(log_target[5], 0)
    matrix = transition(torch.where(pi > 0, log_target[5] - log_q[5], -torch.inf), log_q[5].exp())
    said = total_variation(log_target[5], log_q[5], law, 20)
    for step in range(21):
        assert abs(float((law - pi).abs().sum() / 2 - said[step])) < 1e-10
        law = law @ matrix
    assert said[20] < said[0]


def random_scan(seed, dtype=torch.float64, kinds=2, chains=64, candidates=40, steps=50):
    g = torch.Generator().manual_seed(seed)
    weights = torch.randn(kinds, chains, candidates, generator=g, dtype=dtype) * 2
    weights[torch.rand(weights.shape, generator=g) < 0.1] = -torch.inf
    proposals = torch.randint(-1, candidates, (chains, steps), generator=g)
    kernels = torch.randint(kinds, (steps,), generator=g)
    log_u = torch.rand(chains, steps, generator=g, dtype=dtype).log()
    start = torch.randint(-1, candidates, (chains,), generator=g)
    return weights, proposals, kernels, log_u, start


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("burn_in", [0, 1, 25, 49])
def test_the_compiled_scan_is_the_plain_loop_bit_for_bit(dtype, burn_in):
    arguments = random_scan(burn_in, dtype)
    for fast, plain in zip(scan(*arguments, burn_in=burn_in), scan_reference(*arguments, burn_in=burn_in)):
        assert torch.equal(fast, plain)


def test_scan_against_a_chain_walked_by_hand():
    """Literal Metropolis–Hastings over Python floats, one chain at a time."""
    weights, proposals, kernels, log_u, start = random_scan(5)
    done = scan(weights, proposals, kernels, log_u, start, burn_in=10)
    for a in range(len(start)):
        state, counts, accepted = int(start[a]), [0] * weights.shape[2], 0
        for r in range(proposals.shape[1]):
            j, w = int(proposals[a, r]), weights[kernels[r], a].tolist()
            if j == NO_STATE:
                continue
            if state == NO_STATE:
                state = j if w[j] > float("-inf") else state
            elif w[j] > float("-inf") and float(log_u[a, r]) < w[j] - w[state]:
                state, accepted = j, accepted + 1
            if r >= 10 and state != NO_STATE:
                counts[state] += 1
        if sum(counts) == 0 and state != NO_STATE:
            counts[state] = 1
        assert state == int(done.state[a])
        assert counts == done.counts[a].tolist()
        assert accepted == int(done.accepted[a].sum())


def test_visits_follow_the_target():
    """Long chains over few states: occupancy against π by chi-square, thinned to nearly independent visits."""
    g = torch.Generator().manual_seed(0)
    scores, log_q = torch.randn(8, generator=g), torch.randn(8, generator=g).log_softmax(0)
    chains, steps = 4000, 60
    w = (scores - log_q).expand(1, chains, 8)
    proposals = torch.multinomial(log_q.exp(), chains * steps, replacement=True, generator=g).view(chains, steps)
    log_u = torch.rand(chains, steps, generator=g).log()
    start = torch.full((chains,), NO_STATE)
    done = scan(w, proposals, torch.zeros(steps, dtype=torch.int64), log_u, start, burn_in=steps - 1)
    seen = torch.bincount(done.state, minlength=8)
    assert torch.equal(done.counts.sum(0), seen.int())
    expected = torch.softmax(scores.double(), 0) * chains
    assert stats.chisquare(seen.numpy(), expected.numpy()).pvalue > 1e-3


def test_acceptance_at_the_edges():
    inf = torch.inf
    got = acceptance(torch.tensor([0.0, -inf, 1.0, -inf, -1.0]), torch.tensor([-inf, 0.0, 0.0, -inf, 0.0]))
    torch.testing.assert_close(got, torch.tensor([1.0, 0.0, 1.0, 0.0, 0.36787944]))


def test_a_burn_in_that_keeps_nothing_is_refused():
    with pytest.raises(ValueError, match="burn_in=50"):
        scan(*random_scan(0), burn_in=50)
