"""Every draw is a function of (counter, step): no sampler keeps the state of a generator, and none is drawn from."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from negbank import Snapshot
from negbank.counter import Counter
from negbank.proposals import Nearest
from negbank.samplers import batches
from negbank.samplers.negatives import Emc2, EncodedBatch, Hardest, Importance, Mined, NegativeCache

N, D, T = 60, 8, 0.3
NEAREST = partial(Nearest, k=8, temperature=T, floor=0.3)
MAKE = {
    "hardest": partial(Hardest, k=6, draws=2),
    "mined": partial(Mined, draws=2, range_max=6, pick="random"),
    "importance": partial(Importance, proposal=NEAREST, draws=8),
    "importance, own draws": partial(Importance, proposal=NEAREST, draws=4, pool=False),
    "cache": partial(NegativeCache, draws=2, refresh=0.1),
    "cache, index": partial(NegativeCache, draws=2, search="index"),
    "emc2": partial(Emc2, proposal=NEAREST),
    "emc2, in batch": partial(Emc2, proposals="in_batch"),
    "emc2, pool": partial(Emc2, proposal=NEAREST, pool=True, draws=8),
    "emc2, bank": partial(Emc2, proposal=NEAREST, score="bank"),
    "emc2, delayed": partial(Emc2, proposal=NEAREST, score="delayed", draws=8),
}
PLANS = {
    "uniform": batches.UniformBatches,
    "knn": partial(batches.Knn, neighbors=5),
    "prosampler": partial(batches.ProSampler, candidates=8, neighbors=5),
    "spectral": partial(batches.Spectral, temperature=T, group=3, restarts=2),
    "spectral, global": partial(batches.Spectral, temperature=T, scope="global"),
    "ordered": partial(batches.Ordered, temperature=T, pool=4, keep=2),
    "drawn": partial(batches.Drawn, proposal=NEAREST),
}
every = pytest.mark.parametrize("name", MAKE)
planned = pytest.mark.parametrize("name", PLANS)


@pytest.fixture
def data(clustered):
    z = clustered(N, dim=D, spread=0.6)
    return z, Snapshot.build(z + 0.1 * clustered(N, dim=D, seed=1), factory="exact")


@pytest.fixture(autouse=True)
def _global_state_is_left_alone():
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state())


def sampler(name, snapshot, seed=0):
    made = MAKE[name](N, temperature=T, counter=Counter.of(seed))
    made.update(snapshot)
    return made


def visit(made, z, step):
    """Drawn rows and weights of a visit at a step, whose rows are those of the step."""
    rows = torch.randperm(N, generator=torch.Generator().manual_seed(step))[:12]
    ticket = made.draw(rows, step=step)
    batch = EncodedBatch.from_views(rows, torch.cat((z[rows], z[rows], z[ticket.further])), ticket.further)
    negatives, _ = made(batch, ticket)
    negatives.commit()
    return ticket.further, negatives.weights


def alike(one, other):
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(one, other))


@every
def test_a_step_drawn_again_or_in_another_order_is_the_same(name, data):
    z, snapshot = data
    made = sampler(name, snapshot)
    for step in range(3):
        visit(made, z, step)
    state = made.state_dict()
    third = visit(made, z, 3)
    for first in ((), (4, 7)):  # with other steps before it, or none
        made.load_state_dict(state)
        for step in first:
            made.draw(torch.arange(12), step=step)  # a draw alone changes nothing
        assert alike(visit(made, z, 3), third)
    made.load_state_dict(state)
    rows = torch.randperm(N, generator=torch.Generator().manual_seed(3))[:12]
    assert torch.equal(made.draw(rows, step=3).further, third[0])
    if name != "emc2, in batch":  # which draws nothing before the forward pass
        assert len({tuple(made.draw(rows, step=step).further.tolist()) for step in range(3, 8)}) > 1


@every
def test_another_sampler_with_its_state_goes_on_alike(name, data):
    z, snapshot = data
    first = sampler(name, snapshot)
    for step in range(4):
        visit(first, z, step)
    second = sampler(name, snapshot)
    second.load_state_dict(first.state_dict())
    assert "generator" not in first.state_dict()
    for step in range(4, 7):
        assert alike(visit(first, z, step), visit(second, z, step))


@every
def test_other_counters_are_other_draws(name, data):
    z, snapshot = data
    one, other = (sampler(name, snapshot, seed) for seed in (0, 1))
    assert not all(alike(visit(one, z, step), visit(other, z, step)) for step in range(3))


def test_draws_of_other_streams_are_independent():
    """Uniform draws of two samplers, at equal steps: they meet as often as chance has it."""
    one, other = (
        Importance(N, temperature=T, proposal=NEAREST, draws=1, pool=False, counter=Counter.of(5).at(side))
        for side in ("left", "right")
    )
    rows, same, again = torch.arange(30), 0, 0
    for step in range(400):
        left, right = (made.draw(rows, step=step).own.ids for made in (one, other))
        same += int((left == right).sum())
        again += int((left == one.draw(rows, step=step + 1).own.ids).sum())
    expected = 400 * 30 / (N - 1)
    assert abs(same - expected) < 4 * expected**0.5
    assert abs(again - expected) < 4 * expected**0.5


@planned
def test_plans_are_of_the_epoch_the_batches_handed_out_and_the_snapshot(name, data):
    _, snapshot = data

    def batches_of(seed=0, epoch=2, *, versions=()):
        made = PLANS[name](N, 12, counter=Counter.of(seed))
        made.update(snapshot)
        made.set_epoch(epoch)
        found = []
        for batch in made:
            found.append(batch)
            if len(found) in versions:
                made.update(Snapshot.build(snapshot.vectors, factory="exact", version=versions[len(found)]))
        return found

    assert batches_of() == batches_of()
    assert batches_of() != batches_of(seed=1)
    assert batches_of() != batches_of(epoch=3)
    if name != "uniform" and len(batches_of()) > 2:
        one, other = batches_of(versions={1: 1}), batches_of(versions={1: 2})
        assert one[0] == other[0]
        assert one != other
