from __future__ import annotations

import itertools
import pickle
import subprocess
import sys

import pytest
import torch

from negbank import ExactIndex, FaissIndex
from negbank.index import cell_join as joining
from negbank.index import exact_graph as exact
from negbank.index import search as searching
from negbank.index.cell_join import cell_join
from negbank.index.contract import by_score_then_id, exact_scores, sorted_in_torch
from negbank.index.exact_graph import exact_graph, rounds
from negbank.index.kmeans import kmeans
from negbank.index.products import Products
from negbank.index.search import exact_search
from negbank.index.shortlist import Shortlist, shortlist

DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(params=["compiled", "torch"])
def way(request, monkeypatch):
    """Both ways to a shortlist on the CPU: the compiled one, and the one for other devices."""
    if request.param == "torch":
        monkeypatch.setattr(Shortlist, "devices", ())
    return request.param


def signs(rows, dim=16, seed=0):
    """Unit rows of ±1/√D, D a power of 4: float32 scores are exact, and most of them are ties."""
    generator = torch.Generator().manual_seed(seed)
    return (2.0 * torch.randint(2, (rows, dim), generator=generator) - 1) / dim**0.5


def oracle(vectors, k, rows=None):
    """The graph from every score in float64, by (−score, id)."""
    rows = torch.arange(len(vectors)) if rows is None else rows
    scores = vectors[rows].double() @ vectors[rows].double().T
    scores.fill_diagonal_(-torch.inf)
    return rows[scores.argsort(dim=1, descending=True, stable=True)[:, :k]]


def every_score(vectors, k):
    """The graph from the float32 score of every pair."""
    ids = torch.arange(len(vectors)).repeat(len(vectors), 1)
    whole = by_score_then_id(ids, exact_scores(vectors, vectors, ids).fill_diagonal_(-torch.inf))
    return whole.ids[:, :k], whole.scores[:, :k]


def assert_same(graph, expected):
    ids, scores = graph
    assert torch.equal(ids, expected[0])
    assert torch.equal(scores, expected[1])


def normalised(vectors):
    return torch.nn.functional.normalize(vectors, dim=1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [1, 7, 100, 399])
def test_exact_graph_equals_float64_with_ties(way, dtype, k):
    x = torch.cat((signs(200), signs(150, seed=1), signs(50)))  # 50 rows twice
    graph = exact_graph(x, None, k, dtype=dtype)
    assert torch.equal(graph.ids, oracle(x, k))
    assert torch.equal(graph.scores, (x[:, None] * x[graph.ids]).sum(-1))
    assert graph.report.method == "exact"


