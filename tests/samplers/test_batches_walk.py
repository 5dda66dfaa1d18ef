"""Knn and ProSampler against literal readings of what they say, and the proximity graph against its exact law."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
import torch
from scipy.stats import chi2_contingency, hypergeom

from negbank import Snapshot, counter
from negbank.samplers.batches import Knn, ProSampler
from negbank.samplers.batches.graph import ProximityGraph, candidate_graph, index_graph


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def snapshot(num_rows, *, dim=5, seed=0, **options):
    return Snapshot.build(torch.randn(num_rows, dim, generator=seeded(seed)), factory="exact", **options)


def similarity(bank):
    return (bank.vectors @ bank.vectors.T).fill_diagonal_(-torch.inf)


class Given(ProSampler):
    """ProSampler on a graph of the test's own, (N, K) ids."""

    given: torch.Tensor

    def prepare(self, snapshot, generator):
        self._graph = ProximityGraph(self.given.to(torch.int32), torch.arange(len(self.given), dtype=torch.int32))


def on_graph(neighbors, batch_size, **options):
    options = {"restart_min": 0.0, "restart_decay": 0.0, "neighbors": 1, "candidates": None, **options}
    sampler = Given(len(neighbors), batch_size, **options)
    sampler.given = neighbors
    sampler.prepare(None, None)
    return sampler


def others(num_rows, k):
    """A random graph: k distinct ids of other rows for each of N, (N, k)."""
    ids = torch.stack([torch.randperm(num_rows - 1, generator=seeded(i))[:k] for i in range(num_rows)])
    return ids + (ids >= torch.arange(num_rows)[:, None])


# The graph


def kept_with(rank, others, candidates, k):
    """P(j ∈ N_i) for the row with `rank` rows nearer to i among `others`."""
    return candidates / others * hypergeom(others - 1, rank, candidates - 1).cdf(k - 1)


@pytest.mark.parametrize("block", [1, 4, 7, 30])
def test_sharing_candidates_leaves_the_law_of_each_rows_neighbours(block):
    bank, draws, candidates, k = snapshot(30), 3000, 8, 3
    generator, counts = seeded(), torch.zeros(30, 30)
    for _ in range(draws):
        graph = candidate_graph(bank, candidates, k, generator=generator, block=block)
        counts.scatter_add_(1, graph.neighbors.long(), torch.ones(30, k))
    assert counts.diagonal().max() == 0
    by_rank = counts.gather(1, similarity(bank).argsort(1, descending=True)[:, :29])

    def worst(m):
        p = torch.tensor([kept_with(rank, 29, m, k) for rank in range(29)])
        seldom = p * draws < 20
        return float(((by_rank - draws * p) / (draws * p * (1 - p)).sqrt())[:, ~seldom].abs().max())

    assert worst(candidates) < 4.8  # the largest of about 700 standard normals
    assert worst(candidates - 1) > 6  # what one candidate less, a row offered to itself, would look like


def test_rows_of_a_block_choose_among_the_same_candidates():
    bank, draws, generator = snapshot(30), 4000, seeded()
    same = {block: 0 for block in (1, 10)}
    for block in same:
        for _ in range(draws):
            graph = candidate_graph(bank, 6, 6, generator=generator, block=block).neighbors
            same[block] += set(graph[0].tolist()) == set(graph[1].tolist())
    # in one block 9 times of 29; then alike if neither is of the 7 offered, or the last of them is the one that is
    expected = 9 / 29 * (23 * 22 + 2 * 7 * 23 / 7) / (30 * 29)
    assert abs(same[10] - draws * expected) < 4 * math.sqrt(draws * expected)
    assert same[1] == 0


def test_every_row_is_offered_to_as_many_blocks():
    graph = candidate_graph(snapshot(64), 15, 15, generator=seeded(), block=4)  # 16 sets of 16: 4 permutations
    assert torch.bincount(graph.neighbors.flatten().long(), minlength=64).max() <= 4 * 4


