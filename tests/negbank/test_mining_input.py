"""Bad input: each with one clear error, or a result that is defined."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from negbank import DamagedResultError, DamagedSnapshotError, MiningResult, Snapshot, mine_hard_negatives
from negbank.files import SEAL, manifest, sealed

CORPUS = np.random.default_rng(0).standard_normal((20, 6)).astype(np.float32)
QUERIES = CORPUS[:4] + np.float32(0.1)


def with_(x, row, value):
    x = x.copy()
    x[row] = value
    return x


NAN, INF, ZERO = with_(CORPUS, 7, np.nan), with_(QUERIES, 2, np.inf), with_(CORPUS, 5, 0)


@pytest.mark.parametrize(
    ("queries", "corpus", "arguments", "message"),
    [
        (QUERIES, CORPUS[:0], {}, "corpus: shape \\(0, 6\\); there is nothing to mine from"),
        (QUERIES[:0], CORPUS, {}, "queries: shape \\(0, 6\\)"),
        (QUERIES, NAN, {}, "corpus: 1 row\\(s\\) .* the first at \\[7\\]"),
        (INF, CORPUS, {}, "queries: 1 row\\(s\\) .* the first at \\[2\\]"),
        (QUERIES, ZERO, {}, "corpus: rows \\[5\\] are all zero"),
        (QUERIES, (CORPUS, ZERO), {}, "corpus: rows \\[25\\] are all zero"),
        (QUERIES[:, :5], CORPUS, {}, "queries: 5 columns, the corpus has 6"),
        (QUERIES, (CORPUS, CORPUS[:, :5]), {}, "corpus, shard 1: 5 columns, shard 0 has 6"),
        (np.arange(24).reshape(4, 6), CORPUS, {}, "queries: int64 of shape \\(4, 6\\), expected floating point"),
        (QUERIES, torch.ones(3, 6, dtype=torch.long), {}, "corpus: torch.int64 of shape"),
        (QUERIES[0], CORPUS, {}, "expected floating point \\(N, D\\)"),
        (QUERIES, "nowhere.npy", {}, "nowhere.npy: no such file"),
        (QUERIES, {"a": 1}, {}, "corpus: object of shape|corpus: dict"),
        (QUERIES, CORPUS, {"corpus_ids": [3] * 20}, "corpus_ids: 19 id\\(s\\) come more than once, such as \\[3"),
        (QUERIES, CORPUS, {"query_ids": [1, 2, 2, 3]}, "query_ids: 1 id"),
        (QUERIES, CORPUS, {"corpus_ids": [1, 2]}, "corpus_ids: shape \\(2,\\) for 20 rows"),
        (QUERIES, CORPUS, {"corpus_ids": np.arange(20) / 2}, "corpus_ids: ids of type float64"),
        (QUERIES, CORPUS, {"positives": [[1], [2], [77], [3]]}, "1 id\\(s\\) are not among the 20 corpus_ids, .*77"),
        (QUERIES, CORPUS, {"positives": {9: [1]}}, "1 id\\(s\\) are not among the 4 query_ids, such as \\[9\\]"),
        (QUERIES, CORPUS, {"positives": [[1]]}, "positives: 1 lists for 4 query_ids; give one a row, .* or pairs"),
        (QUERIES, CORPUS, {"positives": np.ones((3, 3), int)}, "positives: shape \\(3, 3\\)"),
        (QUERIES, CORPUS, {"positives": [(1, 2, 3)]}, "length other than 2"),
        (QUERIES, CORPUS, {"positives": (np.array([0, 2]), np.array([1, 2]))}, "positives: indptr of shape"),
        (QUERIES, CORPUS, {"positives": "some"}, "positives: str; expected pairs"),
        (QUERIES, CORPUS, {"query_ids": list("abcd")}, "positives=None .* not among the 20 corpus_ids, such as \\['a'"),
        (QUERIES, CORPUS, {"exclude": [(50, 1)]}, "exclude: 1 id\\(s\\) are not among the 4 query_ids"),
        (QUERIES, CORPUS, {"groups": np.zeros(20, int), "positives": [[], [], [], []]}, "groups: queries are not"),
        (QUERIES, CORPUS, {"groups": (np.zeros(3, int), np.zeros(20, int))}, "groups: labels of shapes"),
        (QUERIES, CORPUS, {"num_negatives": 0}, "num_negatives=0: expected at least 1"),
        (QUERIES, CORPUS, {"range_min": -1}, "range_min=-1"),
        (QUERIES, CORPUS, {"range_min": 3, "range_max": 4}, "range_max=4: .* raise range_max to at least 6"),
        (QUERIES, CORPUS, {"range_max": 0}, "range_max=0"),
        (QUERIES, CORPUS, {"positive_reference": "median"}, "positive_reference='median': expected one of min, max"),
        (QUERIES, CORPUS, {"sampling_strategy": "hard"}, "sampling_strategy='hard'"),
        (QUERIES, CORPUS, {"sampling_strategy": "softmax", "temperature": 0.0}, "temperature=0.0"),
        (QUERIES, CORPUS, {"shortfall": "fill"}, "shortfall='fill'"),
        (QUERIES, CORPUS, {"dedupe": "text"}, "dedupe='text'"),
        (QUERIES, CORPUS, {"dedupe": "near", "near": 1.5}, "near=1.5"),
        (QUERIES, CORPUS, {"max_score": float("nan")}, "max_score=nan"),
        (QUERIES, CORPUS, {"min_score": 0.5, "max_score": 0.2}, "nothing lies between"),
        (QUERIES, CORPUS, {"memory_budget": "lots"}, "memory_budget='lots'"),
        (QUERIES, CORPUS, {"memory_budget": "1MB"}, "memory_budget=1048576: the process holds"),
        (QUERIES, CORPUS, {"query_batch": 0}, "query_batch=0"),
        (QUERIES, CORPUS, {"index": "IVFx"}, "factory='IVFx': Faiss refuses"),
        (QUERIES, CORPUS, {"relative_margin": 0.1, "positives": [[1], [], [2], [3]]}, "queries \\[1\\] have no pos"),
        (QUERIES, CORPUS, {"shortfall": "error", "max_score": -2.0}, "4 row\\(s\\) have fewer than num_negatives=3"),
    ],
)  # fmt: skip
def test_one_error_names_argument_value_and_remedy(queries, corpus, arguments, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        mine_hard_negatives(queries, corpus, **arguments)


def test_all_candidates_filtered_is_an_empty_result_that_says_so(tmp_path):
    result = mine_hard_negatives(QUERIES, CORPUS, max_score=-2.0)
    assert len(result) == 4
    assert [len(ids) for ids, _ in result] == [0, 0, 0, 0]
    assert "4 of 4 rows have fewer than num_negatives=3: 12 negatives missing" in result.summary()
    assert list(result.to("triplet")) == list(result.to("n-tuple")) == []
    result.plot(tmp_path / "empty.png")
    result.save(tmp_path / "r")
    assert len(MiningResult.load(tmp_path / "r").ids) == 0


def test_a_corpus_of_nothing_but_the_positive_gives_nothing():
    result = mine_hard_negatives(QUERIES[:1], CORPUS[:1])
    assert [len(ids) for ids, _ in result] == [0]
    with pytest.raises(ValueError, match="needs no index"):
        mine_hard_negatives(QUERIES[:1], CORPUS[:1], index="auto")


def test_a_truncated_or_foreign_shard_is_named(tmp_path):
    for number in range(2):
        np.save(tmp_path / f"{number}.npy", CORPUS)
    path = tmp_path / "1.npy"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"1.npy: no complete .npy file .* write this shard again"):
        mine_hard_negatives(QUERIES, tmp_path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"1.npy: no complete .npy file"):
        mine_hard_negatives(QUERIES, tmp_path)
    np.save(path, np.array([{}]), allow_pickle=True)
    with pytest.raises(ValueError, match=r"1.npy: no complete .npy file"):
        mine_hard_negatives(QUERIES, tmp_path)
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=r"holds no .npy files"):
        mine_hard_negatives(QUERIES, tmp_path / "none")


def test_a_snapshot_of_another_version_is_refused(tmp_path):
    Snapshot.build(CORPUS).save(tmp_path / "s")
    path = tmp_path / "s" / "manifest.json"
    path.write_text(sealed(manifest(path.parent) | {"format": 99}))
    with pytest.raises(DamagedSnapshotError, match="format 99, this version reads"):
        mine_hard_negatives(QUERIES, tmp_path / "s")
    with pytest.raises(ValueError, match="a snapshot has its own"):
        mine_hard_negatives(QUERIES, Snapshot.build(CORPUS), index="auto")


def test_a_snapshot_of_another_model_or_shape_is_refused(tmp_path):
    Snapshot.build(CORPUS, fingerprint="a" * 64).save(tmp_path / "s")
    assert Snapshot.load(tmp_path / "s", fingerprint="a" * 64).fingerprint == "a" * 64
    with pytest.raises(ValueError, match=r"rows of the model aaaaaaaaaaaa…, asked for by bbbb.*embed the corpus again"):
        Snapshot.load(tmp_path / "s", fingerprint="b" * 64)
    path = tmp_path / "s" / "manifest.json"
    path.write_text(sealed(manifest(path.parent) | {"shape": [20, 7]}))
    with pytest.raises(DamagedSnapshotError, match=r"the manifest says \[20, 7\]"):
        mine_hard_negatives(QUERIES, tmp_path / "s")


def test_a_damaged_result_is_refused(tmp_path):
    mine_hard_negatives(QUERIES, CORPUS, out=tmp_path / "r")
    path = tmp_path / "r" / "scores.npy"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DamagedResultError, match=r"scores.npy: its checksum differs"):
        MiningResult.load(tmp_path / "r")
    path = tmp_path / "r" / "manifest.json"
    found = json.loads(path.read_text())
    path.write_text(sealed({k: v for k, v in found.items() if k != SEAL} | {"format": 7}))
    with pytest.raises(DamagedResultError, match="format 7, this version reads"):
        MiningResult.load(tmp_path / "r")
    with pytest.raises(DamagedResultError, match="is this a mining result"):
        MiningResult.load(tmp_path)


def test_an_output_folder_that_cannot_be_written_is_refused_before_any_work(tmp_path, monkeypatch):
    worked: list[int] = []
    monkeypatch.setattr("negbank.mining.mine.Miner.part", lambda *a: worked.append(1))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"out=.*cannot be written .* choose another folder"):
        mine_hard_negatives(QUERIES, CORPUS, out=tmp_path / "file" / "r")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("")
    with pytest.raises(ValueError, match="the folder holds other files"):
        mine_hard_negatives(QUERIES, CORPUS, out=tmp_path / "full")
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o500)
    if not os.access(locked, os.W_OK):  # root may write anywhere
        with pytest.raises(OSError, match="cannot be written"):
            mine_hard_negatives(QUERIES, CORPUS, out=locked)
    locked.chmod(0o700)

    def refuse(path, *_, **__):
        raise PermissionError(30, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(PermissionError, match=r"cannot be written .*Read-only file system"):
        mine_hard_negatives(QUERIES, CORPUS, out=tmp_path / "new")
    assert not worked


def test_refilter_refuses_what_it_has_no_candidates_for():
    result = mine_hard_negatives(QUERIES, CORPUS, range_max=6)
    with pytest.raises(ValueError, match="range_max=9: 6 candidates a query were kept"):
        result.refilter(range_max=9)
    with pytest.raises(ValueError, match="needs the embeddings"):
        result.refilter(shortfall="pad_random")
    with pytest.raises(ValueError, match="temperature"):
        result.refilter(sampling_strategy="softmax", temperature=-1.0)
    with pytest.raises(ValueError, match="form='quadruplet'"):
        result.to("quadruplet")
    with pytest.raises(ValueError, match="lookup: has nothing for id"):
        list(result.to("triplet", {}))
    with pytest.raises(ValueError, match="ends in"):
        result.to("triplet", out="x.csv")
    with pytest.raises(IndexError, match="row 4 of a result with 4 rows"):
        result[4]
