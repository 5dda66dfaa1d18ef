from __future__ import annotations

from functools import partial

import pytest
import torch

from negbank import Snapshot
from negbank.proposals import Anchors, HeadTail, StaleSoftmax
from negbank.samplers.batches import Drawn, Knn
from negbank.samplers.negatives import EncodedBatch, Importance

N, D, B, GROUP, TEMPERATURE = 200, 8, 16, 4, 0.15
PROPOSALS = {
    "the stale softmax": partial(StaleSoftmax, temperature=TEMPERATURE, floor=0.2),
    "head and tail": partial(HeadTail, k=12, temperature=TEMPERATURE, floor=0.2, tail=0.5),
}


@pytest.fixture
def data(clustered):
    z = clustered(N, dim=D, spread=0.6)
    noise = torch.randn(N, D, generator=torch.Generator().manual_seed(3))
    return z, Snapshot.build(z + 0.1 * noise, factory="exact")


def drawn(snapshot=None, **options):
    options = {"proposal": PROPOSALS["the stale softmax"], "group": GROUP, **options}
    made = Drawn(N, B, **options)
    if snapshot is not None:
        made.update(snapshot)
    return made


@pytest.mark.parametrize("name", PROPOSALS)
def test_a_batch_weighed_by_what_was_expected_sums_to_the_whole_data_set(data, name):
    """Σ_r f(r) / n_i(r) on average against Σ_{j∈D_i} f(j), which the batch overstates where it is taken for uniform."""
    z, snapshot = data
    batches = drawn(snapshot, proposal=PROPOSALS[name])
    f = (z @ z.T / TEMPERATURE).exp().double().fill_diagonal_(0)
    total = {known: torch.zeros(2, N, dtype=torch.float64) for known in (True, False)}
    seen = torch.zeros(2, N, dtype=torch.float64)
    for _ in range(150):
        for rows in map(torch.tensor, batches):
            drew = (torch.arange(B) % GROUP > 0).long()
            seen.index_put_((drew, rows), torch.ones(B, dtype=torch.float64), accumulate=True)
            for known, n in ((True, batches.expected(rows, rows)), (False, torch.tensor((B - 1) / (N - 1)))):
                ratio = (f[rows][:, rows] / n).sum(1) / f[rows].sum(1)
                total[known].index_put_((drew, rows), ratio, accumulate=True)
    assert seen.min() > 15
    by_seed, by_draw = (total[True] / seen).mean(1).tolist()
    assert by_seed == pytest.approx(1, abs=0.06)
    assert by_draw == pytest.approx(1, abs=0.12)
    assert (total[False] / seen).mean(1).min() > 1.5


def test_an_epoch_has_distinct_seeds_and_distinct_rows_a_batch(data):
    _, snapshot = data
    batches = list(drawn(snapshot))
    assert len(batches) == N // B
    assert all(len(set(rows)) == B for rows in batches)
    seeds = [row for rows in batches for row in rows[::GROUP]]
    assert len(set(seeds)) == len(seeds)


def test_seeds_stay_distinct_where_a_refresh_comes_within_the_epoch(data):
    _, snapshot = data
    batches, stream = drawn(snapshot), []
    for rows in batches:
        stream.append(rows)
        if len(stream) in (3, 7):
            newer = Snapshot.build(snapshot.vectors.flip(1), factory="exact", version=len(stream))
            batches.update(newer)
    seeds = [row for rows in stream for row in rows[::GROUP]]
    assert len(stream) == N // B
    assert len(set(seeds)) == len(seeds)


def test_groups_are_draws_of_their_seeds(data):
    """How often j is in i's group, over epochs, against the probability that one of three draws is j."""
    _, snapshot = data
    batches, together, seen = drawn(snapshot), torch.zeros(N, N), torch.zeros(N)
    for _ in range(900):
        for rows in batches:
            for group in torch.tensor(rows).view(-1, GROUP):
                together[group[0], group[1:]] += 1
                seen[group[0]] += 1
    q = PROPOSALS["the stale softmax"](snapshot)
    rows = torch.arange(N)
    density = q(Anchors(rows, snapshot.vectors)).log_prob(rows.expand(N, -1)).exp()
    once = 1 - (1 - density) ** (GROUP - 1)
    likely = once > 0.1
    assert likely.sum() > 100
    # what other groups hold already is replaced, which costs likely rows most
    ratio = (together / seen[:, None])[likely] / once[likely]
    assert ratio.mean() == pytest.approx(0.95, abs=0.07)
    assert ratio.std() < 0.25