@pytest.mark.parametrize(("candidates", "k"), [(1, 1), (5, 5), (39, 7), (39, 39)])
def test_a_graph_over_the_rows_held(candidates, k):
    written = torch.arange(40) % 3 != 0
    bank = snapshot(40, written=written)
    graph = candidate_graph(bank, candidates, k, generator=seeded())
    held = written.nonzero().flatten()
    assert graph.neighbors.shape == (26, min(k, 25))
    assert bool(written[graph.neighbors.long()].all())
    assert (graph.neighbors != held[:, None]).all()
    assert all(len(set(line)) == len(line) for line in graph.neighbors.tolist())
    assert graph.line[held].tolist() == list(range(26))
    assert (graph.line[~written] == -1).all()


def test_all_others_as_candidates_give_the_index_graph():
    bank = snapshot(200)
    drawn = candidate_graph(bank, 199, 10, generator=seeded()).neighbors.sort(1).values
    assert drawn.equal(index_graph(bank, 10).neighbors.sort(1).values)


# The walk


def literal(neighbors, batch_size, alpha, used, rng):
    """Algorithm 1 and 2 of the paper for one batch: walk with restart until B distinct nodes are visited.

    Used rows are left out of the graph; a walk without a neighbour left, or that finds nothing for long, jumps.
    """
    unused = [i for i in range(len(neighbors)) if i not in used]
    batch: list[int] = []
    start = None
    while len(batch) < batch_size:
        if start is None:
            start = current = rng.choice([i for i in unused if i not in batch])
            batch.append(start)
            found, moves = 1, 0
            continue
        if rng.random() < alpha:
            current = start
            continue
        choices = [j for j in neighbors[current] if j not in used]
        if not choices:
            start, current = (None, current) if current == start else (start, start)
            continue
        current, moves = rng.choice(choices), moves + 1
        if current not in batch:
            batch.append(current)
            found, moves = found + 1, 0
        elif moves >= 16 * found / max(1 - alpha, 1 / 16):
            start = None
    return batch


def alike(first, second, rare=30):
    """p-value of two samples (Counters) having one law; outcomes rarer than `rare` in all count as one."""
    keys = [key for key in first | second if first[key] + second[key] >= rare]
    table = [[sample[key] for key in keys] for sample in (first, second)]
    table = [[*line, sample.total() - sum(line)] for line, sample in zip(table, (first, second))]
    table = [list(column) for column in zip(*table) if sum(column)]
    return float(chi2_contingency(table).pvalue)


@pytest.mark.parametrize("cover", ["walk", "epoch"])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.8])
def test_a_batch_has_the_law_of_the_paper(alpha, cover):
    neighbors, draws, rng = others(10, 3), 20000, random.Random(0)
    sampler = on_graph(neighbors, 4, restart=alpha, cover=cover)
    generator, rows = seeded(), torch.arange(10)
    ours = Counter(tuple(sorted(sampler.plan(rows, 1, None, generator)[0].tolist())) for _ in range(draws))

    def paper(alpha):
        return Counter(tuple(sorted(literal(neighbors.tolist(), 4, alpha, (), rng))) for _ in range(draws))

    assert alike(ours, paper(alpha)) > 1e-3
    assert alike(ours, paper(0.5)) < 1e-6


def test_disjoint_walks_have_the_law_of_a_literal_loop():
    neighbors, draws, rng = others(12, 3), 10000, random.Random(0)
    sampler = on_graph(neighbors, 3, restart=0.2)
    generator, rows = seeded(), torch.arange(12)
    epochs = [sampler.plan(rows, 4, None, generator).tolist() for _ in range(draws)]
    expected = []
    for _ in range(draws):
        used: list[int] = []
        for _ in range(4):
            used += literal(neighbors.tolist(), 3, 0.2, used, rng)
        expected.append([used[at : at + 3] for at in range(0, 12, 3)])
    for b in range(4):
        ours = Counter(tuple(sorted(epoch[b])) for epoch in epochs)
        assert alike(ours, Counter(tuple(sorted(epoch[b])) for epoch in expected)) > 1e-3
    first = Counter(tuple(sorted(epoch[0])) for epoch in epochs)
    assert alike(first, Counter(tuple(sorted(epoch[2])) for epoch in expected)) < 1e-6


