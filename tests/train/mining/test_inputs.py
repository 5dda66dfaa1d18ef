"""`negbank mine` on the files that people have, and what it refuses before an encoder is loaded."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from negbank import MiningResult
from negbank.train.commands import main

WORDS = ["red", "green", "blue", "cat", "dog", "bird", "runs", "sings", "sleeps"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Where commands run: embeddings, an encoder by bag of words, one that says so when it is loaded, a scorer."""
    (tmp_path / "bags.py").write_text(
        f"WORDS = {WORDS}\n"
        "def bag(texts):\n"
        "    return [[1e-3 + t.split().count(w) for w in WORDS] for t in texts]\n"
        "def loaded():\n"
        "    raise SystemExit('an encoder was loaded')\n"
        "asked = []\n"
        "def overlap(queries, documents):\n"
        "    asked.extend(zip(queries, documents))\n"
        "    return [float(len(set(q.split()) & set(d.split()))) for q, d in zip(queries, documents)]\n"
    )
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((12, 4)).astype(np.float32))
    np.save(tmp_path / "q.npy", np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("bags", None)
    return tmp_path


def records(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path.name


def mined(*arguments):
    """Triplets that a command gives."""
    assert main(["mine", *map(str, arguments), "--out", "m", "--quiet", "--export", "t.jsonl"]) == 0
    return [json.loads(line) for line in Path("t.jsonl").read_text().splitlines()]


PAIRS = ("--pairs", "p.jsonl", "--text", "query", "pos", "--encoder", "bags:bag", "--num-negatives", 9)


def test_lists_of_positives_are_several_and_texts_that_are_missing_are_skipped(folder, capsys):
    rows = [
        {"query": "red cat", "pos": ["red cat runs", "cat"]}, {"query": "blue dog", "pos": "blue dog sings"},
        {"query": None, "pos": ["dog"]}, {"query": "green bird", "pos": [None, "bird", ""]}, {"query": "", "pos": "x"},
    ]  # fmt: skip
    records(folder / "p.jsonl", rows)
    found = mined(*PAIRS)
    assert "p.jsonl: 4 record(s) without text skipped" in capsys.readouterr().err
    known = {"red cat": {"red cat runs", "cat"}, "blue dog": {"blue dog sings"}, "green bird": {"bird"}}
    texts = set.union(*known.values())
    assert {r["anchor"] for r in found} == set(known)
    for query, positives in known.items():
        assert {r["positive"] for r in found if r["anchor"] == query} == positives
        assert {r["negative"] for r in found if r["anchor"] == query} == texts - positives


def test_a_pair_listed_both_ways_is_no_negative_of_itself(folder):
    pairs = [("red cat", "red cat runs"), ("blue dog", "blue dog sings")]
    records(folder / "p.jsonl", [{"query": a, "pos": b} for pair in pairs for a, b in (pair, pair[::-1])])
    found = mined(*PAIRS)
    assert len(found) == 4 * 2
    assert not [r for r in found if r["negative"] in (r["anchor"], r["positive"])]
    (folder / "m").rename(folder / "before")
    kept = mined(*PAIRS, "--no-ignore-identical")
    assert [r for r in kept if r["negative"] == r["anchor"]]


def test_a_documents_own_id_and_the_texts_of_others_are_no_negatives(folder):
    documents = [
        {"id": f"d{i}", "text": t} for i, t in enumerate(["red cat", "red cat runs", "red cat runs", "dog", "cat"])
    ]
    corpus = records(folder / "c.jsonl", documents)
    queries = records(folder / "q.jsonl", [{"id": "d0", "text": "red  cat"}, {"id": "q", "text": "cat"}])
    (folder / "qrels.tsv").write_text("d0\t0\td1\t1\nq\t0\td3\t1\nq\t0\td0\t0\n")
    mined("--corpus", corpus, "--queries", queries, "--text", "text", "--id", "id", "--positives", "qrels.tsv",
          "--encoder", "bags:bag", "--num-negatives", 9)  # fmt: skip
    result = MiningResult.load("m")
    assert set(result[0][0].tolist()) == {"d3", "d4"}  # not itself, d0; not d2, the text of its positive
    assert set(result[1][0].tolist()) == {"d0", "d1", "d2"}  # judged 0 is no positive; d4 is its own text


def test_a_scorer_of_pairs_is_given_texts(folder):
    records(folder / "p.jsonl", [{"query": "red cat", "pos": "cat"}, {"query": "blue dog", "pos": "dog sings"}])
    mined(*PAIRS, "--rescore", "bags:overlap")
    import bags

    assert set(bags.asked) == {(q, d) for q in ("red cat", "blue dog") for d in ("cat", "dog sings")}
    result = MiningResult.load("m")
    assert sorted(result.positive_scores.tolist()) == [1.0, 1.0]


def test_a_last_label_without_newline_counts_and_a_header_does_not(folder):
    labels = [i % 3 for i in range(12)]
    (folder / "l.txt").write_text("\n".join(map(str, labels)))
    (folder / "l.csv").write_text("label\n" + "\n".join(map(str, labels)) + "\n\n")
    for name in ("l.txt", "l.csv"):
        assert main(["mine", "--corpus", "x.npy", "--groups", name, "--out", f"m-{name}", "--quiet"]) == 0
        for row, (ids, _) in enumerate(MiningResult.load(f"m-{name}")):
            assert not (ids % 3 == row % 3).any()


def test_the_same_file_twice_is_the_corpus_itself(folder):
    for name, queries in (("a", []), ("b", ["--queries", "x.npy"]), ("c", ["--queries", str(folder / "x.npy")])):
        assert main(["mine", "--corpus", "x.npy", *queries, "--out", name, "--quiet"]) == 0
    found = [MiningResult.load(name).ids.tolist() for name in "abc"]
    assert found[0] == found[1] == found[2]


TEXTS = ["--corpus", "c.jsonl", "--text", "text", "--encoder", "bags:loaded()"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*TEXTS[2:], "--corpus", "none.jsonl"], "--corpus=none.jsonl: no such file"),
        ([*TEXTS[2:], "--corpus", "none.npy", "--queries", "c.jsonl"], "corpus=none.npy: no such file"),
        ([*TEXTS, "--queries", "none.jsonl"], "--queries=none.jsonl: no such file"),
        ([*TEXTS, "--text", "title"], "c.jsonl: no column 'title'; it has id, text"),
        ([*TEXTS, "--id", "key"], "c.jsonl: no column 'key'"),
        ([*TEXTS, "--positives", "none.tsv"], "none.tsv: no such file"),
        ([*TEXTS, "--positives", "p.tsv"], "1 id(s) are not among the 3 corpus_ids, such as [7], outside 0..2"),
        ([*TEXTS, "--exclude", "bad.json"], "exclude: 3.7 is no id"),
        ([*TEXTS, "--groups", "l.txt"], "groups: labels of shapes (2,) and (2,), expected (3,) and (3,)"),
        ([*TEXTS, "--id", "twice"], "come more than once"),
        ([*TEXTS, "--text", "empty"], "records [2] have no text; drop them, or give --id"),
        ([*TEXTS, "--text", "odd"], "c.jsonl: record 1, odd: ['x'] is no text"),
        ([*TEXTS, "--export", "none/t.jsonl"], "export=none/t.jsonl: no folder none; make it first"),
        ([*TEXTS, "--export", "t.csv"], "expected a path that ends in .jsonl"),
        ([*TEXTS, "--rescore", "no:such"], "rescore=no:such"),
        ([*TEXTS, "--num-negatives", "0"], "num_negatives=0: expected at least 1"),
        ([*TEXTS, "--max-score", "nan"], "max_score=nan"),
        ([*TEXTS, "--memory-budget", "lots"], "memory_budget='lots'"),
        ([*TEXTS, "--out", "full"], "out=full: the folder holds other files"),
        (["--pairs", "none.csv", *TEXTS[4:], "--text", "a", "b"], "none.csv: no such file"),
        (["--pairs", "c.jsonl", *TEXTS[4:], "--text", "text", "b"], "c.jsonl: no column 'b'"),
        (["--pairs", "c.jsonl", *TEXTS[4:], "--text", "text", "id", "--corpus", "no.csv"], "no.csv: no such file"),
        (["--corpus", "c.jsonl.gz", *TEXTS[4:]], "c.jsonl.gz: compressed, which is not read here"),
    ],
)  # fmt: skip
def test_what_can_be_known_is_said_before_an_encoder_is_loaded(folder, capsys, arguments, message):
    rows = [
        {"id": str(i), "text": WORDS[i], "twice": "1", "odd": ["x"], "empty": ["a", None, "b"][i]} for i in range(3)
    ]
    if "no column" in message:
        rows = [{"id": row["id"], "text": row["text"]} for row in rows]
    records(folder / "c.jsonl", rows)
    (folder / "c.jsonl.gz").write_bytes(b"")
    (folder / "p.tsv").write_text("0\t7\n")
    (folder / "bad.json").write_text('{"0": [3.7]}')
    (folder / "l.txt").write_text("a\nb\n")
    (folder / "full").mkdir()
    (folder / "full" / "notes").write_text("")
    out = [] if "--out" in arguments else ["--out", "m"]
    assert main(["mine", *arguments, *out, "--quiet"]) in (1, 2)
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
    assert "loaded" not in told


def test_the_encoder_is_loaded_where_all_is_well(folder):
    records(folder / "c.jsonl", [{"text": "red"}, {"text": "cat"}])
    with pytest.raises(SystemExit, match="an encoder was loaded"):
        main(["mine", *TEXTS, "--out", "m"])
