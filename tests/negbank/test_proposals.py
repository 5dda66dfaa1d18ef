"""One contract for every proposal: its density is exact, and its draws follow it."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from scipy import stats

from negbank import Exclusions, Snapshot
from negbank.proposals import Anchors, Nearest, Uniform

N = 120
PROPOSALS = {
    "uniform": Uniform,
    "nearest": partial(Nearest, k=20, temperature=0.1, floor=0.3),
    "nearest, all of the bank": partial(Nearest, k=N - 1, temperature=0.1, floor=0.01),
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
    draws = distribution.sample(n, generator=torch.Generator().manual_seed(0))
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
def test_bad_input_is_named(clustered, arguments, message):
    with pytest.raises(ValueError, match=message):
        Nearest(Snapshot.build(clustered(N)), **arguments)
    with pytest.raises(ValueError, match="snapshot=None"):
        Uniform()