def random(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


DATA = {
    "noise": lambda: normalised(random((1500, 24))),
    "around one direction": lambda: normalised(random((1500, 24)) * 0.02 + random((1, 24), 1)),
    "all but one point": lambda: normalised(random((1500, 24)) * 1e-4 + random((1, 24), 1)),
    "each row five times": lambda: normalised(random((300, 24))).repeat(5, 1),
    "one row": lambda: normalised(random((1, 24))).repeat(900, 1),
    "two poles": lambda: normalised(torch.cat((random((700, 24)), -random((700, 24))))),
    "against the rest": lambda: normalised(torch.cat((random((1200, 24)) * 0.1 + 1, random((9, 24)) * 0.1 - 1))),
    "an axis each": lambda: torch.eye(24).repeat(40, 1),
    "on a circle": lambda: normalised(random((1500, 2))),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
def test_exact_graph_equals_scoring_every_pair(way, data, dtype):
    x = data()
    assert_same(exact_graph(x, None, 40, dtype=dtype), every_score(x, 40))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [2, 3, 5, 33])
def test_exact_graph_of_few_rows(way, rows, dtype):
    x = signs(rows)
    for k in {1, rows - 1}:
        assert torch.equal(exact_graph(x, None, k, dtype=dtype).ids, oracle(x, k))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tile", "memory"), [(1024, 1 << 30), (300, 1 << 30), (128, 1 << 21), (97, 1)])
def test_exact_graph_is_the_same_for_any_block(clustered, monkeypatch, tile, memory, dtype):
    x = clustered(2000, dim=24, clusters=30)
    expected = every_score(x, 30)
    monkeypatch.setattr(exact, "TILE", tile)
    monkeypatch.setattr(searching, "TILE", tile)
    monkeypatch.setattr(exact, "ORDER_FROM", 1000)
    assert_same(exact_graph(x, None, 30, dtype=dtype, memory=memory), expected)


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_exact_graph_is_exact_where_float32_products_are_not(clustered, precision):
    x = clustered(1500, dim=64)
    expected = every_score(x, 20)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        assert_same(exact_graph(x, None, 20, dtype=torch.float32), expected)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_search_equals_scoring_every_row(way, clustered, dtype):
    x, queries = clustered(1700, dim=24), 3 * clustered(90, dim=24, seed=1)
    ids = torch.arange(1700).repeat(90, 1)
    whole = by_score_then_id(ids, exact_scores(x, queries, ids))
    assert_same(exact_search(x, queries, 60, dtype=dtype), (whole.ids[:, :60], whole.scores[:, :60]))
    assert_same(exact_search(x, queries, 60, dtype=dtype, memory=1), (whole.ids[:, :60], whole.scores[:, :60]))


@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
def test_no_product_is_further_from_its_score_than_the_slack_says(data):
    x = data()
    scores = x.double() @ x.double().T
    for dtype in DTYPES:
        products = Products(x, dtype)
        near = products.left.double() @ products.right.double().T
        if dtype == torch.bfloat16:
            near += x.mean(0).double().square().sum()
        assert ((near - scores).abs().amax(1) <= products.slack / 2).all()
        order = torch.arange(len(x)).flip(0)
        assert torch.equal(Products(x, dtype, order=order).slack.flip(0), products.slack)
    if data is DATA["noise"]:  # the bound is of use, and needs its first two terms
        assert products.slack.max() < 0.02
        assert (near - scores).abs().max() > 24 * 40 * 2**-24


@pytest.mark.parametrize("k", [1, 5, 64, 300])
def test_shortlist_holds_what_is_within_the_slack_and_no_more(k):
    products, slack = random((40, 300)), torch.linspace(0, 2, 40)
    listed = shortlist(products, k, slack)
    for row, found, spare in zip(products, listed, slack):
        wanted = (row >= row.sort(descending=True).values[k - 1] - spare).nonzero().flatten()
        assert torch.equal(found[found >= 0].sort().values, wanted)


def test_order_is_by_score_then_id_with_zeros_of_both_signs():
    ids = torch.stack([torch.randperm(60, generator=torch.Generator().manual_seed(i)) for i in range(5)])
    scores = random((5, 60)).mul(3).round().div(3)
    by_id = ids.argsort(1)
    first = by_id.gather(1, scores.gather(1, by_id).argsort(dim=1, descending=True, stable=True))
    for order in (by_score_then_id, sorted_in_torch):
        assert_same(order(ids, scores, 41), (ids.gather(1, first)[:, :41], scores.gather(1, first)[:, :41]))
    assert torch.signbit(scores[scores == 0]).any()


def test_every_block_meets_every_other_once():
    for count in range(1, 9):
        blocks = [slice(i, i + 1) for i in range(count)]
        played = [[{a.start, b.start} for a, b in pairs] for pairs in rounds(blocks)]
        assert all(len(set().union(*pairs)) == 2 * len(pairs) for pairs in played)
        met = sorted(sorted(pair) for pairs in played for pair in pairs)
        assert met == [list(pair) for pair in itertools.combinations(range(count), 2)]


def recall(found, truth):
    return float((found[:, :, None] == truth[:, None, :]).any(1).double().mean())


@pytest.fixture
def joined(monkeypatch):
    """Cell joins whatever the number of rows, and however little they save."""
    monkeypatch.setattr(joining, "EXACT_BELOW", {})
    monkeypatch.setattr(joining, "WORTH", 1.0)


@pytest.mark.parametrize("spread", [0.7, 0.8])
def test_cell_join_has_the_recall_it_reports(way, clustered, joined, monkeypatch, spread):
    x = clustered(6000, dim=32, clusters=200, spread=spread)
    truth = exact_graph(x, None, 20).ids
    graph = cell_join(x, None, 20, target_recall=0.9)
    assert graph.report.method == "cell join"
    assert graph.report.compared < 3000
    assert recall(graph.ids, truth) > 0.89
    assert abs(graph.report.recall - recall(graph.ids, truth)) < 0.015
    monkeypatch.setattr(joining, "_probes", lambda *_: 1)  # what a report of the target, not the result, would hide
    poor = cell_join(x, None, 20, target_recall=0.9)
    assert recall(poor.ids, truth) < 0.8
    assert abs(poor.report.recall - recall(poor.ids, truth)) < 0.03


def test_recall_is_not_measured_on_the_rows_that_cells_began_with(clustered, joined):
    """Neighbours of such rows are nearer: a sample of them promises too much, as it does with the same seed twice."""
    x = clustered(8000, dim=32, clusters=300, spread=1.0)
    truth = exact_graph(x, None, 20).ids
    assert recall(cell_join(x, None, 20, target_recall=0.9).ids, truth) > 0.89
    begun = kmeans(x, 125, generator=torch.Generator().manual_seed(0))
    assert recall(cell_join(x, None, 20, target_recall=0.9, cells=begun).ids, truth) < 0.88


def test_cell_join_loses_nothing_within_its_cells(way, clustered, joined, monkeypatch):
    x = clustered(3000, dim=24)
    monkeypatch.setattr(joining, "_probes", lambda near, *_: near.shape[1])
    graph = cell_join(x, None, 50, target_recall=0.9)
    assert_same(graph, every_score(x, 50))
    assert graph.report.recall == 1
    assert graph.report.compared == 3000


@pytest.mark.parametrize("memory", [1, 1 << 20])
def test_cell_join_is_the_same_for_any_memory(clustered, joined, memory):
    x = clustered(4000, dim=24, clusters=60)
    whole = cell_join(x, None, 30)
    parts = cell_join(x, None, 30, memory=memory)
    assert_same(parts, tuple(whole))
    assert parts.report[:-1] == whole.report[:-1]


def test_cell_join_of_cells_that_are_too_small_or_all_the_same(clustered, joined):
    x = clustered(2000, dim=24, clusters=100, spread=0.1)
    graph = cell_join(x, None, 500, target_recall=0.5)
    assert graph.ids.min() >= 0
    assert graph.ids.sort(1).values.diff(dim=1).min() > 0
    same = cell_join(x[:1].repeat(1000, 1), None, 10, target_recall=0.5)
    assert torch.equal(same.ids, oracle(torch.ones(1000, 1), 10))


def test_cell_join_gives_way_to_the_exact_graph(clustered, monkeypatch):
    x = normalised(random((3000, 32)))
    assert cell_join(x, None, 20).report.method == "exact"
    monkeypatch.setattr(joining, "EXACT_BELOW", {})
    graph = cell_join(x, None, 20)
    assert graph.report.method == "exact"
    assert_same(graph, every_score(x, 20))
    x = clustered(3000, dim=32, spread=0.3)
    assert cell_join(x, None, 20).report.method == "cell join"
    assert cell_join(x, None, 20, target_recall=1.0).report.method == "exact"


INDEXES = {
    "exact": lambda x, rows: ExactIndex(x, rows=rows),
    "Flat": lambda x, rows: FaissIndex(x, rows=rows, factory="Flat"),
    "IVF16,Flat": lambda x, rows: FaissIndex(x, rows=rows, factory="IVF16,Flat"),
    "IVF2,Flat": lambda x, rows: FaissIndex(x, rows=rows, factory="IVF2,Flat"),
    "HNSW16,Flat": lambda x, rows: FaissIndex(x, rows=rows, factory="HNSW16,Flat"),
}


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("kind", INDEXES)
def test_the_contract_of_a_graph(clustered, device, joined, kind, partial):
    x = clustered(2500, dim=24, clusters=40).to(device)
    rows = torch.arange(0, 2500, 2, device=device) if partial else None
    index = INDEXES[kind](x, rows)
    graph = index.graph(25, target_recall=0.95)
    own = torch.arange(2500, device=device) if rows is None else rows
    ids, scores = graph
    assert ids.shape == scores.shape == (len(own), 25)
    assert torch.isin(ids, own).all()
    assert (ids != own[:, None]).all()
    assert ids.sort(1).values.diff(dim=1).min() > 0
    assert torch.equal(scores, exact_scores(x, x[own], ids))
    assert_same(graph, tuple(by_score_then_id(ids, scores)))
    found = recall(ids.cpu(), oracle(x.cpu(), 25, None if rows is None else rows.cpu()))
    assert found > 0.94
    assert abs(found - graph.report.recall) < 0.03
    assert graph.report.rows == len(own)
    assert graph.report.cells == {"IVF16,Flat": 16, "exact": None, "Flat": None}.get(kind, len(own) // 64)


def test_a_graph_keeps_its_report_and_prints_it(clustered):
    graph = ExactIndex(clustered(50)).graph(3)
    again = pickle.loads(pickle.dumps(graph))
    assert again.report == graph.report
    assert_same(again, tuple(graph))
    assert str(graph.report).startswith("exact graph of 50 rows: recall@3 1.0000, 49 rows compared with each, in ")


PEAK = """
import sys, torch
from negbank.index.exact_graph import exact_graph
from negbank.index.cell_join import cell_join
torch.set_num_threads(2)
vectors = torch.nn.functional.normalize(torch.randn(24_000, 64, generator=torch.Generator().manual_seed(0)), dim=1)
vectors[120:] = vectors[torch.arange(120, 24_000) % 120] + 0.05 * vectors[120:]
vectors = torch.nn.functional.normalize(vectors, dim=1)
method = {"exact": exact_graph, "cell join": cell_join}[sys.argv[1]]
method(vectors[:21_000], None, 20)
def held(name):
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(name))
before = held("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
graph = method(vectors, None, 100, memory=int(sys.argv[2]))
assert graph.report.method == sys.argv[1], graph.report
print(held("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize("method", ["exact", "cell join"])
def test_memory_is_bounded_by_its_argument(method):
    result, copy, tiles = 24_000 * 100 * 12, 24_000 * 70 * 2 * 2, 32 << 20
    peaks = []
    for memory in (16 << 20, 1 << 30):
        command = [sys.executable, "-c", PEAK, method, str(memory)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks.append(int(done.stdout))
    assert peaks[0] < result + copy + tiles + (16 << 20)
    if method == "exact":  # which takes more where it may
        assert peaks[1] > peaks[0] + (16 << 20)


@pytest.mark.parametrize("index", [ExactIndex, FaissIndex])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k=0"),
        ({"k": 50}, "k=50: an index of 50 rows"),
        ({"k": 3, "target_recall": 0.0}, "target_recall=0.0"),
        ({"k": 3, "target_recall": 1.5}, "target_recall=1.5"),
    ],
)
def test_bad_input_is_named(clustered, index, options, message):
    with pytest.raises(ValueError, match=message):
        index(clustered(50)).graph(**options)
