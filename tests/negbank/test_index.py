from __future__ import annotations

import pytest
import torch

from negbank import ExactIndex, FaissIndex, Snapshot
from negbank.index.factory import choose_factory, require_trainable

FACTORIES = ["Flat", "IVF16,Flat", "HNSW16,Flat", "IVF16,SQfp16", "PCA8,IVF16,Flat"]


def naive(vectors, queries, k, rows=None, exclude=None):
    """Every score in float64, sorted by (−score rounded to float32 noise, id), one query at a time."""
    rows = torch.arange(len(vectors)) if rows is None else rows
    result = []
    for q, query in enumerate(queries.double()):
        banned = set() if exclude is None else set(exclude[q].tolist())
        scored = [(-round(float(query @ vectors[i].double()), 6), i) for i in rows.tolist() if i not in banned]
        result.append([i for _, i in sorted(scored)[:k]])
    return torch.tensor(result)


@pytest.mark.parametrize("factory", ["exact", "Flat"])
def test_exact_search_equals_the_naive_one(clustered, device, factory):
    x = clustered(300).to(device)
    index = ExactIndex(x) if factory == "exact" else FaissIndex(x, factory=factory)
    exclude = torch.stack((torch.arange(40), torch.full((40,), -1), torch.arange(100, 140)), 1).to(device)
    found = index.search(x[:40], 10, exclude=exclude)
    assert torch.equal(found.ids.cpu(), naive(x.cpu(), x[:40].cpu(), 10, exclude=exclude.cpu()))
    torch.testing.assert_close(found.scores, (x[:40, None] * x[found.ids]).sum(-1))


def test_exact_ties_go_to_the_smaller_id():
    x = torch.eye(4).repeat(25, 1)
    found = ExactIndex(x).search(x[:8], 7)
    assert torch.equal(found.ids, torch.arange(8)[:, None] % 4 + 4 * torch.arange(7))


@pytest.mark.parametrize("factory", FACTORIES)
def test_faiss_reports_the_recall_it_has(clustered, device, factory):
    x = clustered(3000, spread=0.8).to(device)
    index = FaissIndex(x, factory=factory, target_recall=0.9, recall_at=10)
    truth = ExactIndex(x).search(x[::10], 10).ids
    found = index.search(x[::10], 10)
    recall = (found.ids[:, :, None] == truth[:, None, :]).any(1).double().mean()
    assert abs(float(recall) - index.report.recall) < 0.08
    if not factory.startswith("PCA"):
        assert index.report.recall >= 0.9
    assert found.ids.min() >= 0
    assert (found.scores[:, 1:] <= found.scores[:, :-1]).all()


@pytest.mark.parametrize("factory", FACTORIES)
def test_never_padded_even_when_all_rows_are_asked_for(clustered, factory):
    x = clustered(120)
    index = FaissIndex(x, factory=factory.replace("IVF16", "IVF4"), target_recall=0.5, recall_at=5)
    found = index.search(x[:7], 119, exclude=torch.arange(7)[:, None])
    expected = torch.stack([torch.cat((torch.arange(i), torch.arange(i + 1, 120))) for i in range(7)])
    assert torch.equal(found.ids.sort(1).values, expected)


@pytest.mark.parametrize("factory", ["exact", "Flat", "IVF8,Flat"])
def test_only_the_given_rows_are_indexed(clustered, factory):
    x, rows = clustered(400), torch.arange(0, 400, 3)
    index = (
        ExactIndex(x, rows=rows) if factory == "exact" else FaissIndex(x, rows=rows, factory=factory, target_recall=1.0)
    )
    found = index.search(x[:20], 5)
    assert torch.equal(found.ids, naive(x, x[:20], 5, rows=rows))
    graph = index.graph(3)
    assert torch.equal(graph.ids, naive(x, x[rows], 3, rows=rows, exclude=rows[:, None]))


def test_results_do_not_depend_on_the_query_batch(clustered):
    x = clustered(2000, dim=32)
    for index in (ExactIndex(x), FaissIndex(x, factory="Flat"), FaissIndex(x, factory="IVF16,Flat")):
        whole = index.search(x[:64], 20)
        parts = [index.search(part, 20) for part in x[:64].split(5)]
        assert torch.equal(whole.ids, torch.cat([p.ids for p in parts]))
        assert torch.equal(whole.scores, torch.cat([p.scores for p in parts]))


def test_cells_partition_the_rows(clustered):
    x, rows = clustered(900), torch.arange(0, 900, 2)
    cells = FaissIndex(x, rows=rows, factory="IVF10,Flat").cells
    assert cells.centroids.shape == (10, 16)
    assert (cells.assignment[1::2] == -1).all()
    assert torch.equal(torch.bincount(cells.assignment[rows], minlength=10), cells.sizes)
    assert int(cells.sizes.sum()) == len(rows)
    nearest = (x[rows] @ cells.centroids.T).argmax(1)
    assert (nearest == cells.assignment[rows]).double().mean() > 0.99


