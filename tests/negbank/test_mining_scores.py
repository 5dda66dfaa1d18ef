"""What a score is: one number on every path, device and processor, as docs/mining.md promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from negbank import Snapshot, mine_hard_negatives
from negbank.mining.inputs import Rows
from negbank.mining.search import NO_ROW, near_rows, scored, scores_of, summed


def unit(x: np.ndarray) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.as_tensor(x).float(), dim=-1)


def score_of(left: np.ndarray, right: np.ndarray) -> np.float32:
    """The score that docs/mining.md promises, in whole numbers."""
    total = sum(round(float(a) * float(b) * 2.0**51) for a, b in zip(left, right))
    return np.float32(min(max(total, -(2**51)), 2**51) / 2**51)


@pytest.mark.parametrize("dim", [1, 2, 3, 7, 8, 9, 16, 17, 64, 100, 128, 129, 1000])
def test_a_score_is_the_fixed_point_sum_rounded_once(dim, device):
    generator = np.random.default_rng(dim)
    rows, queries = (unit(generator.standard_normal((n, dim))) for n in (50, 6))
    places = torch.from_numpy(generator.integers(-1, 50, (6, 30)))
    expected = np.array([
        [-np.inf if j == NO_ROW else score_of(queries[i].numpy(), rows[j].numpy()) for j in places[i].tolist()]
        for i in range(6)
    ], dtype=np.float32)  # fmt: skip
    for found in (scored(rows, queries, places), summed(*(t.to(device) for t in (rows, queries, places)))):
        assert found.cpu().numpy().tobytes() == expected.tobytes()


@given(st.integers(1, 300), st.integers(0, 2**32 - 1))
def test_a_score_is_the_true_product_to_one_rounding(dim, seed):
    generator = np.random.default_rng(seed)
    rows = unit(generator.standard_normal((2, dim)) * np.exp(4 * generator.standard_normal(dim)))
    found = float(scored(rows[:1], rows[1:], torch.zeros(1, 1, dtype=torch.int64)))
    true = math.fsum(float(a) * float(b) for a, b in rows.T.tolist())
    assert abs(found - true) <= np.spacing(np.float32(abs(true))) / 2 + dim * 2.0**-52


def test_every_path_returns_the_same_numbers(tmp_path):
    """In memory, mapped, in float64 shards, by an index, a snapshot, as a positive, a candidate and random padding."""
    generator = np.random.default_rng(0)
    corpus = generator.standard_normal((600, 40)).astype(np.float32)
    queries = corpus[:50] + np.float32(0.3) * generator.standard_normal((50, 40)).astype(np.float32)
    np.save(tmp_path / "c.npy", corpus)
    q, c = unit(queries).numpy(), unit(corpus).numpy()
    sources = (corpus, tmp_path / "c.npy", tuple(np.array_split(corpus.astype(np.float64), 3)), Snapshot.build(corpus))
    seen = 0
    for source in (*sources, Snapshot.build(corpus, factory="IVF8,Flat")):
        for index in (None, "exact", "IVF8,Flat") if not isinstance(source, Snapshot) else (None,):
            result = mine_hard_negatives(
                queries, source, [[i] for i in range(50)], num_negatives=5, max_score=0.2, range_max=12,
                shortfall="pad_random", index=index,
            )  # fmt: skip
            assert result.random.any()
            for row in range(50):
                for ids, scores in (result[row], result.positives_of(row)):
                    assert scores.tolist() == [score_of(q[row], c[j]) for j in ids]
                    seen += len(ids)
    assert seen > 2500


def test_duplicates_are_decided_by_scores():
    """Bounds that lie on, and an ulp beside, the score of a pair."""
    generator = np.random.default_rng(1)
    corpus = generator.standard_normal((40, 24)).astype(np.float32)
    rows, everything = Rows(corpus, "corpus"), np.arange(40)[None]
    c = unit(corpus).numpy()
    scores = np.array([[score_of(a, b) for b in c] for a in c])
    assert np.array_equal(scores_of(torch.from_numpy(c), rows, np.repeat(everything, 40, 0)), scores)
    for bound in [float(s) for s in scores[0, 1:9]] + [float(np.nextafter(s, np.float32(2))) for s in scores[0, 1:9]]:
        assert np.array_equal(near_rows(rows, everything, everything, bound)[0], scores >= np.float32(bound))
