from __future__ import annotations

import itertools
import math
from functools import partial

import pytest
import torch

from negbank import Snapshot
from negbank.proposals import Anchors, HeadTail, StaleSoftmax
from negbank.samplers.batches import Drawn, Knn
from negbank.samplers.batches.drawn import Groups
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
    options = {"proposal": PROPOSALS["the stale softmax"], "group": GROUP, "batch_size": B, **options}
    made = Drawn(N, **options)
    if snapshot is not None:
        made.update(snapshot)
    return made


class Table:
    """A proposal of given densities (N, N), and the distribution that it gives anchors."""

    def __init__(self, q, rows=None):
        self.q, self.rows = q, rows

    def __call__(self, anchors):
        return Table(self.q, anchors.rows)

    def log_prob(self, ids):
        return self.q[self.rows].gather(1, ids).log()


def seeds_of(batches, rows):
    """The seeds of a batch that was drawn, none of one that was not."""
    met = batches.meeting(torch.tensor(rows))
    return [] if met is None else met.slots[:, 0].tolist()


@pytest.mark.parametrize("held", [5, 4], ids=["all rows held", "one row not"])
@pytest.mark.parametrize("more", [None, "pool", "own"])
@pytest.mark.parametrize(("seeds", "group"), [(3, 2), (2, 3), (2, 2), (3, 1)])
def test_the_weights_of_a_batch_have_the_exact_mean_by_enumeration(seeds, group, more, held):
    """Over all batches of N = 5: E k_i ratio_i(j) = E k_i for every anchor i, k_i the slots that hold it, and j ≠ i.

    The ratio is linear in how often other means drew a row, so that their mean stands for them.
    """
    count, generator = 5, torch.Generator().manual_seed(0)
    q = torch.rand(count, count, generator=generator, dtype=torch.float64).square().fill_diagonal_(0)
    q = 0.8 * q / q.sum(1, keepdim=True) + 0.2 * (1 - torch.eye(count, dtype=torch.float64)) / (count - 1)
    expected = torch.rand(count, count, generator=generator, dtype=torch.float64)
    total, came, once, plain = torch.zeros(4, count, count, dtype=torch.float64)
    every, mask = torch.arange(count), torch.arange(count) < held
    for chosen in itertools.combinations(range(held), seeds):
        drawing = [seed for seed in chosen for _ in range(group - 1)]
        for ids in itertools.product(range(count), repeat=len(drawing)):
            chance = math.prod(float(q[seed, j]) for seed, j in zip(drawing, ids))
            if chance == 0:
                continue
            slots = torch.cat((torch.tensor(chosen)[:, None], torch.tensor(ids).long().view(seeds, -1)), 1)
            rows = torch.tensor(list(dict.fromkeys(slots.flatten().tolist())))
            met = Groups(rows, slots, Table(q), torch.zeros(count, 1), mask)
            e = {None: torch.zeros(1, count), "pool": expected[:1], "own": expected[rows]}[more]
            ratio = met.ratio(every, e, e)
            total[rows] += chance * met.counts[:, None] * ratio
            came[rows] += chance * met.counts[:, None]
            once[rows] += chance * ratio
            plain[rows] += chance
    off = ~torch.eye(count, dtype=torch.bool)
    if group == 1 and more is None:  # nothing else can draw a row that is no seed
        off[:, held:] = False
    torch.testing.assert_close(total[off], came[off], atol=1e-10, rtol=0)
    if group == 3 and more is None:  # a row that came twice has to count twice
        assert float((once / plain - 1)[off].abs().max()) > 0.01


def test_a_batch_weighed_by_what_is_known_of_it_sums_to_the_whole_data_set(data):
    """Σ_r f(r) ratio(r) over 10⁵ slots against Σ_{j∈D_i} f(j), which the batch overstates where it is taken for
    uniform."""
    z, snapshot = data
    batches = drawn(snapshot, proposal=PROPOSALS["head and tail"], batch_size=40)
    f = (z @ z.T / TEMPERATURE).exp().double().fill_diagonal_(0)
    f = f / f.sum(1, keepdim=True)
    found, uniform, slots = [], [], 0
    zero = torch.zeros(1, 1, dtype=torch.float64)
    while slots < 100_000:
        for rows in map(torch.tensor, batches):
            met = batches.meeting(rows)
            ratio = met.ratio(rows, zero.expand(1, len(rows)), zero.expand(1, len(rows)))
            found.append(float((met.counts[:, None] * ratio * f[rows][:, rows]).sum() - met.counts.sum()))
            uniform.append(float(f[rows][:, rows].sum(1).mean()) * (N - 1) / (len(rows) - 1))
            slots += int(met.counts.sum())
    found = torch.tensor(found)
    error = 4 * float(found.std()) / len(found) ** 0.5
    assert abs(float(found.mean())) < error < 0.04 * 40
    assert sum(uniform) / len(uniform) > 1.2


