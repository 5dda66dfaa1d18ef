from __future__ import annotations

from functools import partial

import pytest
import torch

from negbank import Exclusions, Snapshot
from negbank.counter import Counter
from negbank.proposals import Nearest, Uniform
from negbank.samplers.batches import UniformBatches
from negbank.samplers.negatives import EncodedBatch, Importance, InBatch

N, D, TEMPERATURE = 60, 8, 0.3
NEAREST = partial(Nearest, k=10, temperature=TEMPERATURE, floor=0.3)
SHAPES = {
    "own draws": {"pool": False, "batch": False, "draws": 12},
    "own draws and the batch": {"pool": False, "batch": True, "draws": 12},
    "pool": {"pool": True, "batch": False, "draws": 80},
    "pool and the batch": {"pool": True, "batch": True, "draws": 80},
    "own draws by fresh queries": {"pool": False, "batch": False, "draws": 12, "query": "fresh"},
}


@pytest.fixture
def data(clustered):
    z = clustered(N, dim=D, spread=0.6)
    noise = torch.randn(N, D, generator=torch.Generator().manual_seed(3))
    return z, Snapshot.build(z + 0.15 * noise, factory="exact")


def sampler(snapshot, **options):
    made = Importance(
        N,
        **{"temperature": TEMPERATURE, "proposal": NEAREST, **options},
    )
    made.update(snapshot)
    return made


def visit(made, z, rows, step=None):
    """A visit at a step, by default the one after the last visit's."""
    made.at = step = getattr(made, "at", -1) + 1 if step is None else step
    ticket = made.draw(rows, step=step, queries=z[rows] if made.fresh_queries else None)
    batch = encoded(z, ticket)
    negatives, info = made(batch, ticket)
    negatives.commit()
    return batch, negatives, info


def encoded(z, ticket):
    """The batch of a ticket, both views alike."""
    rows, further = ticket.rows, ticket.further
    return EncodedBatch.from_views(rows, torch.cat((z[rows], z[rows], z[further])), further)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_denominator_is_that_of_the_whole_data_set_on_average(data, shape):
    """Σw / (1 − Σw) · exp(βs⁺) is the sampler's Z_i without the positive: its mean is Σ_{j∈D_i} exp(βs_ij)."""
    z, snapshot = data
    made = sampler(snapshot, **SHAPES[shape])
    beta = 1 / TEMPERATURE
    exact = (z @ z.T * beta).exp().double().fill_diagonal_(0).sum(1)
    total, visits = torch.zeros(N, dtype=torch.float64), torch.zeros(N)
    batches = UniformBatches(N, 12, counter=Counter.of(1))
    for _ in range(700):
        for rows in map(torch.tensor, batches):
            batch, (_, weights, *_), _ = visit(made, z, rows)
            mass = weights.double().sum(1)
            positive = (beta * (batch.anchors * batch.positives).sum(1)).exp()
            total.index_add_(0, rows.repeat(2), mass / (1 - mass) * positive)
            visits.index_add_(0, rows.repeat(2), torch.ones(2 * len(rows)))
    ratio = total / visits / exact
    assert abs(float(ratio.mean()) - 1) < 0.02
    assert float((ratio - 1).abs().max()) < 0.1


@pytest.mark.parametrize("shape", SHAPES)
def test_many_draws_give_the_softmax_over_the_data_set(data, shape):
    z, snapshot = data
    options = {**SHAPES[shape], "draws": 16_000, "positive": False}
    rows = torch.arange(10)
    batch, (_, weights, *_), _ = visit(sampler(snapshot, **options), z, rows)
    columns = batch.candidate_rows.expand(len(weights), -1)
    got = torch.zeros(len(weights), N).scatter_add_(1, columns, weights)
    pi = (z @ z.T / TEMPERATURE).fill_diagonal_(-torch.inf).softmax(1)[rows.repeat(2)]
    assert float((got - pi).abs().sum(1).max() / 2) < 0.06


def test_the_batch_alone_has_simclrs_weights_among_its_negatives(data):
    """Uniform draws that all fall on the batch leave nothing to correct: the shares are those of InfoNCE."""
    z, snapshot = data
    rows = torch.arange(N)
    made = sampler(snapshot, proposal=Uniform, pool=False, draws=1, positive=False)
    batch, (_, weights, *_), _ = visit(made, z, rows)
    assert len(batch.drawn_rows) == 0
    simclr = InBatch(temperature=TEMPERATURE)(batch)[0].weights
    share = simclr / simclr.sum(1, keepdim=True)
    drawn_share = (weights - share).abs().sum(1) / 2
    assert float(drawn_share.mean()) < 0.05


def test_excluded_rows_weigh_nothing_and_weights_are_a_distribution(data):
    z, snapshot = data
    exclude = Exclusions(N, groups=torch.arange(N) % 15)
    for options in SHAPES.values():
        made = sampler(snapshot, proposal=partial(NEAREST, exclude=exclude), exclude=exclude, positive=False, **options)
        batch, (_, weights, *_), info = visit(made, z, torch.arange(20))
        same = (batch.rows[:, None] % 15 == batch.candidate_rows % 15).repeat(2, 1)
        assert weights[same].sum() == 0
        torch.testing.assert_close(weights.sum(1), torch.ones(40))
        assert 1 <= info["effective_candidates"] <= weights.shape[1]


def test_it_keeps_nothing_and_draws_by_the_step_alone(data):
    z, snapshot = data
    first, second = sampler(snapshot), sampler(snapshot)
    visit(first, z, torch.arange(20))
    expected = visit(first, z, torch.arange(10, 30))[1].weights
    assert first.state_dict() == {}
    assert torch.equal(visit(second, z, torch.arange(10, 30), step=1)[1].weights, expected)
    other = sampler(snapshot, counter=Counter.of(9))
    assert not torch.equal(visit(other, z, torch.arange(10, 30), step=1)[0].drawn_rows, expected)


def test_bad_input_is_named(data):
    _, snapshot = data
    with pytest.raises(ValueError, match="temperature=0"):
        sampler(snapshot, temperature=0)
    with pytest.raises(ValueError, match="draws=-1"):
        sampler(snapshot, draws=-1)
    made = sampler(snapshot)
    ticket = made.draw(torch.arange(4), step=0)
    with pytest.raises(ValueError, match="ticket: drawn for other rows"):
        made(EncodedBatch.from_views(torch.arange(5), torch.eye(10)), ticket)
