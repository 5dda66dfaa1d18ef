"""What a visit with a pool leaves of the target, enumerated over all batches, draws and orders."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch

from negbank import Exclusions, Snapshot
from negbank.proposals import Anchors, Nearest, Pooled
from negbank.samplers.metropolis import acceptance
from negbank.samplers.negatives.contract import Ticket
from negbank.samplers.negatives.index_draws import Drawn
from negbank.samplers.negatives.visit import Columns, Kernels

N, T, DRAWS = 9, 0.4, 8
EVERY = torch.arange(N)


def move(row, log_weights):
    """The kernel (N, N) of a proposed row, by log weights (N,)."""
    alpha = acceptance(log_weights[row].expand(N), log_weights)
    kernel = torch.diag(1 - alpha)
    kernel[:, row] += alpha
    return kernel


def visit(z, batch, *, in_batch):
    """The kernel (N, N) of row 0's visit in a batch that holds it: a mean over draws and over orders."""
    rows = torch.tensor([0, *batch])
    pooled = Pooled(Nearest(Snapshot.build(z, factory="exact"), k=3, temperature=T, floor=0.3), stratified=False)
    distribution = pooled(Anchors(rows, z[rows]))
    kernels = Kernels(N, 1, T, 0.5, in_batch=in_batch, all_views=False, reversible=False, exclude=Exclusions(N))
    drawn = Drawn(torch.zeros(1, DRAWS, dtype=torch.int64), distribution)
    columns, ticket = Columns(EVERY), Ticket(0, rows, rows[:0])
    log_weights = kernels._log_weights(z[rows].double() @ z.T.double(), ticket, drawn, columns)[0, 0]
    q = distribution.log_prob(EVERY).exp()
    draw = sum(q[j] * move(j, log_weights) for j in range(N))
    if not in_batch:
        return torch.linalg.matrix_power(draw, DRAWS)
    proposed = {j: move(j, log_weights) for j in batch}

    @functools.cache
    def in_any_order(draws, left):
        total = draws + len(left)
        if not total:
            return torch.eye(N, dtype=torch.float64)
        kernel = draws / total * draw @ in_any_order(draws - 1, left) if draws else 0
        return kernel + sum(proposed[j] @ in_any_order(draws, left - {j}) for j in left) / total

    return in_any_order(DRAWS, frozenset(batch))


def stationary(z, size, *, in_batch):
    """Total variation to π of the law that visits in uniform batches of `size` rows leave in place."""
    batches = list(itertools.combinations(range(1, N), size - 1))
    kernel = sum(visit(z, batch, in_batch=in_batch) for batch in batches) / len(batches)
    pi = (z[0].double() @ z.T.double() / T).index_fill(0, torch.tensor([0]), -torch.inf).softmax(0)
    law = torch.linalg.matrix_power(kernel, 4096)[1]
    return float((law - pi).abs().sum() / 2)


@pytest.fixture
def rows(clustered):
    return clustered(N, dim=3, spread=1.0)


@pytest.mark.parametrize("size", [2, 3])
def test_a_pool_alone_keeps_the_target_whatever_the_batch(rows, size):
    assert stationary(rows, size, in_batch=False) < 1e-10


def test_a_pool_that_knows_the_batch_moves_the_target_in_the_smallest_batches(rows):
    """q̄ is the mean over the batch's own rows, which are proposed with it: of order 1/B, as docs/emc2.md says."""
    found = [stationary(rows, size, in_batch=True) for size in (2, 3, 5)]
    assert 0.05 > found[0] > found[1] > found[2] > 1e-5