def test_an_epoch_has_distinct_seeds_and_distinct_rows_a_batch(data):
    _, snapshot = data
    made = drawn(snapshot)
    batches = list(made)
    seeds = [seed for rows in batches for seed in seeds_of(made, rows)]
    assert len(set(seeds)) == len(seeds) == N // B * (B // GROUP)
    assert len(batches) == N // B
    assert all(len(set(rows)) == len(rows) <= B for rows in batches)
    assert len({len(rows) for rows in batches}) > 1  # some rows were drawn twice


@pytest.mark.parametrize("held", [N, 120, 60])
def test_seeds_stay_distinct_where_refreshes_come_within_the_epoch(data, held):
    """Also where the first snapshot comes within it, and where batches of rows not held are shuffled in."""
    _, snapshot = data
    written = torch.arange(N) < held
    batches, seeds = drawn(), []
    for nth, rows in enumerate(batches):
        if nth >= 2:
            seeds += seeds_of(batches, rows)
        if nth in (1, 4, 7):
            vectors = torch.where(written[:, None], snapshot.vectors.roll(nth, 1), 0.0)
            batches.update(Snapshot.build(vectors, factory="exact", version=nth, written=written))
    assert nth + 1 == N // B
    assert len(set(seeds)) == len(seeds)
    assert len(seeds) == (N // B - 2) * B // GROUP if held == N else 0 < len(seeds) < (N // B - 2) * B // GROUP


def test_groups_are_independent_draws_of_their_seeds(data):
    """How often j was drawn in i's group, over epochs, against (g − 1) q_i(j): nothing is replaced."""
    _, snapshot = data
    batches, together, seen = drawn(snapshot), torch.zeros(N, N), torch.zeros(N)
    for _ in range(900):
        for rows in batches:
            for group in batches.meeting(torch.tensor(rows)).slots:
                together[group[0]].index_add_(0, group[1:], torch.ones(GROUP - 1))
                seen[group[0]] += 1
    q = PROPOSALS["the stale softmax"](snapshot)
    rows = torch.arange(N)
    density = q(Anchors(rows, snapshot.vectors)).log_prob(rows.expand(N, -1)).exp().float()
    expected = (GROUP - 1) * density * seen[:, None]
    deviation = ((together - expected) / expected.clamp(min=1e-9).sqrt())[expected > 20]
    assert len(deviation) > 1000
    assert abs(float(deviation.mean())) < 0.1
    assert float(deviation.square().mean()) < 1.1


def test_the_model_of_inclusion_is_near_the_sum_and_not_exact(data):
    """Σ_r f(r) / n_i(r) on average against Σ_{j∈D_i} f(j), of seeds and of rows that they drew."""
    z, snapshot = data
    batches = drawn(snapshot, weights="model", group=GROUP)
    f = (z @ z.T / TEMPERATURE).exp().double().fill_diagonal_(0)
    f = f / f.sum(1, keepdim=True)
    zero, found = torch.zeros(1, B, dtype=torch.float64), []
    for _ in range(60):
        for rows in map(torch.tensor, batches):
            assert len(rows.unique()) == B
            found.append((batches.meeting(rows).ratio(rows, zero, zero) * f[rows][:, rows]).sum(1))
    by_slot = torch.stack(found).mean(0).view(-1, GROUP).mean(0)
    assert float(by_slot[0]) == pytest.approx(1, abs=0.1)
    assert float(by_slot[1:].mean()) == pytest.approx(1, abs=0.2)


def test_groups_of_one_and_batches_before_a_snapshot_are_uniform(data):
    _, snapshot = data
    made = drawn()
    assert made.meeting(torch.tensor(next(iter(made)))) is None
    made = drawn(snapshot, group=1)
    rows = torch.tensor(next(iter(made)))
    zero = torch.zeros(1, N, dtype=torch.float64)
    ratio = made.meeting(rows).ratio(torch.arange(N), zero, zero)
    inside = (torch.arange(N) == rows[:, None]).any(0) & (torch.arange(N) != rows[:, None])
    torch.testing.assert_close(ratio, inside.double() * ((N - 1) / (B - 1)))


def test_a_batch_keeps_the_densities_it_was_drawn_with_and_only_the_last_ones_are_known(data):
    _, snapshot = data
    made = drawn(snapshot)
    stream = iter(made)
    first = torch.tensor(next(stream))
    zero = torch.zeros(1, N, dtype=torch.float64)
    before = made.meeting(first).ratio(torch.arange(N), zero, zero)
    made.update(Snapshot.build(snapshot.vectors.roll(1, 1), factory="exact", version=1))
    for again in (first, torch.tensor(next(iter(made)))):  # what was handed out stays so, and comes again
        assert torch.equal(again, first)
        assert torch.equal(made.meeting(again).ratio(torch.arange(N), zero, zero), before)
    with pytest.raises(ValueError, match="none of the last 256 batches handed out"):
        made.meeting(first.flip(0))


def test_rows_that_the_bank_does_not_hold_come_as_well(clustered):
    z = clustered(N, dim=D, spread=0.6)
    snapshot = Snapshot.build(z, factory="exact")
    held = torch.arange(N) < 150
    partly = Snapshot.build(torch.where(held[:, None], z, 0.0), factory="exact", written=held)
    assert torch.equal(partly.written, held)
    batches = drawn(partly)
    rows = [row for epoch in range(6) for batch in batches for row in batch]
    assert len(set(rows)) == N
    zero = torch.zeros(1, N, dtype=torch.float64)
    met = [batches.meeting(torch.tensor(batch)) for batch in batches]
    assert 0 < sum(each is None for each in met) < len(met)  # uniform ones are told from those that were drawn
    for each in filter(None, met):
        ratio = each.ratio(torch.arange(N), zero, zero)
        assert torch.isfinite(ratio).all()
        assert (ratio >= 0).all()
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


@pytest.mark.parametrize(("draws", "pool"), [(0, True), (20, True), (3, False)])
def test_importance_weighs_the_batch_by_it(data, draws, pool):
    """w ∝ k_i ratio_i(r) exp(βs), a row's ratio shared by its views, and index draws one more technique."""
    z, snapshot = data
    batches = drawn(snapshot)
    sampler = Importance(
        N, temperature=TEMPERATURE, proposal=PROPOSALS["head and tail"], draws=draws, pool=pool, positive=False
    )  # fmt: skip
    sampler.update(snapshot)
    rows = torch.tensor(next(iter(batches)))
    size = len(rows)
    ticket = sampler.draw(rows, step=0)
    further = ticket.further
    assert draws or not len(further)
    met = batches.meeting(rows)
    batch = EncodedBatch.from_views(rows, torch.cat((z[rows], z[rows], z[further])), further, meeting=met)
    _, weights, *_ = sampler(batch, ticket)[0]
    columns = batch.candidate_rows
    lists = ticket.own.ids
    times = torch.stack([torch.bincount(ids, minlength=N).double() for ids in lists])
    every = torch.arange(N)
    log_prob = ticket.own.distribution.log_prob
    q = log_prob(every)[None] if draws and pool else log_prob(every.expand(size, -1))
    ratio = met.ratio(every, times / 2, draws * q.exp() / 2)
    shares = torch.where(torch.isin(columns, rows), 2, 1)
    logits = (ratio[:, columns] / shares).log() + (z[rows] @ z[columns].T / TEMPERATURE).double()
    logits[rows[:, None] == columns] = -torch.inf
    counts = (met.counts / met.counts.mean())[:, None]
    assert counts.max() > 1
    torch.testing.assert_close(weights[:size].double(), counts * logits.softmax(1), atol=1e-5, rtol=0)


def test_bad_input_is_named():
    for group in (5, 16):
        with pytest.raises(ValueError, match=f"group={group}: expected a divisor of batch_size=16, at most half of it"):
            drawn(group=group)
    with pytest.raises(ValueError, match="draws=0, batch=False"):
        Importance(N, temperature=0.1, draws=0, batch=False)
    with pytest.raises(ValueError, match="proposal=None"):
        Importance(N, temperature=0.1)
    knn = Knn(N, B, neighbors=10)
    with pytest.raises(ValueError, match="how often two rows meet is not known"):
        knn.meeting(torch.arange(B))
