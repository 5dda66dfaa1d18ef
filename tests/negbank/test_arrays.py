"""Rows of any length, casts that change nothing, and what an index and the exclusions refuse."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from negbank import Exclusions, Snapshot, mine_hard_negatives
from negbank.bank import unit_rows
from negbank.proposals import Anchors

CORPUS = np.random.default_rng(0).standard_normal((12, 6)).astype(np.float32)
QUERIES = CORPUS[:3] + np.float32(0.1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rows_of_any_length_become_unit_rows(dtype):
    """Against the direction in extended precision, from the least numbers of a type to its largest."""
    limits, generator = torch.finfo(dtype), torch.Generator().manual_seed(0)
    for exponent in np.linspace(np.log2(limits.tiny), np.log2(limits.max) - 3, 12):
        rows = (torch.randn(20, 9, generator=generator, dtype=torch.float64) * 2.0**exponent).to(dtype)
        rows = rows.clamp(-limits.max, limits.max)
        exact = rows.double().numpy().astype(np.longdouble)
        exact /= np.sqrt((exact**2).sum(1, keepdims=True))
        assert np.abs(unit_rows(rows).numpy() - exact).max() < 3e-7
    assert torch.equal(unit_rows(torch.zeros(2, 3, dtype=dtype)), torch.zeros(2, 3))


def test_a_rows_bits_do_not_depend_on_what_shares_the_call(device):
    rows = torch.randn(40, 7, generator=torch.Generator().manual_seed(1)) * torch.logspace(-44, 36, 40)[:, None]
    rows = rows.to(device)
    assert torch.equal(unit_rows(rows), torch.stack([unit_rows(row) for row in rows]))
    plain = rows[(rows.norm(dim=1) > 1e-6) & (rows.norm(dim=1) < 1e6)]
    assert torch.equal(unit_rows(plain), torch.nn.functional.normalize(plain, dim=1))


@pytest.mark.parametrize("scale", [1e-300, 1e-40, 1e-13, 1e30, 1e300])
def test_scale_does_not_show_in_a_result(scale):
    expected = mine_hard_negatives(QUERIES.astype(float), CORPUS.astype(float), [[0], [1], [2]])
    found = mine_hard_negatives(QUERIES.astype(float) * scale, CORPUS.astype(float) * scale, [[0], [1], [2]])
    assert np.array_equal(found.ids, expected.ids)
    assert np.allclose(found.scores, expected.scores, atol=3e-7)


def test_no_score_is_above_one():
    """Of 4000 rows against copies of themselves, whose rounded lengths make some 1.0000001 uncut."""
    rows = np.random.default_rng(2).standard_normal((4000, 24)).astype(np.float32)
    unit = unit_rows(torch.from_numpy(rows)).double()
    assert ((unit * unit).sum(1).float() > 1).any()
    result = mine_hard_negatives(rows[:200], np.concatenate((rows[:200], -rows[:200])), num_negatives=1, range_max=399)
    assert result.positive_scores.max() == 1
    assert result.candidate_scores.min() == -1


def test_the_examples_of_positives():
    def read(positives, **more):
        result = mine_hard_negatives(QUERIES, CORPUS, positives, num_negatives=2, range_max=12, **more)
        return [result.positives_of(i)[0].tolist() for i in range(3)], result

    found, result = read({0: {0: 1, 5: 0}})
    assert found == [[0], [], []]
    assert 5 in result.candidate_ids[: result.candidate_indptr[1]]
    assert read({0: {0: 1, 5: 2}, 2: 4})[0] == [[0, 5], [], [4]]
    assert read([(0, 5), (1, 6), (2, 7)])[0] == read(np.array([(0, 5), (1, 6), (2, 7)]))[0] == [[5], [6], [7]]
    assert read([[0, 5], [6], []])[0] == read([[0, 5], (6,), {*()}])[0] == [[0, 5], [6], []]
    assert read([5, [6], 7])[0] == [[5], [6], [7]]
    assert read(sp.csc_matrix(([1, 0, 2], ([0, 0, 1], [5, 6, 7])), shape=(3, 12)))[0] == [[5], [7], []]
    names = pd.Series(list("abc"), dtype=object)
    assert read({"b": "r"}, query_ids=names, corpus_ids=list("pqrstuvwxyz-"))[0] == [[], ["r"], []]
    for two in ([[0, 5], [1, 6], [2, 7]], np.array([[0, 5], [1, 6], [2, 7]]).tolist()):
        with pytest.raises(ValueError, match="3 lists of two could be pairs, or two ids a row; give pairs as tuples"):
            read(two)
    with pytest.raises(ValueError, match=r"2 lists for 3 query_ids; give one a row, .* or pairs, as a list of"):
        read([[0, 5], [1, 6]])
    assert read([[5, 0], [9, 6], [7, 3]])[0] == [[5, 0], [9, 6], [7, 3]]  # 5 is no query: these are no pairs


def test_exclusions_take_what_the_miner_takes():
    labels = np.array([2**62, 2**62 + 1, -5, 2**62], dtype=np.int64)
    exclude = Exclusions(np.int64(4), groups=labels, positives={1: [3]}, forbidden=[False, False, False, False])
    found = exclude.allowed(torch.arange(4), torch.arange(4).expand(4, 4)).tolist()
    assert found == [[0, 1, 1, 0], [1, 0, 1, 0], [1, 1, 0, 1], [0, 1, 1, 0]]
    assert Exclusions(4, groups=["a", "b", "a", "c"]).count(torch.arange(4)).tolist() == [2, 3, 2, 3]
    for rows in (0, 2.0, True, None):
        with pytest.raises(ValueError, match="num_rows="):
            Exclusions(rows)
    beyond = torch.tensor([[2**63 - 1, 4, 1]])
    assert Exclusions(4).allowed(torch.tensor([0]), beyond).tolist() == [[False, False, True]]
    assert exclude.allowed(torch.tensor([0]), beyond).tolist() == [[False, False, True]]
    with pytest.raises(ValueError, match=r"ids: torch.uint64, expected torch.int64"):
        Exclusions(4).allowed(torch.tensor([0]), torch.tensor([[2**63]], dtype=torch.uint64))


@pytest.mark.parametrize("factory", ["exact", "Flat", "IVF2,Flat"])
def test_an_index_refuses_what_it_cannot_search_for(factory):
    index = Snapshot.build(CORPUS, factory=factory).index
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"queries: 1 row\(s\) hold NaN or infinity, the first at \[1\]"):
            index.search(torch.tensor([[1.0] * 6, [bad] * 6]), 2)
    with pytest.raises(ValueError, match=r"queries: torch.float32 of shape \(1, 5\), expected .* \(B, 6\)"):
        index.search(torch.ones(1, 5), 2)
    with pytest.raises(ValueError, match=r"queries: torch.float32 of shape \(6,\)"):
        index.search(torch.ones(6), 2)
    for k in (2.0, True, "2"):
        with pytest.raises(ValueError, match=r"k=.*: expected a whole number"):
            index.search(torch.ones(1, 6), k)
    expected = index.search(torch.from_numpy(QUERIES), 3).ids
    assert torch.equal(index.search(torch.from_numpy(QUERIES), np.int64(3)).ids, expected)
    assert torch.equal(index.search(QUERIES[:, ::-1].copy()[:, ::-1], 3).ids, expected)


def test_a_nan_query_is_no_anchor_of_a_proposal():
    from negbank.proposals import Nearest

    proposal = Nearest(Snapshot.build(CORPUS), k=3)
    with pytest.raises(ValueError, match="hold NaN or infinity"):
        proposal(Anchors(torch.tensor([0]), torch.full((1, 6), float("nan"))))


def test_numbers_of_numpy_are_numbers(tmp_path):
    arguments = {"num_negatives": np.int64(2), "range_max": np.int32(5), "relative_margin": np.float32(0.125)}
    found = mine_hard_negatives(QUERIES, CORPUS, seed=np.uint8(3), out=tmp_path / "r", **arguments)
    expected = mine_hard_negatives(QUERIES, CORPUS, num_negatives=2, range_max=5, relative_margin=0.125, seed=3)
    assert np.array_equal(found.ids, expected.ids)
    for name, value in {"num_negatives": 2.0, "range_max": 5.0, "range_min": True, "seed": 0.5}.items():
        with pytest.raises(ValueError, match=f"{name}={value}: expected a whole number"):
            mine_hard_negatives(QUERIES, CORPUS, **{name: value})