def test_overlapping_walks_start_where_no_batch_has_been():
    neighbors, draws, rng = others(12, 3), 5000, random.Random(0)
    sampler = on_graph(neighbors, 4, restart=0.2, cover="walk")
    generator, rows = seeded(), torch.arange(12)
    ours = Counter(len(sampler.plan(rows, 3, None, generator).unique()) for _ in range(draws))

    def covered(everywhere):
        seen: set[int] = set()
        for _ in range(3):
            batch = literal(neighbors.tolist(), 4, 0.2, (), rng)
            while not everywhere and batch[0] in seen:
                batch = literal(neighbors.tolist(), 4, 0.2, (), rng)
            seen |= set(batch)
        return len(seen)

    assert alike(ours, Counter(covered(False) for _ in range(draws))) > 1e-3
    assert alike(ours, Counter(covered(True) for _ in range(draws))) < 1e-6


@pytest.mark.parametrize("cover", ["walk", "epoch"])
def test_restarts_alone_give_neighbourhoods(cover):
    bank = snapshot(60)
    sampler = ProSampler(60, 6, candidates=20, neighbors=5, restart=1.0, restart_decay=0.0, cover=cover)
    sampler.update(bank)
    first = list(sampler)
    hoods = [{i, *line} for i, line in enumerate(sampler._graph.neighbors.tolist())]
    whole = [any(set(batch) <= hood for hood in hoods) for batch in first]
    assert all(whole) if cover == "walk" else any(whole)


def pairs(make, bank, epochs):
    """How often each pair of rows meets, as standard normal deviates from uniform batches: (pairs,)."""
    together = torch.zeros(12, 12)
    for seed in range(epochs):
        sampler = make(seed)
        sampler.update(bank)
        for batch in sampler:
            rows = torch.tensor(batch)
            together[rows[:, None], rows] += 1
    first, second = torch.triu_indices(12, 12, 1)
    met = together[first, second]
    p = 3 * 6 / 66
    return (met - epochs * p) / math.sqrt(epochs * p * (1 - p))


def test_one_candidate_gives_uniform_batches():
    bank = snapshot(12, dim=2)

    def make(candidates):
        return lambda seed: ProSampler(12, 4, candidates=candidates, neighbors=1, counter=counter.Counter.of(seed))

    assert pairs(make(1), bank, 2000).abs().max() < 4
    assert pairs(make(3), bank, 500).abs().max() > 6


def test_the_restart_probability_falls_to_its_minimum():
    bank = snapshot(60)

    def epoch(number, **options):
        sampler = ProSampler(60, 8, candidates=20, neighbors=5, **options)
        sampler.update(bank)
        sampler.set_epoch(number)
        return list(sampler)

    assert epoch(7, restart=0.3) == epoch(7, restart=0.3 - 0.14, restart_decay=0.0) != epoch(7, restart=0.2)
    assert epoch(50, restart=0.3) == epoch(50, restart=0.05, restart_decay=0.0)
    assert epoch(3, restart=0.3, restart_decay=0.1, restart_min=0.0) == epoch(
        3, restart=0.0, restart_decay=0.0, restart_min=0.0
    )


@pytest.mark.parametrize("cover", ["epoch", "walk"])
@pytest.mark.parametrize(
    "neighbors",
    [
        torch.arange(40)[:, None],  # self-loops alone
        torch.arange(40)[:, None] // 4 * 4 + torch.arange(4),  # components of 4, self-loops
        (torch.arange(40)[:, None] + 1) % 40,  # a ring
        torch.zeros(40, 3, dtype=torch.int64),  # a star, every edge three times
    ],
)
def test_a_walk_that_is_stuck_goes_on_elsewhere(neighbors, cover):
    for restart in (0.0, 0.2, 1.0):
        sampler = on_graph(neighbors, 12, restart=restart, cover=cover)
        batches = sampler.plan(torch.arange(40), 3, None, seeded())
        assert all(len(set(batch)) == 12 for batch in batches.tolist())
        assert cover == "walk" or len(batches.unique()) == 36


