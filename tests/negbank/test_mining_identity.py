"""What counts as the same row, text, id or scorer: by content, never by which object holds it."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from negbank import Snapshot, mine_hard_negatives
from negbank.mining.identity import identity

RNG = np.random.default_rng(0)
CORPUS = RNG.standard_normal((30, 8)).astype(np.float32)
FEW = {"num_negatives": 4, "range_max": 12}


def brute(queries, corpus, forbidden, k=4):
    """The k best rows that are not forbidden to each query, by cosine in float64."""
    q, c = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries.astype(float), corpus.astype(float)))
    scores = q @ c.T
    for i, j in forbidden:
        scores[i, j] = -9
    return np.argsort(-scores, axis=1, kind="stable")[:, :k].tolist()


def lists(result):
    return [ids.tolist() for ids, _ in result]


def test_the_same_rows_are_the_corpus_itself_whatever_holds_them(tmp_path):
    np.save(tmp_path / "x.npy", CORPUS)
    (tmp_path / "link.npy").symlink_to(tmp_path / "x.npy")
    expected = brute(CORPUS, CORPUS, [(i, i) for i in range(30)])
    path, link = tmp_path / "x.npy", tmp_path / "link.npy"
    same = [
        (None, CORPUS), (CORPUS, CORPUS), (CORPUS.copy(), CORPUS), (torch.from_numpy(CORPUS), CORPUS),
        (path, path), (str(path), link), (CORPUS, path), (CORPUS.tolist(), (CORPUS[:9], CORPUS[9:])),
        (CORPUS, Snapshot.build(CORPUS)),
    ]  # fmt: skip
    for queries, corpus in same:
        result = mine_hard_negatives(queries, corpus, **FEW)
        assert lists(result) == expected
        assert [len(result.positives_of(i)[0]) for i in range(30)] == [0] * 30


def test_the_same_rows_under_ids_of_their_own_are_two_sides():
    names = [f"q{i}" for i in range(30)]
    result = mine_hard_negatives(CORPUS, CORPUS, [[]] * 30, query_ids=names, **FEW)
    assert lists(result) == brute(CORPUS, CORPUS, [])
    named = [f"d{i}" for i in range(30)]
    within = mine_hard_negatives(CORPUS, CORPUS, query_ids=named, corpus_ids=named, **FEW)
    assert lists(within) == [[f"d{j}" for j in row] for row in brute(CORPUS, CORPUS, [(i, i) for i in range(30)])]


def test_labels_alone_make_no_row_its_own_positive():
    result = mine_hard_negatives(None, CORPUS, groups=np.arange(30) % 3, **FEW)
    assert list(result.to("triplet")) == []
    assert not len(result.positive_ids)
    with pytest.raises(ValueError, match=r"queries \[0, 1, 2, 3\] have no positive to measure against"):
        mine_hard_negatives(None, CORPUS, groups=np.arange(30) % 3, relative_margin=0.1)


@pytest.mark.parametrize("index", [None, "IVF2,Flat"])
@pytest.mark.parametrize("copies", [1, 9, 29])
def test_ignored_rows_are_those_with_the_querys_embedding(index, copies):
    """However many there are, and from what scale: as many others come in their place."""
    corpus = np.concatenate((CORPUS, np.repeat(CORPUS[:1], copies, 0) * np.float32(7.3)))
    queries = CORPUS[:3] * np.float32(0.37)
    own = [(0, j) for j in (0, *range(30, 30 + copies))] + [(1, 1), (2, 2)]
    result = mine_hard_negatives(queries, corpus, [[]] * 3, ignore_identical=True, index=index, **FEW)
    assert lists(result) == brute(queries, corpus, own)
    kept = mine_hard_negatives(queries, corpus, [[]] * 3, index=index, **FEW)
    assert {j for row, (ids, _) in enumerate(kept) for j in ids.tolist() if (row, j) in own}
    padded = mine_hard_negatives(queries, corpus, [[]] * 3, ignore_identical=True, num_negatives=28, range_max=28,
                                 max_score=0.999999, shortfall="pad_random")  # fmt: skip
    assert not {(row, j) for row, (ids, _) in enumerate(padded) for j in ids.tolist()} & set(own)


def test_all_rows_identical_leave_nothing():
    result = mine_hard_negatives(CORPUS[:1], np.repeat(CORPUS[:1], 20, 0), [[]], ignore_identical=True, **FEW)
    assert lists(result) == [[]]
    with pytest.raises(ValueError, match="ignore_identical=True: compares exact scores"):
        mine_hard_negatives(CORPUS[:1], CORPUS, [[]], ignore_identical=True, exact=False)


def test_ignored_rows_are_those_with_the_querys_id():
    names, queries = [f"d{i}" for i in range(30)], CORPUS[:3] + np.float32(0.3)
    both = {"query_ids": ["d4", "d0", "new"], "corpus_ids": names, "ignore_identical": True}
    result = mine_hard_negatives(queries, CORPUS, [[]] * 3, **both, **FEW)
    assert lists(result) == [[names[j] for j in row] for row in brute(queries, CORPUS, [(0, 4), (1, 0)])]


def test_ignored_texts_are_the_querys_and_its_positives_under_any_id():
    queries, corpus = CORPUS[:3] + np.float32(0.3), CORPUS
    asked, texts = ["a", "b", "c"], [f"t{i}" for i in range(30)]
    texts[3], texts[9] = "a", "a"  # the first query itself, twice
    texts[5] = texts[6] = texts[7] = "same"  # the second's positive is row 6
    positives = [[1], [6], [2]]
    forbidden = [(0, 1), (0, 3), (0, 9), (1, 6), (1, 5), (1, 7), (2, 2)]
    result = mine_hard_negatives(queries, corpus, positives, ignore_identical=(asked, texts), **FEW)
    assert lists(result) == brute(queries, corpus, forbidden)
    with pytest.raises(ValueError, match="ignore_identical: 3 and 2 texts for 3 and 30 rows"):
        mine_hard_negatives(queries, corpus, positives, ignore_identical=(asked, ["x", "y"]))
    with pytest.raises(ValueError, match="ignore_identical: expected True, False, or a tuple"):
        mine_hard_negatives(queries, corpus, positives, ignore_identical="texts")


def up(q, c):
    return (q * 7 + c * 13) % 101 / 101.0


def down(q, c):
    return -((q * 7 + c * 13) % 101) / 101.0


class Weighted:
    def __init__(self, weight):
        self.weight = weight

    def __call__(self, q, c):
        return self.weight * up(q, c)


def closed(weight):
    return lambda q, c: weight * up(q, c)


def test_another_scorer_does_not_get_the_first_ones_result(tmp_path):
    queries = CORPUS[:3] + np.float32(0.3)
    arguments = {"positives": [[]] * 3, "out": tmp_path / "r", **FEW}
    first = mine_hard_negatives(queries, CORPUS, rescore=up, **arguments)
    assert lists(mine_hard_negatives(queries, CORPUS, rescore=up, **arguments)) == lists(first)
    with pytest.raises(ValueError, match=r"the folder holds another run .rescore="):
        mine_hard_negatives(queries, CORPUS, rescore=down, **arguments)


def test_a_scorer_is_told_by_what_it_computes_by():
    layer, other = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    apart = [
        up, down, Weighted(1.0), Weighted(2.0), closed(1.0), closed(2.0), closed(layer), closed(other),
        functools.partial(up, c=3), functools.partial(up, c=4), Weighted(np.arange(3)), Weighted(np.arange(4)),
        Weighted(2.0).__call__,
    ]  # fmt: skip
    assert len({identity(each) for each in apart}) == len(apart)
    assert identity(closed(2.0)) == identity(closed(2.0))
    assert identity(Weighted(2.0)) == identity(Weighted(2.0))
    before = identity(closed(layer))
    with torch.no_grad():
        layer.weight += 1
    assert identity(closed(layer)) != before
    assert identity(None) is None
    unknown = Weighted(open(__file__))  # noqa: SIM115
    with pytest.raises(ValueError, match=r"rescore: what .* computes by cannot be told .* attribute `fingerprint`"):
        identity(unknown)
    unknown.weight.close()
    unknown.fingerprint, known = "mine", Weighted(1.0)
    known.fingerprint = "mine"
    assert identity(unknown) == identity(known) != identity(Weighted(1.0))