def test_a_warm_start_keeps_recall_and_one_that_measures_badly_is_given_up(clustered, monkeypatch):
    x = clustered(6000, dim=32, clusters=60)
    old = FaissIndex(x, factory="IVF60,Flat", recall_at=10)
    drifted = torch.nn.functional.normalize(
        x + 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)), dim=1
    )
    warm = FaissIndex(drifted, factory="IVF60,Flat", recall_at=10, warm=old)
    assert warm.report.start == "warm"
    assert warm.report.recall >= 0.95
    # By imbalance: nothing is as even as 1. By recall: an old index of one list searched with nprobe 1 allows 2.
    monkeypatch.setattr("negbank.index.faiss.MAX_IMBALANCE", 1.0)
    assert FaissIndex(drifted, factory="IVF60,Flat", recall_at=10, warm=old).report.start == "cold after warm"
    monkeypatch.undo()
    blurred = clustered(6000, dim=32, clusters=1, spread=3.0, seed=9)
    lax = FaissIndex(blurred, factory="IVF60,Flat", recall_at=10, target_recall=0.01)
    assert lax.report.nprobe == 1
    assert FaissIndex(blurred, factory="IVF60,Flat", recall_at=10, warm=lax).report.start == "cold after warm"


def test_an_index_is_the_same_for_the_same_seed(clustered):
    x = clustered(2000)
    a, b = (FaissIndex(x, factory="IVF20,Flat", seed=3) for _ in range(2))
    assert torch.equal(a.cells.centroids, b.cells.centroids)
    assert torch.equal(a.search(x, 5).ids, b.search(x, 5).ids)


def test_auto_chooses_by_size_and_device():
    cpu = torch.device("cpu")
    assert choose_factory(4_000, 128, cpu) == "Flat"
    assert choose_factory(100_000, 128, cpu) == "IVF1265,Flat"
    assert choose_factory(100_000, 128, torch.device("cuda")) == "Flat"
    assert choose_factory(20_000_000, 256, cpu).endswith("SQfp16")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: FaissIndex(x, factory="IVFX"), "factory='IVFX'"),
        (lambda x: FaissIndex(x, factory="IVF500,Flat"), "500 lists for 50 rows"),
        (lambda x: FaissIndex(x, target_recall=0.0), "target_recall=0.0"),
        (lambda x: FaissIndex(x).search(x[:2], 51), "k=51"),
        (lambda x: ExactIndex(x).search(x[:2], 50, exclude=torch.zeros(2, 1, dtype=torch.int64)), "k=50"),
        (lambda x: ExactIndex(x).search(x[:2], 0), "k=0"),
    ],
)
def test_bad_input_is_named(clustered, call, message):
    with pytest.raises(ValueError, match=message):
        call(clustered(50))


@pytest.mark.parametrize("index", [ExactIndex, FaissIndex])
def test_no_queries_give_no_neighbours(clustered, index):
    assert index(clustered(50)).search(torch.empty(0, 16), 3).ids.shape == (0, 3)


@pytest.mark.parametrize(
    "factory",
    ["IVF9999,Flat", "IVF8,Flat", "PQ8x12", "PQ4x4", "IVF8,PQ4x10", "IVF8,PQ4x4", "OPQ4,IVF8,PQ4x4", "OPQ4,IVF8,PQ4x10",
     "PCA32,Flat", "PCA8,IVF8,Flat", "IDMap,Flat", "HNSW16", "SQ8", "IVF8,SQ4", "IVF8,PQ4x4fs", "IVF601,Flat", "RQ2x4",
     "IVF600,Flat", "Flat", "auto", "exact", "PQ4x10", "PQ5", "nonsense"],
)  # fmt: skip
def test_what_cannot_be_built_is_known_before_there_are_rows(clustered, factory):
    """`require_trainable` refuses what `FaissIndex` or Faiss would, and nothing else."""
    x = clustered(600)
    try:
        Snapshot.build(x, factory=factory, recall_at=4)
    except (ValueError, RuntimeError):
        with pytest.raises(ValueError, match=rf"factory='{factory}': .*(use at most 15|take auto, exact, or one)"):
            require_trainable(factory, 600, 16)
    else:
        require_trainable(factory, 600, 16)


@pytest.mark.parametrize("seed", [0, 2**31 - 2, 2**31 - 1, 2**40, 2**62 - 1])
def test_a_seed_of_a_run_is_one_of_an_index(clustered, seed):
    """Faiss's own seeds have 31 bits; different ones give different cells."""
    x = clustered(600)
    cells = FaissIndex(x, factory="IVF8,Flat", seed=seed).cells
    assert torch.equal(FaissIndex(x, factory="IVF8,Flat", seed=seed).cells.centroids, cells.centroids)
    assert not torch.equal(
        FaissIndex(x, factory="IVF8,Flat", seed=seed - 1 if seed else 1).cells.centroids, cells.centroids
    )
