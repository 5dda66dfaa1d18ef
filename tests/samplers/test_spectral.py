from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans, SpectralClustering
from sklearn.manifold import spectral_embedding
from sklearn.metrics import adjusted_rand_score
from torch.nn.functional import normalize

from negbank import Snapshot
from negbank.counter import Counter
from negbank.index.kmeans import closeness, lloyd
from negbank.samplers.batches import Spectral
from negbank.samplers.batches.partition import assign, cut
from negbank.samplers.batches.spectral import centres, embedding, equal_clusters, log_affinity


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def views(rows, clusters, dim=16, noise=0.4, seed=0):
    """Two views of rows around as many centres, all of the same number of rows: (2, rows, dim), and their centres."""
    generator = seeded(seed)
    own = torch.arange(clusters).repeat(rows // clusters)
    middle = torch.randn(clusters, dim, generator=generator)[own]
    return normalize(middle + noise * torch.randn(2, rows, dim, generator=generator), dim=2), own


def paper_affinity(u, v, batch_size, temperature):
    """w_ij, one pair at a time, as the paper writes it."""
    u, v, b = u.double().numpy(), v.double().numpy(), 1 / temperature
    w = np.zeros((len(u), len(u)))
    for i in range(len(u)):
        for j in range(len(u)):
            for p, q in ((i, j), (j, i)):
                w[i, j] += np.log(1 + (batch_size - 1) * np.exp(b * (u[p] @ v[q] - u[p] @ v[p])))
                w[i, j] += np.log(1 + (batch_size - 1) * np.exp(b * (v[p] @ u[q] - v[p] @ u[p])))
    return w


def kept(vectors, batches, beta=10.0):
    """Mean over batches of the InfoNCE excess (1/B) Σ_i log(1 + Σ_{j≠i} exp(β(s_ij − 1)))."""
    x = vectors[torch.as_tensor(batches)]
    s = torch.exp(beta * (x @ x.mT - 1))
    s.diagonal(dim1=1, dim2=2).zero_()
    return float(torch.log1p(s.sum(2)).mean())


def planned(vectors, batch_size, *, positives=None, **options):
    sampler = Spectral(len(vectors), batch_size, **{"temperature": 0.1, **options})
    sampler.update(Snapshot.build(vectors, positives=positives, factory="exact"))
    return torch.tensor(list(sampler))


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_the_affinity_is_the_papers(temperature):
    (u, v), _ = views(30, 5)
    w = log_affinity(u, v, 8, temperature)
    np.testing.assert_allclose(w.numpy(), paper_affinity(u, v, 8, temperature), rtol=1e-5)
    one_view = log_affinity(u, u, 8, temperature)
    np.testing.assert_allclose(one_view.numpy(), paper_affinity(u, u, 8, temperature), rtol=1e-5)
    assert not torch.allclose(w, one_view)


def test_the_embedding_is_scikit_learns():
    (u, v), _ = views(120, 6)
    w = log_affinity(u, v, 20, 0.3)
    ours = embedding(w, 6).numpy()
    theirs = spectral_embedding(np.exp((w - w.max()).numpy()), n_components=6, drop_first=False, random_state=0)
    ours, theirs = ours / np.linalg.norm(ours), theirs / np.linalg.norm(theirs)
    np.testing.assert_allclose(cdist(ours, ours), cdist(theirs, theirs), atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_clusters_are_scikit_learns_where_their_sizes_are_equal(seed):
    (u, v), own = views(256, 8, seed=seed)
    w = log_affinity(u, v, 32, 0.3)
    affinity = np.exp((w - w.max()).numpy())
    theirs = SpectralClustering(8, affinity="precomputed", random_state=0).fit(affinity).labels_
    assert np.bincount(theirs).tolist() == [32] * 8
    maps = embedding(w, 8)
    unbalanced = closeness(maps, centres(maps, 8, seeded(seed))).argmax(1)
    equal = equal_clusters(w, 32, seeded(seed))
    assert adjusted_rand_score(theirs, unbalanced) == adjusted_rand_score(theirs, equal) == 1
    batches = planned(u, 32, positives=v, temperature=0.3, group=8)
    assert adjusted_rand_score(own[batches].flatten(), torch.arange(8).repeat_interleave(32)) == 1


@pytest.mark.parametrize("seed", range(3))
def test_clusters_of_unequal_size_are_made_equal_as_published(seed):
    """The published code: scikit-learn's embedding and k-means, SciPy's assignment to each centre B times."""
    generator = seeded(seed)
    own = torch.arange(8).repeat_interleave(torch.tensor([20, 12, 16, 18, 14, 16, 10, 22]))
    middle = torch.randn(8, 16, generator=generator)[own]
    u, v = normalize(middle + 0.5 * torch.randn(2, 128, 16, generator=generator), dim=2)
    w = log_affinity(u, v, 16, 0.3)
    maps = spectral_embedding(np.exp((w - w.max()).numpy()), n_components=8, drop_first=False, random_state=0)
    fitted = KMeans(8, n_init=20, random_state=0).fit(maps)
    distances = cdist(maps, np.repeat(fitted.cluster_centers_, 16, 0))
    theirs = linear_sum_assignment(distances)[1] // 16
    ours = equal_clusters(w, 16, generator, restarts=20).numpy()
    assert np.bincount(ours).tolist() == [16] * 8
    assert adjusted_rand_score(theirs, fitted.labels_) < 0.9  # sizes did differ
    assert adjusted_rand_score(theirs, ours) == 1


def test_logarithms_reach_where_affinities_overflow_and_vanish():
    u = normalize(torch.randn(64, 4, generator=seeded()), dim=1)
    w = log_affinity(u, -u, 8, 0.001)  # positives are opposite: e^w up to e^8000
    assert float(w.max()) > 5000
    maps = embedding(w, 8)
    assert torch.isfinite(maps).all()
    assert torch.bincount(equal_clusters(w, 8, seeded())).tolist() == [8] * 8


@pytest.mark.parametrize("seed", range(30))
def test_the_assignment_is_a_best_one(seed):
    generator = seeded(seed)
    parts = int(torch.randint(1, 9, (), generator=generator))
    rows = int(torch.randint(parts, 60, (), generator=generator))
    gains = torch.randn(rows, parts, generator=generator)
    gains = gains.round() if seed % 3 == 0 else gains  # ties
    chosen = torch.multinomial(torch.rand(parts, generator=generator), rows, True, generator=generator)
    sizes = torch.bincount(chosen, minlength=parts)
    part = assign(gains, sizes)
    assert torch.bincount(part, minlength=parts).equal(sizes)
    each = gains.double().numpy()[:, np.repeat(np.arange(parts), sizes.numpy())]
    best = each[linear_sum_assignment(each, maximize=True)].sum()
    got = float(gains.double()[torch.arange(rows), part].sum())
    assert got == pytest.approx(best, abs=1e-6)


def test_kmeans_is_lloyds():
    (x, _), _ = views(200, 5, noise=0.8)
    start = x[:5]
    theirs = KMeans(5, init=start.numpy(), n_init=1, max_iter=100, algorithm="lloyd", tol=0).fit(x.numpy())
    np.testing.assert_allclose(lloyd(x, start, 100).numpy(), theirs.cluster_centers_, atol=1e-5)


def test_a_centre_without_rows_stays():
    x = torch.tensor([[1.0, 0.0], [0.9, 0.1]])
    far = torch.tensor([[1.0, 0.0], [-9.0, 0.0]])
    assert lloyd(x, far, 5)[1].tolist() == [-9.0, 0.0]


IDENTICAL = torch.ones(500, 8)
DUPLICATES = torch.eye(8)[torch.arange(500) % 7]
MOSTLY = torch.cat((torch.ones(470, 8), torch.randn(30, 8, generator=torch.Generator().manual_seed(0))))
COLLAPSED = torch.ones(500, 8) + 1e-6 * torch.randn(500, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("scope", ["groups", "global"])
@pytest.mark.parametrize("batch_size", [2, 16, 40, 130, 249, 250, 251, 500])
@pytest.mark.parametrize("rows", ["clustered", "identical", "duplicates", "mostly", "collapsed"])
def test_every_batch_has_its_rows_and_every_row_its_batch(rows, batch_size, scope, clustered):
    named = {"identical": IDENTICAL, "duplicates": DUPLICATES, "mostly": MOSTLY, "collapsed": COLLAPSED}
    vectors = clustered(500) if rows == "clustered" else named[rows]
    batches = planned(vectors, batch_size, scope=scope, group=3, restarts=1)
    assert batches.shape == (500 // batch_size, batch_size)
    assert batches.flatten().unique().numel() == batches.numel()


@pytest.mark.parametrize("rows", [0, 3, 7, 8, 60, 61, 1000])
def test_cuts_leave_out_as_few_rows_as_can_be(rows, clustered):
    parts = cut(clustered(rows) if rows else torch.empty(0, 16), 7, seeded())
    assert parts.shape == (rows // 7, 7)
    assert parts.flatten().unique().numel() == parts.numel()


def test_what_a_cut_leaves_out_is_drawn_at_random():
    """The rows far from all others would be left over every time; the draw comes first."""
    x = torch.cat((torch.eye(8)[:1].repeat(30, 1), -torch.eye(8)))  # 38 rows, B = 10: 8 left out
    counts = torch.zeros(38)
    for seed in range(300):
        counts[cut(x, 10, seeded(seed)).flatten()] += 1
    assert (counts - 300 * 30 / 38).abs().max() < 4.5 * (300 * 30 / 38 * 8 / 38) ** 0.5


def test_equal_rows_meet():
    """500 rows of 25 kinds, 20 of each, in batches of 20: all of a kind in one batch."""
    kinds = torch.randn(25, 8, generator=seeded())
    own = torch.arange(500) % 25
    for scope in ("global", "groups"):
        batches = planned(kinds[own], 20, scope=scope, group=25)
        assert (own[batches] == own[batches][:, :1]).all()


def test_global_batches_keep_most_affinity_and_uniform_ones_least(clustered):
    vectors = clustered(10_000, dim=32, clusters=150, spread=0.6)
    batches = planned(vectors, 32, scope="global")
    uniform = torch.randperm(10_000, generator=seeded())[: 312 * 32].view(-1, 32)
    some = torch.randperm(10_000, generator=seeded())[:1280]
    grouped = some[planned(vectors[some], 32, group=20)]
    assert len(batches) == 312
    assert kept(vectors, batches) > 2 * kept(vectors, grouped) > 8 * kept(vectors, uniform)


def test_positives_count():
    """Rows whose u are noise and whose v are in clusters: only with v are the clusters found."""
    (_, v), own = views(240, 12, noise=0.2)
    u = normalize(torch.randn(240, 16, generator=seeded(5)), dim=1)
    shares = {}
    for name, positives in (("with", v), ("without", None)):
        batches = own[planned(u, 20, positives=positives, scope="global")]
        shares[name] = float((batches == batches.mode(1, keepdim=True).values).float().mean())
    assert shares["with"] > 0.7 > 0.4 > shares["without"]


@pytest.mark.parametrize("scope", ["groups", "global"])
def test_a_newer_snapshot_moves_the_rows_that_are_left_and_a_resumed_run_follows(scope, clustered):
    def make(seed):
        return Spectral(203, 10, temperature=0.1, scope=scope, group=4, drop_last=False, counter=Counter.of(seed))

    first, second = (Snapshot.build(clustered(203, seed=s), factory="exact", version=s) for s in (0, 1))
    sampler = make(0)
    sampler.update(first)
    stream = iter(sampler)
    batches = [next(stream) for _ in range(7)]
    sampler.update(second)
    batches += [next(stream) for _ in range(2)]
    state = sampler.state_dict()
    rest = list(stream)
    assert sorted(row for batch in batches + rest for row in batch) == list(range(203))
    if scope == "global":
        assert kept(second.vectors, rest[:-1]) > 2 * kept(first.vectors, rest[:-1])
    other = make(0)
    other.update(second)
    other.load_state_dict(state)
    assert list(other) == rest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0: expected a value above 0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"scope": "local"}, "scope='local': expected one of groups, global"),
        ({"group": 0}, "group=0: expected at least 1"),
        ({"restarts": 0}, "restarts=0: expected at least 1"),
        ({"batch_size": 51}, "batch_size=51: expected 2..50"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Spectral(50, **{"batch_size": 8, "temperature": 0.1, **options})


@pytest.mark.gpu
@pytest.mark.parametrize("scope", ["groups", "global"])
def test_rows_may_be_on_a_gpu(scope, clustered):
    batches = planned(clustered(500).cuda(), 16, scope=scope, group=5)
    assert batches.flatten().unique().numel() == 31 * 16
    assert kept(clustered(500), batches) > kept(clustered(500), torch.arange(496).view(31, 16))
