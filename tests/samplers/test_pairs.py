"""Two-way contrast, one direction at a time: anchors of one encoder, bank, index and negatives of another."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from negbank import Snapshot
from negbank.proposals import Nearest
from samplers.negatives import Emc2, EncodedBatch, Hardest, Importance, NegativeCache

N, B, D, TEMPERATURE = 60, 8, 8, 0.3
ROWS = torch.arange(B) * 7
NEAREST = partial(Nearest, k=10, temperature=TEMPERATURE, floor=0.3)
MAKE = {
    "emc2": lambda g: Emc2(
        N, temperature=TEMPERATURE, views=1, proposals="index", proposal=NEAREST, draws=20_000, burn_in=0.05,
        query="fresh", start="fresh", generator=g,
    ),
    "logQ, own draws": lambda g: Importance(
        N, temperature=TEMPERATURE, proposal=NEAREST, draws=20_000, pool=False, batch=False, positive=False,
        query="fresh", generator=g,
    ),
    "logQ, pool and batch": lambda g: Importance(
        N, temperature=TEMPERATURE, proposal=NEAREST, draws=80_000, positive=False, query="fresh", generator=g
    ),
    "negative cache": lambda g: NegativeCache(
        N, temperature=TEMPERATURE, draws=20_000, search="index", positive=False, query="fresh", generator=g
    ),
    "all nearest": lambda g: Hardest(N, temperature=TEMPERATURE, k=N - 1, positive=False, query="fresh", generator=g),
}  # fmt: skip


@pytest.mark.parametrize("name", MAKE)
def test_weights_are_the_softmax_over_the_other_side(clustered, name):
    left, right = clustered(N, dim=D, spread=0.6), clustered(N, dim=D, spread=0.6, seed=1)
    made = MAKE[name](torch.Generator().manual_seed(0))
    made.update(Snapshot.build(right, factory="exact"))
    drawn = made.draw(ROWS, left[ROWS])
    batch = EncodedBatch.from_pairs(ROWS, left[ROWS], right[ROWS], drawn, right[drawn])
    weights = made(batch)[0].weights
    got = torch.zeros(B, N).scatter_add_(1, batch.candidate_rows.expand(B, -1), weights)
    pi = (left @ right.T / TEMPERATURE).fill_diagonal_(-torch.inf).softmax(1)[ROWS]
    assert float((got - pi).abs().sum(1).max() / 2) < 0.05
    own_side = (left @ left.T / TEMPERATURE).fill_diagonal_(-torch.inf).softmax(1)[ROWS]
    assert float((pi - own_side).abs().sum(1).min() / 2) > 0.2


def test_the_cache_of_a_direction_holds_the_other_side(clustered):
    left, right = clustered(N, dim=D), clustered(N, dim=D, seed=1)
    made = NegativeCache(N, temperature=TEMPERATURE, query="fresh", generator=torch.Generator().manual_seed(0))
    drawn = made.draw(ROWS, left[ROWS])
    made(EncodedBatch.from_pairs(ROWS, left[ROWS], right[ROWS], drawn, right[drawn]))
    torch.testing.assert_close(made.cache.vectors[ROWS], right[ROWS])
    torch.testing.assert_close(made.cache.vectors[drawn], right[drawn])
