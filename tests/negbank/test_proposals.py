"""One contract for every proposal: its density is exact, and its draws follow it."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from scipy import stats

from negbank import Exclusions, Snapshot
from negbank.index.faiss import kmeans_cells
from negbank.proposals import Anchors, Cells, HeadTail, Mixture, Nearest, Pooled, StaleSoftmax, Uniform

N = 120


def mixture(snapshot, *, exclude=None):
    parts = (
        Nearest(snapshot, 12, 0.1, exclude=exclude),
        Cells(snapshot, 0.2, exclude=exclude),
        Uniform(snapshot, exclude=exclude),
    )
    return Mixture(parts, (2, 1, 1))


PROPOSALS = {
    "uniform": Uniform,
    "nearest": partial(Nearest, k=20, temperature=0.1, floor=0.3),
    "nearest, all of the bank": partial(Nearest, k=N - 1, temperature=0.1, floor=0.01),
    "cells": partial(Cells, temperature=0.1, floor=0.2),
    "head and tail": partial(HeadTail, k=10, temperature=0.15, floor=0.1),
    "head and light tail": partial(HeadTail, k=10, temperature=0.15, floor=0.1, tail=0.25),
    "stale softmax": partial(StaleSoftmax, temperature=0.1, floor=0.1),
    "mixture": mixture,
}
EXCLUDE = {
    "self": None,
    "all kinds": Exclusions(
        N,
        positives=[[(i + 1) % N, (i + 5) % N] if i % 2 else [] for i in range(N)],
        groups=torch.arange(N) % 30 - 1,
        forbidden=torch.arange(N) % 17 == 3,
    ),
    "groups larger than k": Exclusions(N, groups=torch.arange(N) % 3),
}
SNAPSHOTS = {
    "exact": {"factory": "exact"},
    "ivf": {"factory": "IVF6,Flat", "target_recall": 0.3, "recall_at": 5},
    "half written": {"factory": "exact", "written": torch.arange(N) % 2 == 0},
}


@pytest.fixture(params=SNAPSHOTS)
def snapshot(request, clustered):
    return Snapshot.build(clustered(N, spread=0.7), **SNAPSHOTS[request.param])


@pytest.fixture(params=PROPOSALS)
def proposal(request):
    return PROPOSALS[request.param]


@pytest.fixture(params=EXCLUDE)
def exclude(request):
    return EXCLUDE[request.param]


def allowed(exclude):
    rows = torch.arange(N)
    return (exclude or Exclusions(N)).allowed(rows, rows.expand(N, N))


def everyone(snapshot):
    return Anchors(torch.arange(N), snapshot.vectors), torch.arange(N).expand(N, N)


def test_density_is_normalised_over_exactly_the_allowed_rows(snapshot, proposal, exclude):
    anchors, ids = everyone(snapshot)
    log_q = proposal(snapshot, exclude=exclude)(anchors).log_prob(ids)
    assert torch.equal(log_q > -torch.inf, allowed(exclude))
    torch.testing.assert_close(log_q.exp().sum(1), torch.ones(N, dtype=torch.float64), atol=1e-6, rtol=0)


def test_draws_follow_the_density(snapshot, proposal, exclude):
    anchors, ids = everyone(snapshot)
    distribution = proposal(snapshot, exclude=exclude)(anchors)
    n = 6000
    draws = distribution.sample(n, generator=torch.Generator().manual_seed(1))
    counts = torch.zeros(N, N).scatter_add_(1, draws, torch.ones(N, n))
    expected = n * distribution.log_prob(ids).exp()
    assert counts[~allowed(exclude)].sum() == 0
    assert draws.min() >= 0
    p_values = []
    for i in range(N):
        common = expected[i] >= 5  # rare rows are pooled, as the chi-square test asks
        seen = torch.cat((counts[i][common], counts[i][~common].sum()[None]))
        wanted = torch.cat((expected[i][common], expected[i][~common].sum()[None]))
        keep = wanted > 0
        p_values.append(stats.chisquare(seen[keep].numpy(), (wanted[keep] * n / wanted.sum()).numpy()).pvalue)
    assert stats.kstest(p_values, "uniform").pvalue > 1e-4


def test_the_same_for_any_query_batch_and_seed(snapshot, proposal, exclude):
    anchors, ids = everyone(snapshot)
    bound = proposal(snapshot, exclude=exclude)
    whole = bound(anchors).log_prob(ids)
    parts = [bound(Anchors(anchors.rows[p], anchors.queries[p])).log_prob(ids[p]) for p in torch.arange(N).split(7)]
    assert torch.equal(whole, torch.cat(parts))
    a, b = (bound(anchors).sample(50, generator=torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(a, b)


def test_some_of_the_anchors_are_drawn_for_as_they_would_be_alone(snapshot, proposal, exclude):
    anchors, ids = everyone(snapshot)
    bound, part = proposal(snapshot, exclude=exclude), slice(5, 29)
    some, alone = bound(anchors)[part], bound(Anchors(anchors.rows[part], anchors.queries[part]))
    assert torch.equal(some.log_prob(ids[part]), alone.log_prob(ids[part]))
    a, b = (each.sample(50, generator=torch.Generator().manual_seed(4)) for each in (some, alone))
    assert torch.equal(a, b)


def test_an_outside_query_may_meet_every_row(snapshot, proposal):
    anchors = Anchors(torch.full((3,), -1), snapshot.vectors[:3])
    q = proposal(snapshot)(anchors).log_prob(torch.arange(N).expand(3, N)).exp()
    assert (q > 0).all()
    torch.testing.assert_close(q.sum(1), torch.ones(3, dtype=torch.float64))


def test_nearest_is_the_softmax_of_the_papers_formula(clustered):
    """A literal reading: λ/|D| + (1 − λ) softmax over the k best other rows."""
    snapshot = Snapshot.build(clustered(N), factory="exact")
    anchors, ids = everyone(snapshot)
    q = Nearest(snapshot, 15, 0.2, 0.4)(anchors).log_prob(ids).exp()
    scores = (snapshot.vectors @ snapshot.vectors.T).double()
    for i in range(N):
        others = sorted((j for j in range(N) if j != i), key=lambda j: (-float(scores[i, j]), j))
        expected = torch.zeros(N, dtype=torch.float64)
        expected[others] = 0.4 / (N - 1)
        expected[others[:15]] += 0.6 * torch.softmax(scores[i, others[:15]] / 0.2, 0)
        torch.testing.assert_close(q[i], expected, atol=1e-6, rtol=1e-5)


def cell_logit(snapshot, i, cell, temperature):
    """A literal reading of log mean exp(z·x / τ) ≈ z·μ / τ + (1 − |μ|²) / (2 D τ²), row by row."""
    members = [snapshot.vectors[j].double() for j in range(N) if snapshot.cells.assignment[j] == cell]
    mean = sum(members) / len(members)
    spread = (1 - float(mean @ mean)) / len(mean)
    return float(snapshot.vectors[i].double() @ mean) / temperature + spread / (2 * temperature**2)


@pytest.mark.parametrize("exclude", EXCLUDE)
@pytest.mark.parametrize("kind", SNAPSHOTS)
@pytest.mark.parametrize("k", [0, 9])
def test_cells_and_head_tail_are_their_formulas(clustered, exclude, kind, k):
    """Naive loops over rows: e_i(j) by the row's cell, never more than the head's last; of the head by its score."""
    snapshot, temperature, floor = Snapshot.build(clustered(N, spread=0.7), **SNAPSHOTS[kind]), 0.2, 0.3
    anchors, ids = everyone(snapshot)
    exclude = EXCLUDE[exclude]
    if k:
        bound = HeadTail(snapshot, k, temperature, floor, tail=0.5, exclude=exclude)
    else:
        bound = Cells(snapshot, temperature, floor, exclude=exclude)
    q = bound(anchors).log_prob(ids).exp()
    may = allowed(exclude)
    found = snapshot.index.search(
        snapshot.vectors, min(len(snapshot.index), k + 1 + (exclude is EXCLUDE["all kinds"]) * 2)
    )
    for i in range(0, N, 7):
        head = [j for j in found.ids[i].tolist() if may[i, j]][:k]
        weight = torch.zeros(N, dtype=torch.float64)
        near = {j: float(snapshot.vectors[i] @ snapshot.vectors[j]) / temperature for j in head}
        last = min(near.values(), default=math.inf)
        for j in range(N):
            cell = int(snapshot.cells.assignment[j])
            if may[i, j] and cell >= 0:
                weight[j] = min(cell_logit(snapshot, i, cell, temperature) + (math.log(0.5) if k else 0.0), last)
            weight[j] = near.get(j, weight[j])
        weight = torch.where(weight != 0, weight.exp(), 0.0)
        expected = floor * may[i] / may[i].sum() + (1 - floor) * weight / weight.sum()
        torch.testing.assert_close(q[i], expected, atol=1e-8, rtol=1e-5)


def test_a_head_of_the_whole_bank_is_the_stale_softmax(snapshot, exclude):
    anchors, ids = everyone(snapshot)
    if snapshot.index.cells is None:  # an IVF does not return every row
        stale = StaleSoftmax(snapshot, 0.1, 0.2, exclude=exclude)(anchors).log_prob(ids)
        for near in (partial(HeadTail, tail=1e-12), Nearest):
            torch.testing.assert_close(near(snapshot, N - 1, 0.1, 0.2, exclude=exclude)(anchors).log_prob(ids), stale)


def test_all_of_a_cell_may_be_taken(clustered):
    """Groups that are whole cells, a head that empties others, rows of no cell: nothing is drawn from what is empty."""
    snapshot = Snapshot.build(clustered(N, spread=0.1), factory="exact", written=torch.arange(N) % 5 > 0)
    cells = snapshot.cells.assignment
    exclude = Exclusions(N, groups=cells, forbidden=torch.arange(N) % 10 == 0)
    anchors, ids = everyone(snapshot)
    for bound in (Cells(snapshot, 0.05, 0.1, exclude=exclude), HeadTail(snapshot, 90, 0.05, 0.1, exclude=exclude)):
        distribution = bound(anchors)
        q = distribution.log_prob(ids).exp()
        assert torch.equal(q > 0, allowed(exclude))
        torch.testing.assert_close(q.sum(1), torch.ones(N, dtype=torch.float64))
        draws = distribution.sample(500, generator=torch.Generator().manual_seed(0))
        assert allowed(exclude).gather(1, draws).all()
        only = Exclusions(N, forbidden=cells >= 0)  # no indexed row is left: the floor is all there is
        q = HeadTail(snapshot, 9, exclude=only)(anchors).log_prob(ids).exp()
        torch.testing.assert_close(q, Uniform(exclude=only)(anchors).log_prob(ids).exp())


def test_a_snapshot_has_cells_whatever_its_index(snapshot):
    cells = snapshot.cells
    indexed = torch.arange(N) if snapshot.rows is None else snapshot.rows
    assert torch.equal((cells.assignment >= 0).nonzero().flatten(), indexed)
    assert torch.equal(torch.bincount(cells.assignment[indexed], minlength=len(cells.sizes)), cells.sizes)
    if snapshot.index.cells is not None:
        assert cells is snapshot.index.cells
        return
    assert len(cells.sizes) == round(1.5 * len(indexed) ** 0.5)
    again = kmeans_cells(snapshot.vectors, snapshot.rows, len(cells.sizes))
    assert torch.equal(again.assignment, cells.assignment)
    own = cells.centroids[cells.assignment[indexed]]
    best = (snapshot.vectors[indexed] @ cells.centroids.T).max(1).values
    torch.testing.assert_close((snapshot.vectors[indexed] * own).sum(1), best)


@pytest.mark.parametrize("n", [5, 12, 31])
def test_a_pool_is_drawn_from_the_mean_of_its_anchors(snapshot, exclude, n):
    rows = torch.tensor([3, 20, 20, 41, 57, 64, 65, 66, 90, 101, 110, 111])
    anchors = Anchors(rows, snapshot.vectors[rows])
    each = HeadTail(snapshot, 10, 0.1, exclude=exclude)
    pool = Pooled(each)(anchors)
    q = pool.log_prob(torch.arange(N)).exp()
    torch.testing.assert_close(q, each(anchors).log_prob(torch.arange(N).expand(12, N)).exp().mean(0))
    torch.testing.assert_close(q.sum(), torch.ones((), dtype=torch.float64))
    generator = torch.Generator().manual_seed(1)
    first, last = [], []
    for _ in range(800):
        draws = pool.sample(n, generator=generator)
        assert draws.shape == (n,)
        first.append(int(draws[0]))
        last.append(int(draws[-1]))
    for seen in (first, last):  # every place has the law of the mean: q-cells of about equal mass
        part = ((q.cumsum(0) - q / 2) * 20).long().clamp(0, 19)
        counts = torch.bincount(part[torch.tensor(seen)], minlength=20).double()
        wanted = torch.zeros(20, dtype=torch.float64).index_add_(0, part, q) * 800
        keep = wanted > 0
        assert stats.chisquare(counts[keep].numpy(), wanted[keep].numpy()).pvalue > 1e-4
    with pytest.raises(ValueError, match="anchors: none"):
        Pooled(each)(Anchors(rows[:0], snapshot.vectors[:0]))


def test_a_pool_sums_over_the_rows_of_an_anchor_without_bias(clustered):
    """E Σ_r 1{j_r ∈ D_i} f(j_r) / q̄(j_r) / M = Σ_{D_i} f, with q̄ not renormalised; by enumeration of the pool's law."""
    snapshot = Snapshot.build(clustered(N), factory="exact")
    rows = torch.arange(0, N, 9)
    pool = Pooled(Nearest(snapshot, 10))(Anchors(rows, snapshot.vectors[rows]))
    draws = torch.cat([pool.sample(40, generator=torch.Generator().manual_seed(s)) for s in range(500)])
    f = torch.rand(N, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    terms = torch.where(draws != 9, f[draws], 0.0) / pool.log_prob(draws).exp()
    error = terms.mean() - (f.sum() - f[9])
    assert abs(float(error)) < 4 * float(terms.std()) / len(terms) ** 0.5


@pytest.mark.parametrize("kind", [Nearest, HeadTail, Cells, StaleSoftmax])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k=0"),
        ({"k": N}, f"expected 1..{N - 1}"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"floor": 0.0}, "floor=0.0"),
        ({"floor": 1.5}, "floor=1.5"),
    ],
)
def test_bad_input_is_named(clustered, kind, arguments, message):
    if "k" in arguments and kind not in (Nearest, HeadTail):
        return
    with pytest.raises(ValueError, match=message):
        kind(Snapshot.build(clustered(N)), **arguments)


def test_bad_input_of_the_others_is_named():
    with pytest.raises(ValueError, match="snapshot=None"):
        Uniform()
    uniform = Uniform(exclude=Exclusions(N))
    for proposals, weights in (([], []), ([uniform], [1, 2]), ([uniform, uniform], [1, 0])):
        with pytest.raises(ValueError, match="weights"):
            Mixture(proposals, weights)