def test_groups_of_one_and_batches_before_a_snapshot_are_uniform(data):
    _, snapshot = data
    rows = torch.randperm(N, generator=torch.Generator().manual_seed(1))[:B]
    uniform = torch.full((B, N), (B - 1) / (N - 1), dtype=torch.float64)
    torch.testing.assert_close(drawn().expected(rows, torch.arange(N)), uniform)
    single = drawn(snapshot, group=1).expected(rows, torch.arange(N))
    torch.testing.assert_close(single, uniform, atol=0.02, rtol=0)  # with and without replacement


def test_rows_that_the_bank_does_not_hold_come_as_well(clustered):
    z = clustered(N, dim=D, spread=0.6)
    snapshot = Snapshot.build(z, factory="exact")
    held = torch.arange(N) < 150
    partly = Snapshot.build(torch.where(held[:, None], z, 0.0), factory="exact", written=held)
    assert torch.equal(partly.written, held)
    batches = drawn(partly)
    rows = [row for epoch in range(6) for batch in batches for row in batch]
    assert len(set(rows)) == N
    for batch in map(torch.tensor, batches):
        n = batches.expected(batch, torch.arange(N))
        assert ((n > 0) & (n <= 1)).all()
    assert len(list(drawn(snapshot))) == len(batches)


def test_it_goes_on_where_it_stopped(data):
    _, snapshot = data
    first = drawn(snapshot)
    stream = iter(first)
    next(stream), next(stream)
    second = drawn(snapshot)
    second.load_state_dict(first.state_dict())
    assert list(stream) == list(second)
    assert list(first) == list(second)


@pytest.mark.parametrize("draws", [0, 20])
def test_importance_weighs_the_batch_by_it(data, draws):
    """w ∝ (k / (M q̄ + V n_i)) exp(βs), with the batch's own n_i in place of (B − 1) / (N − 1)."""
    z, snapshot = data
    batches = drawn(snapshot)
    sampler = Importance(
        N, temperature=TEMPERATURE, proposal=PROPOSALS["head and tail"], draws=draws, positive=False
    )  # fmt: skip
    sampler.update(snapshot)
    rows = torch.tensor(next(iter(batches)))
    ticket = sampler.draw(rows, step=0)
    further = ticket.further
    assert draws or not len(further)
    ids, distribution = (ticket.own.ids[0], ticket.own.distribution) if draws else (rows[:0], None)
    batch = EncodedBatch.from_views(
        rows, torch.cat((z[rows], z[rows], z[further])), further, expected=partial(batches.expected, rows)
    )
    _, weights, *_ = sampler(batch, ticket)[0]
    columns = batch.candidate_rows
    n = 2 * batches.expected(rows, columns)
    times = torch.ones(len(columns), dtype=torch.float64)
    times[2 * B :] = 0
    if draws:
        n = n + draws * distribution.log_prob(columns).exp()
        count = torch.bincount(ids, minlength=N).double()
        times = times + count[columns] / torch.where(torch.isin(columns, rows), 2, 1)
    logits = (times / n).log() + (z[rows] @ z[columns].T / TEMPERATURE).double()
    logits[rows[:, None] == columns] = -torch.inf
    torch.testing.assert_close(weights[:B].double(), logits.softmax(1), atol=1e-5, rtol=0)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="group=5: expected a divisor of batch_size=16"):
        drawn(group=5)
    with pytest.raises(ValueError, match="draws=0, batch=False"):
        Importance(N, temperature=0.1, draws=0, batch=False)
    with pytest.raises(ValueError, match="proposal=None"):
        Importance(N, temperature=0.1)
    knn = Knn(N, B, neighbors=10)
    with pytest.raises(ValueError, match="how often two rows meet is not known"):
        knn.expected(torch.arange(B), torch.arange(N))
