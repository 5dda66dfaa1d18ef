"""The whole function against a naive loop over random small inputs and arguments; and what must not show."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from negbank import MiningResult, Snapshot, mine_hard_negatives
from negbank.mining.budget import index_pays
from negbank.mining.rules import draw
from negbank.mining.search import EXACT

THRESHOLDS = st.none() | st.floats(-0.2, 0.5)


def unit(x: np.ndarray) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.as_tensor(x).float(), dim=-1)


def score_of(left: np.ndarray, right: np.ndarray) -> float:
    """The score that docs/mining.md promises, in whole numbers."""
    total = sum(round(float(a) * float(b) * 2.0**51) for a, b in zip(left, right))
    return float(np.float32(min(max(total, -(2**51)), 2**51) / 2**51))


def naive(queries, corpus, positives, corpus_ids, query_ids, excluded, labels, a):
    """Negatives of every row, one loop a rule: lists of (ids, scores, log-probabilities)."""
    q, c, rows = unit(queries).numpy(), unit(corpus).numpy(), []
    where = {i: j for j, i in enumerate(corpus_ids)}
    bound = {"id": 9.0, "exact": EXACT, "near": a["near"]}[a["dedupe"]]
    for i, query in enumerate(query_ids):
        known = list(dict.fromkeys(where[p] for p in positives[i]))
        score = {j: score_of(q[i], c[j]) for j in range(len(c))}
        like = {(j, k): score_of(c[j], c[k]) >= np.float32(bound) for j in range(len(c)) for k in range(len(c))}
        banned = {*known} | {j for j in range(len(c)) if (query, corpus_ids[j]) in excluded}
        banned |= {j for j in range(len(c)) if labels and labels[0][i] >= 0 and labels[0][i] == labels[1][j]}
        ranked = sorted((j for j in score if j not in banned), key=lambda j: (-score[j], corpus_ids[j]))
        references = {"min": min, "max": max, "mean": lambda s: np.float32(np.mean(np.float64(s)))}
        each = a["positive_reference"] == "each"
        if each:
            pairs = [(p, score[p]) for p in known]
        else:
            pairs = [(None, references[a["positive_reference"]]([score[p] for p in known]) if known else None)]
        for positive, reference in pairs:
            window = ranked[a["range_min"] : a["range_max"]]
            passing = [j for j in window if not any(like[j, p] for p in known)]
            if a["absolute_margin"] is not None:
                passing = [j for j in passing if np.float32(score[j]) + np.float32(a["absolute_margin"]) <= reference]
            if a["relative_margin"] is not None:
                limit = np.float32(reference) - abs(np.float32(reference)) * np.float32(a["relative_margin"])
                passing = [j for j in passing if score[j] <= limit]
            passing = [j for j in passing if a["max_score"] is None or score[j] <= np.float32(a["max_score"])]
            passing = [j for j in passing if a["min_score"] is None or score[j] >= np.float32(a["min_score"])]
            logits = np.array([score[j] / a["temperature"] * (a["sampling_strategy"] == "softmax") for j in passing])
            order = passing
            if a["sampling_strategy"] != "top" and passing:
                own = (query, 0 if positive is None else corpus_ids[positive])
                keys = [np.array([i]).astype(np.uint64) for i in own]
                u = draw(a["seed"], *keys, np.array([[corpus_ids[j] for j in passing]]).astype(np.uint64))[0]
                order = [j for _, j in sorted(zip(np.log(-np.log(u)) - logits, passing))]
            taken: list[int] = []
            for j in order:
                if len(taken) < a["num_negatives"] and not any(like[j, k] for k in taken):
                    taken.append(j)
            log_q = dict(zip(passing, logits - np.logaddexp.reduce(logits) if passing else []))
            if a["shortfall"] == "drop" and len(taken) < a["num_negatives"]:
                taken = []
            taken.sort(key=lambda j: (-score[j], corpus_ids[j]))
            rows.append(([corpus_ids[j] for j in taken], [score[j] for j in taken], [log_q[j] for j in taken]))
    return rows


@st.composite
def problems(draw_):
    rng = np.random.default_rng(draw_(st.integers(0, 10**6)))
    rows, asked, dim = draw_(st.integers(1, 14)), draw_(st.integers(1, 5)), draw_(st.integers(1, 4))
    corpus = rng.integers(-2, 3, (rows, dim)).astype(np.float32)  # a coarse grid: many ties and duplicates
    queries = rng.integers(-2, 3, (asked, dim)).astype(np.float32)
    corpus[(corpus == 0).all(1)] = 1
    queries[(queries == 0).all(1)] = -1
    corpus_ids = rng.permutation(40)[:rows].tolist()
    query_ids = rng.permutation(40)[:asked].tolist()
    arguments = {
        "num_negatives": draw_(st.integers(1, 4)),
        "range_min": draw_(st.integers(0, 3)),
        "absolute_margin": draw_(THRESHOLDS),
        "relative_margin": draw_(THRESHOLDS),
        "min_score": draw_(st.none() | st.floats(-1, 0)),
        "max_score": draw_(st.none() | st.floats(0, 1)),
        "positive_reference": draw_(st.sampled_from(["min", "max", "mean", "each"])),
        "sampling_strategy": draw_(st.sampled_from(["top", "random", "softmax"])),
        "temperature": draw_(st.sampled_from([0.02, 0.3])),
        "dedupe": draw_(st.sampled_from(["id", "exact", "near"])),
        "near": draw_(st.sampled_from([0.6, 0.97])),
        "shortfall": draw_(st.sampled_from(["short", "drop"])),
        "seed": draw_(st.integers(0, 3)),
    }
    arguments["range_max"] = arguments["range_min"] + arguments["num_negatives"] + draw_(st.integers(0, 8))
    fewest = int(arguments["absolute_margin"] is not None or arguments["relative_margin"] is not None)
    positives = [rng.choice(corpus_ids, rng.integers(fewest, 4)).tolist() for _ in query_ids]
    pairs = itertools.product(query_ids, corpus_ids)
    excluded = {pair for pair in pairs if rng.random() < 0.1}
    labels = (rng.integers(-1, 3, asked), rng.integers(-1, 3, rows)) if draw_(st.booleans()) else None
    return queries, corpus, positives, corpus_ids, query_ids, excluded, labels, arguments


@given(problems(), st.integers(1, 6), st.integers(1, 5))
def test_the_naive_loop_agrees(problem, query_batch, shards):
    queries, corpus, positives, corpus_ids, query_ids, excluded, labels, arguments = problem
    result = mine_hard_negatives(
        queries, tuple(part for part in np.array_split(corpus, shards) if len(part)), dict(zip(query_ids, positives)),
        corpus_ids=corpus_ids, query_ids=query_ids, exclude=sorted(excluded), groups=labels,
        query_batch=query_batch, **arguments,
    )  # fmt: skip
    expected = naive(*problem)
    assert len(result) == len(expected)
    for row, (ids, scores, log_probs) in enumerate(expected):
        assert result[row][0].tolist() == ids
        assert result[row][1].tolist() == scores
        if arguments["sampling_strategy"] != "top":
            found = result.log_probs[result.indptr[row] : result.indptr[row + 1]]
            np.testing.assert_allclose(found, log_probs, atol=1e-5)


@given(problems(), problems())
def test_refilter_is_mining_with_other_arguments(problem, other):
    queries, corpus, positives, corpus_ids, query_ids, excluded, labels, arguments = problem
    if any(not p for p in positives):
        positives = [p or [corpus_ids[0]] for p in positives]
    given_ = {"corpus_ids": corpus_ids, "query_ids": query_ids, "exclude": sorted(excluded), "groups": labels}
    changed = {k: v for k, v in other[-1].items() if k not in ("dedupe", "near")}
    changed["range_max"] = min(changed["range_max"], 20)
    result = mine_hard_negatives(queries, corpus, positives, **given_, **(arguments | {"range_max": 20}))
    again = result.refilter(**changed)
    fresh = mine_hard_negatives(queries, corpus, positives, **given_, **(arguments | changed))
    same(again, fresh)


def same(a: MiningResult, b: MiningResult) -> None:
    assert np.array_equal(a.indptr, b.indptr)
    assert np.array_equal(a.ids, b.ids)
    assert a.scores.tobytes() == b.scores.tobytes()
    assert a.positive_scores.tobytes() == b.positive_scores.tobytes()
    assert (a.log_probs is None) == (b.log_probs is None)
    assert a.log_probs is None or np.asarray(a.log_probs).tobytes() == np.asarray(b.log_probs).tobytes()
    assert a.rejects == b.rejects


@pytest.fixture(scope="module")
def embeddings():
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((40, 24))
    corpus = centres[generator.integers(40, size=3000)] + 0.7 * generator.standard_normal((3000, 24))
    corpus[100:160] = corpus[100]  # the same row under sixty ids
    queries = corpus[:700] + 0.5 * generator.standard_normal((700, 24))
    return queries.astype(np.float32), corpus.astype(np.float32)


ARGUMENTS = {"num_negatives": 5, "range_max": 60, "relative_margin": 0.02, "dedupe": "near", "near": 0.98}


@pytest.mark.parametrize("strategy", ["top", "random", "softmax"])
def test_batch_shards_threads_and_dtype_of_the_store_do_not_show(embeddings, strategy, tmp_path):
    queries, corpus = embeddings
    arguments = {**ARGUMENTS, "sampling_strategy": strategy, "shortfall": "pad_random"}
    whole = mine_hard_negatives(queries, corpus, [[i] for i in range(700)], **arguments)
    for number, part in enumerate(np.array_split(corpus, 7)):
        np.save(tmp_path / f"{number}.npy", part)
    threads = torch.get_num_threads()
    for batch, source, count in [(1, corpus, 1), (37, tmp_path, threads), (699, torch.from_numpy(corpus), 2)]:
        torch.set_num_threads(count)
        try:
            asked = queries[:60] if batch == 1 else queries
            found = mine_hard_negatives(asked, source, [[i] for i in range(len(asked))], query_batch=batch, **arguments)
        finally:
            torch.set_num_threads(threads)
        stop = int(whole.indptr[len(asked)])
        assert np.array_equal(found.ids, whole.ids[:stop])
        assert found.scores.tobytes() == whole.scores[:stop].tobytes()
        assert (found.log_probs is None) == (whole.log_probs is None)


def test_draws_follow_ids_not_places(embeddings):
    queries, corpus = embeddings
    arguments = {**ARGUMENTS, "sampling_strategy": "softmax", "positive_reference": "each"}
    positives = {f"q{i}": [f"d{i}", f"d{i + 700}"] for i in range(700)}
    ids = {"query_ids": [f"q{i}" for i in range(700)], "corpus_ids": [f"d{i}" for i in range(3000)]}
    first = mine_hard_negatives(queries, corpus, positives, **ids, **arguments)
    q, c = np.random.default_rng(1).permutation(700), np.random.default_rng(2).permutation(3000)
    ids = {"query_ids": [f"q{i}" for i in q], "corpus_ids": [f"d{i}" for i in c]}
    moved = mine_hard_negatives(queries[q], corpus[c], positives, **ids, **arguments)
    row = {(i, p): n for n, (i, p) in enumerate(zip(moved.query_ids, positive_of_rows(moved)))}
    for n, (i, p) in enumerate(zip(first.query_ids, positive_of_rows(first))):
        assert [list(x) for x in first[n]] == [list(x) for x in moved[row[i, p]]]


def positive_of_rows(result: MiningResult) -> list[str]:
    return [result.positives_of(row)[0].item() for row in range(len(result))]


@pytest.mark.parametrize("strategy", ["random", "softmax"])
def test_draws_follow_the_density_they_report(strategy):
    corpus = np.array([[1, 0], [0.9, 0.3], [0.8, 0.5], [0.5, 0.9], [0.1, 1]], dtype=np.float32)
    result = mine_hard_negatives(
        np.repeat(corpus[:1], 3000, 0), corpus, [[0]] * 3000, num_negatives=1, range_max=4, sampling_strategy=strategy,
        temperature=0.3, seed=5,
    )  # fmt: skip
    counts, log_q = np.bincount(result.ids, minlength=5), np.zeros(5)
    log_q[result.ids] = result.log_probs
    expected = np.exp(log_q[1:])
    assert expected.sum() == pytest.approx(1, abs=1e-5)
    assert counts[0] == 0
    deviation = ((counts[1:] - 3000 * expected) ** 2 / (3000 * expected)).sum()
    assert deviation < 16.3  # χ² of 3 degrees, one in a thousand
    if strategy == "softmax":  # and would catch uniform draws
        assert ((counts[1:] - 750) ** 2 / 750).sum() > 16.3


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("constant", [False, True])
def test_the_bounded_first_pass_loses_nothing(embeddings, half, constant, monkeypatch):
    """In bfloat16 as in float32, and where all rows are equal and no bound can tell them apart."""
    monkeypatch.setattr("negbank.mining.search.half_is_fast", lambda: half)
    queries, corpus = embeddings
    corpus = np.repeat(corpus[:1], 400, axis=0) if constant else corpus
    result = mine_hard_negatives(queries[:40], corpus, [[] for _ in range(40)], num_negatives=20)
    scores = (unit(queries[:40])[:, None].double() * unit(corpus)[None].double()).sum(-1).float().numpy()
    for row in range(40):
        best = np.lexsort((np.arange(len(corpus)), -scores[row]))[:20]
        assert result[row][0].tolist() == best.tolist()


def test_scores_of_the_first_pass_are_close(embeddings):
    queries, corpus = embeddings
    exact = mine_hard_negatives(queries, corpus, num_negatives=5)
    rough = mine_hard_negatives(queries, corpus, num_negatives=5, exact=False)
    assert np.abs(rough.scores - exact.scores).max() < 0.01
    assert np.mean([len({*a} & {*b}) for (a, _), (b, _) in zip(exact, rough)]) > 4.5


def test_a_snapshot_is_searched_by_its_index(embeddings, tmp_path):
    queries, corpus = embeddings
    written = torch.arange(3000) % 3 != 0
    snapshot = Snapshot.build(corpus, factory="IVF16,Flat", target_recall=0.99, written=written)
    positives = [[3 * i + 1] for i in range(700)]
    approximate = mine_hard_negatives(queries, snapshot, positives, **ARGUMENTS)
    assert approximate.recall > 0.95
    assert not np.isin(approximate.ids % 3, 0).any()
    exact = mine_hard_negatives(queries, snapshot, positives, index="exact", **ARGUMENTS)
    assert exact.recall is None
    assert np.mean(approximate.ids[: len(exact.ids)] == exact.ids[: len(approximate.ids)]) > 0.5
    rows = np.flatnonzero(written.numpy())
    plain = mine_hard_negatives(queries, corpus[rows], positives, corpus_ids=rows, **ARGUMENTS)
    same(exact, plain)
    snapshot.save(tmp_path / "s")
    same(approximate, mine_hard_negatives(queries, tmp_path / "s", positives, query_batch=300, **ARGUMENTS))
    built = mine_hard_negatives(queries, corpus[rows], positives, corpus_ids=rows, index="IVF16,Flat", **ARGUMENTS)
    assert built.recall > 0.95


def test_within_the_corpus_no_row_is_its_own_negative(embeddings):
    _, corpus = embeddings
    for positives in (None, [[] for _ in range(3000)]):
        result = mine_hard_negatives(None, corpus, positives, num_negatives=4)
        assert len(result) == 3000
        assert not (result.ids == np.repeat(np.arange(3000), 4)).any()
    index = mine_hard_negatives(None, corpus, num_negatives=4, index="IVF16,Flat")
    assert not (index.ids == np.repeat(np.arange(3000), 4)).any()


def test_groups_are_passed_over_by_index_and_exact_search(embeddings):
    _, corpus = embeddings
    labels = np.arange(3000) % 2
    for index in (None, "IVF16,Flat"):
        result = mine_hard_negatives(None, corpus, num_negatives=30, groups=labels, index=index)
        assert (labels[result.ids] != labels[np.repeat(np.arange(3000), np.diff(result.indptr))]).all()
        assert (np.diff(result.indptr) == 30).all()
    named = mine_hard_negatives(None, corpus, num_negatives=30, groups=np.where(labels, "odd", "even"))
    same(named, mine_hard_negatives(None, corpus, num_negatives=30, groups=labels))


def test_every_form_of_positives_means_the_same(embeddings):
    queries, corpus = embeddings
    lists = [[i, i + 700] if i % 2 else [i] for i in range(700)]
    pairs = [(i, p) for i, ids in enumerate(lists) for p in ids]
    indptr = np.cumsum([0, *map(len, lists)])
    from scipy.sparse import csr_matrix

    flat = np.array([p for _, p in pairs])
    forms = [
        pairs,
        np.array(pairs),
        torch.tensor(pairs),
        (indptr, flat),
        csr_matrix((np.ones(len(flat)), flat, indptr), shape=(700, 3000)),
        dict(enumerate(lists)),
        {i: ids if len(ids) > 1 else ids[0] for i, ids in enumerate(lists)},
        [np.array(ids) for ids in lists],
    ]
    expected = mine_hard_negatives(queries, corpus, lists, relative_margin=0.05)
    for form in forms:
        same(mine_hard_negatives(queries, corpus, form, relative_margin=0.05), expected)
    own = mine_hard_negatives(queries, corpus[:700], relative_margin=0.05)
    same(own, mine_hard_negatives(queries, corpus[:700], [[i] for i in range(700)], relative_margin=0.05))


def test_relative_margin_is_right_for_negative_scores():
    corpus = np.array([[-0.5, 0.75**0.5], [-0.49, (1 - 0.49**2) ** 0.5], [-0.8, 0.6]], dtype=np.float32)
    query = np.array([[1.0, 0.0]])
    result = mine_hard_negatives(query, corpus, [[0]], relative_margin=0.05, num_negatives=1, range_max=2)
    assert result.ids.tolist() == [2]


def test_rescore_replaces_the_scores_before_every_filter(embeddings):
    queries, corpus = embeddings

    def rescore(q, c):
        return -((q * 7 + c * 13) % 101) / 101.0

    result = mine_hard_negatives(queries, corpus, num_negatives=5, range_max=50, rescore=rescore, absolute_margin=0.1)
    plain = mine_hard_negatives(queries, corpus, num_negatives=50, range_max=50)
    for i in range(700):
        found = np.float32(rescore(np.full(50, i), plain[i][0]))
        reference = np.float32(rescore(np.array([i]), np.array([i])))
        order = np.lexsort((plain[i][0], -found))
        passing = [j for j in order if found[j] + np.float32(0.1) <= reference[0]][:5]
        assert result[i][0].tolist() == plain[i][0][passing].tolist()
        assert result[i][1].tolist() == found[passing].tolist()
    with pytest.raises(ValueError, match="rescore: gave scores of shape"):
        mine_hard_negatives(queries, corpus, rescore=lambda q, c: np.full(len(q), np.nan))


def test_random_padding_fills_with_allowed_rows_that_pass(embeddings):
    queries, corpus = embeddings
    arguments = {"num_negatives": 6, "range_max": 8, "max_score": 0.3}
    short = mine_hard_negatives(queries, corpus, **arguments)
    assert short.short > 600
    padded = mine_hard_negatives(queries, corpus, shortfall="pad_random", **arguments)
    assert padded.short == 0
    assert padded.random.sum() == 6 * 700 - len(short.ids)
    assert padded.scores.max() <= np.float32(0.3)
    for row in range(700):
        ids, scores = padded[row]
        assert len(set(ids)) == 6
        assert row not in ids
        assert np.array_equal(np.lexsort((ids, -scores)), np.arange(6))
        kept = padded.random[padded.indptr[row] : padded.indptr[row + 1]]
        assert ids[~kept].tolist() == short[row][0].tolist()
    tiny = mine_hard_negatives(queries[:2], corpus[:4], num_negatives=9, shortfall="pad_random")
    assert [len(ids) for ids, _ in tiny] == [3, 3]


def test_saved_and_loaded_whole(embeddings, tmp_path):
    queries, corpus = embeddings
    result = mine_hard_negatives(queries, corpus, sampling_strategy="random", **ARGUMENTS)
    result.save(tmp_path / "r")
    loaded = MiningResult.load(tmp_path / "r")
    same(loaded, result)
    assert loaded.rules == result.rules
    same(loaded.refilter(max_score=0.5, seed=3), result.refilter(max_score=0.5, seed=3))
    with pytest.raises(FileExistsError, match="write under another name"):
        result.save(tmp_path / "r")


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("half", [True, False])
def test_shortlists_hold_what_is_allowed_and_nothing_else(embeddings, compiled, half, monkeypatch):
    """Whole blocks forbidden, few rows allowed, none, negative scores only; compiled, and as on other devices."""
    monkeypatch.setattr("negbank.mining.search.half_is_fast", lambda: half and compiled)
    if not compiled:
        monkeypatch.setattr("negbank.index.shortlist.Shortlist.devices", ())
    _, corpus = embeddings
    corpus = corpus - np.float32(3)  # around one direction: all scores are alike
    labels = np.repeat([0, 1, 2], [1500, 1490, 10])
    ours = np.array([0, 0, 1, 2, -1, 1])
    queries = corpus[[0, 1, 1600, 2995, 5, 1700]] * np.array([[1], [-1], [1], [-1], [-1], [1]], dtype=np.float32)
    excluded = [(5, i) for i in range(3000) if labels[i] != 1 and i % 1000]
    positives = [[] for _ in queries]
    arguments = {"groups": (ours, labels), "exclude": excluded, "num_negatives": 40}
    result = mine_hard_negatives(queries, corpus, positives, **arguments)
    scores = (unit(queries)[:, None] * unit(corpus)[None]).sum(-1).numpy()
    for row in range(6):
        allowed = [i for i in range(3000) if labels[i] != ours[row] and (row < 5 or labels[i] == 1 or i % 1000 == 0)]
        best = sorted(allowed, key=lambda i: -scores[row, i])[:40]
        found = result[row][0].tolist()
        assert len(found) == len(best)
        np.testing.assert_allclose(scores[row, found], scores[row, best], atol=1e-6)
    none = mine_hard_negatives(queries[:1], corpus[:1500], [[]], groups=(ours[:1], labels[:1500]), num_negatives=4)
    assert len(none.ids) == 0


def test_auto_builds_an_index_only_where_that_pays(embeddings, monkeypatch):
    assert not index_pays(10**9, 100_000, half=True)
    assert not index_pays(1000, 5_000_000, half=True)
    assert index_pays(10**6, 5_000_000, half=True)
    assert index_pays(200_000, 1_000_000, half=False)
    queries, corpus = embeddings
    result = mine_hard_negatives(queries, corpus, index="auto")
    assert result.recall is None
    same(result, mine_hard_negatives(queries, corpus))
    monkeypatch.setattr("negbank.mining.mine.index_pays", lambda *_: True)
    monkeypatch.setattr("negbank.index.factory.EXACT_BELOW", {"cpu": 1000})
    assert mine_hard_negatives(queries, corpus, index="auto").recall > 0.95
