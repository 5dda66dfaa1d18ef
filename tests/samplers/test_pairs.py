"""Two-way contrast, one direction at a time: anchors of one encoder, bank, index and negatives of another."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from negbank import Snapshot
from negbank.proposals import Nearest
from negbank.samplers.mixing import laws
from negbank.samplers.negatives import Emc2, EncodedBatch, Hardest, Importance, NegativeCache

N, B, D, TEMPERATURE = 60, 8, 8, 0.3
ROWS = torch.arange(B) * 7
NEAREST = partial(Nearest, k=10, temperature=TEMPERATURE, floor=0.3)
MAKE = {
    "emc2": lambda: Emc2(
        N, temperature=TEMPERATURE, views=1, proposals="index", proposal=NEAREST, draws=20_000, burn_in=0.05,
        query="fresh", start="fresh",
    ),
    "logQ, own draws": lambda: Importance(
        N, temperature=TEMPERATURE, proposal=NEAREST, draws=20_000, pool=False, batch=False, positive=False,
        query="fresh",
    ),
    "logQ, queries of the other bank": lambda: Importance(
        N, temperature=TEMPERATURE, proposal=NEAREST, draws=80_000, positive=False, query="bank"
    ),
    "emc2, pool, queries of the other bank": lambda: Emc2(
        N, temperature=TEMPERATURE, views=1, proposals="both", proposal=NEAREST, draws=20_000, pool=True, burn_in=0.05,
    ),
    "logQ, pool and batch": lambda: Importance(
        N, temperature=TEMPERATURE, proposal=NEAREST, draws=80_000, positive=False, query="fresh"
    ),
    "negative cache": lambda: NegativeCache(
        N, temperature=TEMPERATURE, draws=20_000, search="index", positive=False, query="fresh"
    ),
    "all nearest": lambda: Hardest(N, temperature=TEMPERATURE, k=N - 1, positive=False, query="fresh"),
}  # fmt: skip


@pytest.mark.parametrize("name", MAKE)
def test_weights_are_the_softmax_over_the_other_side(clustered, name):
    left, right = clustered(N, dim=D, spread=0.6), clustered(N, dim=D, spread=0.6, seed=1)
    made = MAKE[name]()
    made.update(Snapshot.build(right, factory="exact"))
    ticket = made.draw(ROWS, step=0, queries=left[ROWS])
    batch = EncodedBatch.from_pairs(ROWS, left[ROWS], right[ROWS], ticket.further, right[ticket.further])
    weights = made(batch, ticket)[0].weights
    got = torch.zeros(B, N).scatter_add_(1, batch.candidate_rows.expand(B, -1), weights)
    pi = (left @ right.T / TEMPERATURE).fill_diagonal_(-torch.inf).softmax(1)[ROWS]
    assert float((got - pi).abs().sum(1).max() / 2) < 0.05
    own_side = (left @ left.T / TEMPERATURE).fill_diagonal_(-torch.inf).softmax(1)[ROWS]
    assert float((pi - own_side).abs().sum(1).min() / 2) > 0.2


def other_side(clustered, rows):
    """Embeddings of both sides, and log π of every left anchor over the right side."""
    left, right = (clustered(rows, dim=D, spread=0.6, seed=seed).double() for seed in (0, 1))
    return left, right, (left @ right.T / TEMPERATURE).fill_diagonal_(-torch.inf).log_softmax(1)


def law_of_draws(made, left, right, rows):
    """log q (rows, rows) of a sampler's index draws, asked for with the rows of the left bank."""
    made.update(Snapshot.build(right.float(), factory="exact"))
    every = torch.arange(rows)
    drawn = made.draw(every, step=0, queries=left).own
    return getattr(drawn, "drawn", drawn).log_prob(every, rows).expand(rows, -1)


@pytest.mark.parametrize("pool", [False, True])
def test_the_estimated_denominator_is_unbiased_by_enumeration(clustered, pool):
    """Σ_j q(j) Ẑ_i(j) = Σ_{j∈D_i} exp(β s_ij) over the other side, one draw at a time; queries are the left bank's."""
    rows = 12
    left, right, _ = other_side(clustered, rows)
    made = Importance(
        rows, temperature=TEMPERATURE, proposal=partial(Nearest, k=3, temperature=TEMPERATURE, floor=0.3), draws=1,
        pool=pool, batch=False,
    )  # fmt: skip
    made.update(Snapshot.build(right.float(), factory="exact"))
    every = torch.arange(rows)
    positive = ((left * right).sum(1) / TEMPERATURE).exp()
    law = law_of_draws(made, left, right, rows).exp()
    own_side = law_of_draws(made, right, right, rows).exp()
    assert float((law - own_side).abs().sum(1).max()) > 0.2
    mean = torch.zeros(rows, dtype=torch.float64)
    for drawn in range(rows):
        ticket = made.draw(every, step=0, queries=left)
        ticket = ticket._replace(own=ticket.own._replace(ids=torch.full((1 if pool else rows, 1), drawn)))
        share = made(EncodedBatch.from_pairs(every, left, right), ticket)[0].weights.sum(1)  # Ẑ / (Ẑ + exp(β s⁺))
        mean += law[:, drawn] * positive * share / (1 - share)
    exact = (left @ right.T / TEMPERATURE).fill_diagonal_(-torch.inf).exp().sum(1)
    torch.testing.assert_close(mean, exact, rtol=1e-5, atol=0)


def test_the_softmax_over_the_other_side_is_stationary_by_enumeration(clustered):
    """The chain's law from π stays π, and from the anchor's nearest row it gets there; with it goes the gradient."""
    rows = 30
    left, right, log_pi = other_side(clustered, rows)
    made = Emc2(
        rows, temperature=TEMPERATURE, views=1, proposals="index", query="bank", draws=1,
        proposal=partial(Nearest, k=5, temperature=TEMPERATURE, floor=0.3),
    )  # fmt: skip
    log_q = law_of_draws(made, left, right, rows)
    pi = log_pi.exp()
    (stays,) = laws(log_pi, log_q, pi, [1])
    torch.testing.assert_close(stays, pi, atol=1e-12, rtol=0)
    (reached,) = laws(log_pi, log_q, nn.functional.one_hot(log_pi.argmax(1), rows).double(), [200])
    x = left.clone().requires_grad_()
    scores = x @ right.T / TEMPERATURE
    (exact,) = torch.autograd.grad(scores.fill_diagonal_(-torch.inf).logsumexp(1).sum(), x)
    torch.testing.assert_close(reached @ right / TEMPERATURE, exact, atol=1e-6, rtol=0)
    assert float((law_of_draws(made, right, right, rows).exp() - log_q.exp()).abs().sum(1).max()) > 0.2


def test_the_cache_of_a_direction_holds_the_other_side(clustered):
    left, right = clustered(N, dim=D), clustered(N, dim=D, seed=1)
    made = NegativeCache(N, temperature=TEMPERATURE, query="fresh")
    ticket = made.draw(ROWS, step=0, queries=left[ROWS])
    drawn = ticket.further
    made(EncodedBatch.from_pairs(ROWS, left[ROWS], right[ROWS], drawn, right[drawn]), ticket)[0].commit()
    torch.testing.assert_close(made.cache.vectors[ROWS], right[ROWS])
    torch.testing.assert_close(made.cache.vectors[drawn], right[drawn])