@pytest.mark.parametrize("candidates", [None, 10])
def test_batches_larger_than_a_component_are_filled(candidates):
    far = torch.eye(10).repeat_interleave(5, 0)  # ten places of five equal rows
    bank = Snapshot.build(far, factory="exact")
    for cover in ("epoch", "walk"):
        sampler = ProSampler(50, 20, candidates=candidates, neighbors=4, cover=cover)
        sampler.update(bank)
        for batches in (list(sampler), list(sampler)):
            assert [len(set(batch)) for batch in batches] == [20, 20]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"candidates": 50}, "candidates=50: expected 1..49"),
        ({"candidates": 0}, "candidates=0: expected at least 1"),
        ({"candidates": 10, "neighbors": 11}, "neighbors=11: expected 1..10, .* raise candidates"),
        ({"candidates": None, "neighbors": 50}, "neighbors=50: expected 1..49"),
        ({"candidates": 10, "neighbors": 0}, "neighbors=0: expected at least 1"),
        ({"restart": 1.5}, "restart=1.5: expected at least 0 and at most 1"),
        ({"restart": 0.01}, "restart=0.01, restart_min=0.05: expected restart_min <= restart"),
        ({"restart_min": -0.1}, "restart_min=-0.1"),
        ({"restart_decay": -1.0}, "restart_decay=-1.0: expected at least 0"),
        ({"cover": "rows"}, "cover='rows': expected one of epoch, walk"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ProSampler(50, 8, **{"candidates": 20, "neighbors": 5, **options})


def test_a_graph_is_built_once_a_snapshot(monkeypatch):
    sampler, built = ProSampler(50, 8, candidates=20, neighbors=5), []
    prepare = sampler.prepare
    monkeypatch.setattr(sampler, "prepare", lambda *args: built.append(args[0]) or prepare(*args))
    bank = snapshot(50)
    sampler.update(bank)
    for _ in range(3):
        list(sampler)
    assert built == [bank]
    sampler.update(snapshot(50, seed=1))
    sampler.update(bank)
    assert built == [bank]
    list(sampler)
    assert built == [bank, bank]


# Knn


def test_the_first_batch_is_the_start_and_its_nearest():
    bank = snapshot(60)
    sampler = Knn(60, 8, neighbors=7)
    sampler.prepare(bank, seeded())
    nearest = similarity(bank).argsort(1, descending=True)
    for seed in range(20):
        first = sampler.plan(torch.arange(60), 1, bank, seeded(seed))[0]
        assert first[1:].tolist() == nearest[first[0], :7].tolist()


@pytest.mark.parametrize("neighbors", [1, 3, 59])
def test_an_epoch_grows_as_a_plain_loop_does(neighbors):
    bank, rows = snapshot(60), torch.arange(60)[torch.arange(60) % 10 != 4]
    sampler = Knn(60, 9, neighbors=neighbors)
    sampler.prepare(bank, seeded())
    nearest = similarity(bank).argsort(1, descending=True)[:, :neighbors].tolist()
    unused = rows[torch.randperm(len(rows), generator=seeded(3))].tolist()
    expected = []
    for _ in range(6):
        batch: list[int] = []
        grown = 0
        while len(batch) < 9:
            if grown == len(batch):
                batch.append(unused.pop(0))
                continue
            for j in nearest[batch[grown]]:
                if j in unused and len(batch) < 9:
                    batch.append(unused.pop(unused.index(j)))
            grown += 1
        expected.append(batch)
    assert sampler.plan(rows, 6, bank, seeded(3)).tolist() == expected


@pytest.mark.parametrize(("neighbors", "message"), [(0, "at least 1"), (50, "1..49")])
def test_neighbours_that_are_not_there_are_refused(neighbors, message):
    with pytest.raises(ValueError, match=f"neighbors={neighbors}: expected {message}"):
        Knn(50, 8, neighbors=neighbors)


def test_batches_of_neighbours_are_nearer_than_uniform_ones():
    centres = torch.randn(10, 16, generator=seeded()).repeat_interleave(40, 0)
    bank = Snapshot.build(centres + 0.8 * torch.randn(400, 16, generator=seeded(1)), factory="exact")

    def cosine(sampler):
        sampler.update(bank)
        z = bank.vectors[torch.tensor(list(sampler))]
        return float((z @ z.mT).mean())

    few, many = (ProSampler(400, 20, candidates=m, neighbors=20) for m in (20, 200))
    near = Knn(400, 20, neighbors=20)
    assert 2 * cosine(few) < cosine(many) < cosine(near)
