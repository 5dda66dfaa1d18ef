"""Communities against METIS, clusters, and what of a batch nobody chose."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from negbank import Snapshot
from negbank.counter import Counter
from negbank.samplers.batches import Clusters, Communities, Knn, ProSampler, UniformBatches
from negbank.samplers.batches.communities import adjacency, equal_parts
from negbank.samplers.batches.graph import ProximityGraph
from negbank.samplers.batches.planned import mixed

N, B, K = 960, 64, 16


@pytest.fixture(scope="module")
def snapshot():
    """120 centres of 8 rows: a community of 16 cannot be better than two of them."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(120, 24, generator=generator).repeat_interleave(8, 0)
    rows = centres + 0.4 * torch.randn(N, 24, generator=generator)
    return Snapshot.build(rows[torch.randperm(N, generator=generator)], factory="exact")


def inside(groups, snapshot):
    """Mean similarity of two rows of a group."""
    found = []
    for group in groups:
        scores = snapshot.vectors[group] @ snapshot.vectors[group].T
        found.append((scores.sum() - scores.diagonal().sum()) / (len(group) * (len(group) - 1)))
    return float(torch.stack(found).mean())


def batches(sampler, snapshot):
    sampler.update(snapshot)
    return torch.tensor(list(sampler))


def communities_of(planned):
    """The communities that the batches are unions of, as they are handed out."""
    return planned.view(-1, K)


def test_communities_are_as_near_as_those_of_metis(snapshot):
    counter = Counter.of(3)
    ours = communities_of(batches(Communities(N, B, size=K, counter=counter), snapshot))
    theirs = communities_of(batches(Communities(N, B, size=K, partition="metis", width=15, counter=counter), snapshot))
    random = communities_of(batches(UniformBatches(N, B, counter=counter), snapshot))
    near = [inside(each, snapshot) for each in (ours, theirs, random)]
    assert near[0] > 0.9 * near[1] > 0.9 * 0.2
    assert abs(near[2]) < 0.02
    for found in (ours, theirs):
        assert sorted(found.flatten().tolist()) == list(range(N))


def test_a_batch_is_a_union_of_communities_that_are_no_neighbours_of_each_other(snapshot):
    found = batches(Communities(N, B, size=K), snapshot)
    assert inside(found, snapshot) < 0.4 * inside(communities_of(found), snapshot)


def test_the_nearest_can_be_left_out_of_the_graph(snapshot):
    sampler = Communities(N, B, size=K, partition="metis", width=5, skip=7)
    found = communities_of(batches(sampler, snapshot))
    assert sorted(found.flatten().tolist()) == list(range(N))
    ranked = snapshot.vectors @ snapshot.vectors.T
    expected = ranked.fill_diagonal_(-2).topk(12, 1).indices[:, 7:]
    assert torch.equal(sampler._graph.neighbors.long().sort(1).values, expected.sort(1).values)
    with pytest.raises(ValueError, match="take metis"):
        Communities(N, B, size=K, skip=3)
    with pytest.raises(ValueError, match="divisor of batch_size=64"):
        Communities(N, B, size=12)
    assert [Communities(N, size).size for size in (64, 30, 7, 37)] == [16, 15, 7, 37]


def test_the_graph_among_some_rows_has_every_edge_both_ways_and_once():
    generator = torch.Generator().manual_seed(1)
    neighbors = torch.stack([torch.randperm(39, generator=generator)[:5] for _ in range(40)])
    neighbors += neighbors >= torch.arange(40)[:, None]
    graph = ProximityGraph(neighbors.int(), torch.arange(40, dtype=torch.int32))
    rows = torch.arange(3, 35)
    starts, ends = adjacency(rows, graph)
    for i, row in enumerate(rows.tolist()):
        expected = {
            j
            for j, other in enumerate(rows.tolist())
            if other in neighbors[row].tolist() or row in neighbors[other].tolist()
        }
        found = ends[starts[i] : starts[i + 1]].tolist()
        assert len(found) == len(set(found))
        assert set(found) == expected


def test_parts_are_made_equal_by_moving_the_rows_least_like_theirs():
    vectors = normalize(torch.tensor([[1, 0], [1, 0.1], [1, 0.2], [0.5, 1], [0, 1], [0.1, 1.0]]), dim=1)
    found = equal_parts(torch.tensor([0, 0, 0, 0, 1, 1]), vectors, 3, 2)
    assert sorted(map(sorted, found.tolist())) == [[0, 1, 2], [3, 4, 5]]
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        vectors = normalize(torch.randn(47, 4, generator=generator), dim=1)
        part = torch.randint(9, (47,), generator=generator)
        found = equal_parts(part, vectors, 5, 9)
        assert found.shape == (9, 5)
        assert len(set(found.flatten().tolist())) == 45


def test_batches_are_of_one_cluster(snapshot):
    found = batches(Clusters(N, 8, size=16), snapshot)
    assert inside(found, snapshot) > 10 * abs(inside(batches(UniformBatches(N, 8), snapshot), snapshot))
    with pytest.raises(ValueError, match="at least batch_size=64"):
        Clusters(N, 64, size=32)


@pytest.mark.parametrize("make", [
    lambda chosen: Communities(N, B, size=K, chosen=chosen), lambda chosen: Knn(N, B, neighbors=70, chosen=chosen),
    lambda chosen: ProSampler(N, B, candidates=None, neighbors=10, chosen=chosen),
    lambda chosen: Clusters(N, B, size=64, chosen=chosen),
])  # fmt: skip
def test_what_is_not_chosen_is_random(make, snapshot):
    near = [inside(batches(make(chosen), snapshot), snapshot) for chosen in (1.0, 0.5, 0.0)]
    assert near[0] > 0.02
    assert near[1] == pytest.approx(0.25 * near[0], rel=0.35)  # pairs of which both were chosen for the batch
    assert abs(near[2]) < 0.1 * near[0]


def test_a_walk_that_comes_again_is_not_mixed():
    with pytest.raises(ValueError, match="could not change places"):
        ProSampler(N, B, candidates=None, neighbors=10, cover="walk", chosen=0.5)


def test_so_many_slots_of_every_batch_change_their_rows():
    generator = torch.Generator().manual_seed(0)
    whole = torch.arange(3200).view(100, 32)
    found = mixed(whole, 8, generator)
    assert sorted(found.flatten().tolist()) == list(range(3200))
    kept = (found == whole).sum(1)
    assert ((kept >= 24) & (kept <= 27)).all()  # a row may come back to its place
    for _ in range(2000):
        found = mixed(torch.arange(6).view(3, 2), 1, generator)
        assert sorted(found.flatten().tolist()) == list(range(6))
