"""Fitted proposals: the estimate against the exact χ², and what a fit is worth on digits with a very stale bank."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from sklearn.datasets import load_digits

from negbank import Exclusions, Snapshot
from negbank.proposals import Anchors, Cells, HeadTail, Nearest, Pooled, Probe, Uniform, fit, measure
from negbank.proposals.adapt import log_inverse_ess

TAU = 0.07


def digits(cosine):
    """Unit rows (1797, 32) in double precision, and a noisy copy at this mean cosine to them."""
    x = torch.from_numpy(load_digits().data).double()
    u, s, _ = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    fresh = torch.nn.functional.normalize(u[:, :32] * s[:32].sqrt(), dim=1)
    noise = torch.randn(fresh.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    scale = ((1 / cosine**2 - 1) / 32) ** 0.5
    return fresh, torch.nn.functional.normalize(fresh + scale * noise, dim=1)


def exact(fresh, rows, log_q):
    """π (A, N), and log Σ π² / q over all rows."""
    pi = torch.where(log_q > -torch.inf, fresh[rows] @ fresh.T / TAU, -torch.inf).softmax(1)
    return pi, torch.where(pi > 0, pi**2 / log_q.exp(), 0.0).sum(1).log()


def distance(pi, q, steps):
    """Mean total variation of independence chains to π from a uniform start, by their transition matrices."""
    total = 0.0
    for target, proposal in zip(pi, q):
        weight = torch.where(target > 0, target / proposal, 0.0)
        matrix = proposal * (weight / weight[:, None]).clamp(max=1).nan_to_num(1.0)
        matrix.fill_diagonal_(0.0)
        matrix += torch.diag(1 - matrix.sum(1))
        law = (target > 0).double() / (target > 0).sum()
        for _ in range(steps):
            law = law @ matrix
        total += float((law - target).abs().sum()) / 2
    return total / len(pi)


def test_a_probe_of_all_rows_gives_the_exact_chi_square():
    fresh, stale = digits(0.9)
    n, rows = len(fresh), torch.tensor([4, 900, 1500])
    snapshot, every = Snapshot.build(stale, factory="exact"), torch.arange(n)
    exclude = Exclusions(n, groups=every % 300)
    anchors = Anchors(rows, snapshot.vectors[rows])
    log_q = HeadTail(snapshot, exclude=exclude)(anchors).log_prob(every.expand(3, n))
    density = torch.full((n,), 1 / n, dtype=torch.float64).log()
    probe = Probe(anchors, every, density, fresh[rows] @ fresh.T)
    torch.testing.assert_close(log_inverse_ess(log_q, probe, TAU), exact(fresh, rows, log_q)[1])


@pytest.mark.parametrize("cosine", [0.77, 0.97])
def test_a_fit_helps_a_stale_bank_and_spares_a_fresh_one(cosine):
    fresh, stale = digits(cosine)
    snapshot, generator = Snapshot.build(stale, factory="exact"), torch.Generator().manual_seed(0)
    order = torch.randperm(len(fresh), generator=generator)
    probed, rows = order[:64], order[64:104]
    anchors = Anchors(probed, fresh[probed].float())
    pool = Pooled(HeadTail(snapshot))(anchors)
    ids = pool.sample(1024, generator=generator)
    probe = Probe(anchors, ids, pool.log_prob(ids), fresh[probed] @ fresh[ids].T)
    best = fit(partial(HeadTail, snapshot, 64), probe, TAU)
    every = torch.arange(len(fresh)).expand(len(rows), -1)
    costs = []
    for temperature, floor in ((TAU, 0.1), best[:2]):
        bound = HeadTail(snapshot, 64, temperature, floor)
        log_q = bound(Anchors(rows, fresh[rows].float())).log_prob(every)
        pi, cost = exact(fresh, rows, log_q)
        costs.append(float(cost.mean()))
    assert best.temperature > 1.15 * TAU if cosine < 0.9 else best.temperature <= 1.1 * TAU
    assert costs[1] < costs[0] - 0.02
    assert abs(math.log(best.ess) + costs[1]) < 0.3
    assert distance(pi, log_q.exp(), 16) < (0.1 if cosine < 0.9 else 0.006)


@pytest.mark.parametrize(("kind", "bar"), [(Nearest, 0.10), (HeadTail, 0.08), (Cells, 1.0)])
def test_adapt_takes_what_a_measured_probe_fits(kind, bar):
    """Cosine 0.77: χ² falls for each of them; the distance after 16 proposals where there is a head to sharpen."""
    fresh, stale = digits(0.77)
    snapshot, generator = Snapshot.build(stale, factory="exact"), torch.Generator().manual_seed(0)
    order = torch.randperm(len(fresh), generator=generator)
    probed, rows = order[:64], order[64:104]
    encoded = []

    def encode(ids):
        encoded.append(ids)
        return fresh[ids]

    probe = measure(snapshot, probed, encode, fresh_queries=True, generator=generator)
    assert len(encoded[0].unique()) == len(encoded[0]) <= 64 + 512
    adapted, plain = kind(snapshot, adapt=True, probe=probe), kind(snapshot)
    assert adapted.temperature > plain.temperature
    every = torch.arange(len(fresh)).expand(len(rows), -1)
    log_q, fixed = (p(Anchors(rows, fresh[rows].float())).log_prob(every) for p in (adapted, plain))
    assert float((log_q.exp().sum(1) - 1).abs().max()) < 1e-6
    (pi, cost), (_, before) = exact(fresh, rows, log_q), exact(fresh, rows, fixed)
    assert float(cost.mean()) < float(before.mean())
    assert distance(pi, log_q.exp(), 16) < bar


@pytest.mark.parametrize("kind", [Nearest, HeadTail, Cells])
def test_before_anything_is_measured_it_is_as_configured(kind):
    bound = kind(Snapshot.build(digits(0.97)[1][:200], factory="exact"), temperature=0.2, floor=0.3, adapt=True)
    assert (bound.temperature, bound.floor) == (0.2, 0.3)


@pytest.mark.parametrize("fresh_queries", [False, True])
def test_a_probe_across_two_towers_encodes_each_row_by_its_own(fresh_queries):
    """Anchors of one tower, a bank of the other: by hand, and the same as one tower where the two are one."""
    fresh, stale = digits(0.9)
    turned = fresh @ torch.linalg.qr(torch.randn(32, 32, dtype=torch.float64, generator=torch.Generator()))[0]
    snapshot, rows = Snapshot.build(stale, factory="exact"), torch.arange(0, 1700, 50)
    queries, asked = turned[rows].float().flip(0), []

    def tower(embeddings):
        return lambda ids: asked.append(ids) or embeddings[ids]

    options = {"draws": 100, "fresh_queries": fresh_queries}
    seeded = lambda: torch.Generator().manual_seed(0)  # noqa: E731
    probe = measure(
        snapshot, rows, tower(fresh), queries=queries, encode_queries=tower(turned), generator=seeded(), **options
    )
    assert len(asked[0].unique()) == len(asked[0]) <= 100
    assert torch.equal(asked[0], probe.ids.unique())
    assert torch.equal(asked[1], rows)
    torch.testing.assert_close(probe.scores, (turned[rows] @ fresh[probe.ids].T).float())
    torch.testing.assert_close(probe.anchors.queries, turned[rows].float() if fresh_queries else queries)
    pool = Pooled(Nearest(snapshot, 64, 0.07, 0.3))(Anchors(rows, queries))
    torch.testing.assert_close(probe.log_q, pool.log_prob(probe.ids))
    one = measure(snapshot, rows, tower(fresh), generator=seeded(), **options)
    both = measure(snapshot, rows, tower(fresh), encode_queries=tower(fresh), generator=seeded(), **options)
    assert torch.equal(one.ids, both.ids)
    torch.testing.assert_close(one.scores, both.scores)
    torch.testing.assert_close(one.anchors.queries, both.anchors.queries)


def test_bad_probes_are_named():
    anchors = Anchors(torch.tensor([3]), torch.zeros(1, 2))
    uniform = lambda temperature, floor: Uniform(exclude=Exclusions(9))  # noqa: E731
    ids, density = torch.tensor([3, 3]), torch.zeros(2)
    with pytest.raises(ValueError, match=r"scores \(2, 2\)"):
        fit(uniform, Probe(anchors, ids, density, torch.zeros(2, 2)), TAU)
    with pytest.raises(ValueError, match=r"no allowed row for anchors \[3\]"):
        fit(uniform, Probe(anchors, ids, density, torch.zeros(1, 2)), TAU)
