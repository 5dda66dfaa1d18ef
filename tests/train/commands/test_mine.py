"""`negbank mine`, `refilter` and `index` on files, in process and under torchrun."""

from __future__ import annotations

import csv
import inspect
import json
import os
import shlex
import subprocess
import sys
from typing import get_args

import numpy as np
import pytest
import torch

from negbank import MiningResult, mine_hard_negatives
from negbank.mining.rules import Rules
from negbank.train.commands import main
from negbank.train.commands.mine import EXAMPLES
from negbank.train.mining.arguments import CHOICES, RULES, SEARCH

WORDS = ["red", "green", "blue", "cat", "dog", "bird", "runs", "sings", "sleeps", "flies"]


@pytest.fixture
def arrays(tmp_path):
    generator = np.random.default_rng(0)
    corpus = generator.standard_normal((200, 12)).astype(np.float32)
    queries = corpus[:40] + np.float32(0.2)
    np.save(tmp_path / "corpus.npy", corpus)
    np.save(tmp_path / "queries.npy", queries)
    return corpus, queries


@pytest.fixture
def encoder(tmp_path, monkeypatch):
    """A module with encoders by bag of words: a callable, and a model with weights that counts its calls."""
    (tmp_path / "toy_encoder.py").write_text(
        "import torch\n"
        f"WORDS = {WORDS}\n"
        "def bag(texts):\n"
        "    return [[1e-3 + text.split().count(word) for word in WORDS] for text in texts]\n"
        "class Model(torch.nn.Module):\n"
        "    calls = []\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.scale = torch.nn.Parameter(torch.ones(len(WORDS)))\n"
        "    def encode(self, texts, batch_size=32):\n"
        "        self.calls.append(list(texts))\n"
        "        return torch.tensor(bag(texts)) * self.scale\n"
        "model = Model()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "toy_encoder", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return "toy_encoder:model"


def run(capsys, *arguments):
    code = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_arrays_in_a_folder_out_the_table_a_picture_and_records(arrays, tmp_path, capsys):
    corpus, queries = arrays
    (tmp_path / "qrels.csv").write_text(
        "query,document,score\n" + "".join(f"{i},{i},1\n{i},{i + 50},0\n" for i in range(40))
    )
    out = tmp_path / "mined"
    code, told, _ = run(
        capsys, "mine", "--corpus", tmp_path / "corpus.npy", "--queries", tmp_path / "queries.npy", "--positives",
        tmp_path / "qrels.csv", "--num-negatives", 4, "--relative-margin", 0.05, "--dedupe", "near", "--out", out,
        "--export", tmp_path / "t.jsonl", "--scores",
    )  # fmt: skip
    assert code == 0
    expected = mine_hard_negatives(queries, corpus, num_negatives=4, relative_margin=0.05, dedupe="near")
    found = MiningResult.load(out)
    assert np.array_equal(found.ids, expected.ids)
    assert expected.summary() in told
    assert (out / "summary.txt").read_text() == expected.summary() + "\n"
    assert (out / "scores.png").stat().st_size > 5000
    records = [json.loads(line) for line in (tmp_path / "t.jsonl").open()]
    assert records == list(expected.to("triplet", scores=True))
    code, _, _ = run(capsys, "refilter", out, "--max-score", 0.4, "--out", tmp_path / "less")
    assert code == 0
    assert np.array_equal(MiningResult.load(tmp_path / "less").ids, expected.refilter(max_score=0.4).ids)
    code, told, _ = run(capsys, "index", "info", tmp_path / "less")
    assert expected.refilter(max_score=0.4).summary() in told


@pytest.mark.parametrize("form", ["npz", "json", "jsonl", "txt", "npy", "parquet"])
def test_positives_in_any_file(arrays, tmp_path, capsys, form):
    corpus, queries = arrays
    lists = [[i, i + 60] for i in range(40)]
    pairs = [(i, p) for i, ids in enumerate(lists) for p in ids]
    path = tmp_path / f"positives.{form}"
    if form == "npz":
        np.savez(path, indptr=np.arange(0, 81, 2), ids=np.array(lists).ravel())
    elif form == "npy":
        np.save(path, np.array(pairs))
    elif form == "json":
        path.write_text(json.dumps(dict(enumerate(lists))))
    elif form == "jsonl":
        path.write_text("".join(json.dumps({"q": q, "d": d}) + "\n" for q, d in pairs))
    elif form == "txt":
        path.write_text("".join(f"{q} 0 {d} 1\n" for q, d in pairs) + "0 0 7 0\n")
    else:
        pyarrow = pytest.importorskip("pyarrow")
        import pyarrow.parquet as pq

        pq.write_table(pyarrow.table({"q": [q for q, _ in pairs], "d": [d for _, d in pairs]}), path)
    code, _, _ = run(
        capsys, "mine", "--corpus", tmp_path / "corpus.npy", "--queries", tmp_path / "queries.npy", "--positives", path,
        "--out", tmp_path / "mined", "--quiet",
    )  # fmt: skip
    assert code == 0
    assert np.array_equal(MiningResult.load(tmp_path / "mined").ids, mine_hard_negatives(queries, corpus, pairs).ids)


def test_ids_of_texts_and_judgements_in_strings(tmp_path, capsys, encoder):
    (tmp_path / "docs.jsonl").write_text(
        "".join(
            json.dumps({"id": f"d{i}", "title": a, "text": f"{b} {c}"}) + "\n" for i, (a, b, c) in enumerate(triples())
        )
    )
    with (tmp_path / "q.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["qid", "question"], ["q0", "red cat, runs"], ["q1", "blue bird sings"]])
    (tmp_path / "qrels.txt").write_text("q0 0 d0 1\nq1 0 d26 2\nq1 0 d3 0\n")
    command = [
        "mine", "--corpus", tmp_path / "docs.jsonl", "--text", "title", "text", "--id", "id", "--queries",
        tmp_path / "q.csv", "--query-text", "question", "--query-id", "qid", "--positives", tmp_path / "qrels.txt",
        "--encoder", encoder, "--num-negatives", 2, "--export", tmp_path / "out.jsonl",
    ]  # fmt: skip
    code, _, err = run(capsys, *command, "--out", tmp_path / "m")
    assert code == 0
    assert "encoding document" in err
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").open()]
    assert records[-1]["anchor"] == "blue bird sings"
    assert {r["positive"] for r in records} == {"red cat runs", "blue bird sleeps"}
    code, _, _ = run(capsys, "refilter", tmp_path / "m", "--num-negatives", 1, "--out", tmp_path / "n", "--export",
                     tmp_path / "one.jsonl")  # fmt: skip
    assert [json.loads(line) for line in (tmp_path / "one.jsonl").open()] == records[::2]


def triples():
    return [(a, b, c) for a in WORDS[:3] for b in WORDS[3:6] for c in WORDS[6:9]]


def pairs_file(tmp_path):
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "answer"])
        writer.writerows([[f"{a} {b}", f"{a} {b} {c}"] for a, b, c in triples()])
    return tmp_path / "pairs.csv"


def test_pairs_of_texts_are_encoded_once_by_content(tmp_path, capsys, encoder):
    command = ["mine", "--pairs", pairs_file(tmp_path), "--text", "question", "answer", "--encoder", encoder, "--quiet"]
    assert run(capsys, *command, "--out", tmp_path / "a")[0] == 0
    import toy_encoder

    assert [len(texts) for texts in toy_encoder.Model.calls] == [9, 27]
    assert run(capsys, *command, "--out", tmp_path / "b", "--max-score", 0.9)[0] == 0
    assert len(toy_encoder.Model.calls) == 2
    with torch.no_grad():
        toy_encoder.model.scale[0] = 3.0  # fine-tuned under the same name
    assert run(capsys, *command, "--out", tmp_path / "c")[0] == 0
    assert len(toy_encoder.Model.calls) == 4
    assert run(capsys, *command, "--out", tmp_path / "d", "--query-prompt", "query: ")[0] == 0
    assert [len(texts) for texts in toy_encoder.Model.calls] == [9, 27, 9, 27, 9]
    assert toy_encoder.Model.calls[-1][0].startswith("query: red")
    result = MiningResult.load(tmp_path / "a")
    assert len(result) == 9
    assert (np.diff(result.positive_indptr) == 3).all()


def test_a_callable_has_no_weights_to_tell_it_by_and_is_not_cached(tmp_path, capsys, encoder):
    command = ["mine", "--pairs", pairs_file(tmp_path), "--text", "question", "answer", "--quiet"]
    assert run(capsys, *command, "--encoder", "toy_encoder:bag", "--out", tmp_path / "a")[0] == 0
    assert not (tmp_path / "cache").exists()
    assert run(capsys, *command, "--encoder", "toy_encoder:Model()", "--out", tmp_path / "b")[0] == 0
    assert len(list((tmp_path / "cache" / "negbank").glob("*.npy"))) == 2
    assert np.array_equal(MiningResult.load(tmp_path / "a").ids, MiningResult.load(tmp_path / "b").ids)


def test_groups_and_rescore(arrays, tmp_path, capsys, encoder):
    corpus, queries = arrays
    (tmp_path / "toy_scores.py").write_text("def score(q, c):\n    return -((q * 7 + c * 13) % 101) / 101.0\n")
    from toy_scores import score

    labels = np.arange(200) % 3 - 1
    np.save(tmp_path / "labels.npy", labels)
    (tmp_path / "corpus.txt").write_text("".join(f"{name}\n" for name in labels))
    (tmp_path / "queries.txt").write_text("".join(f"{name}\n" for name in labels[:40]))
    common = ["mine", "--corpus", tmp_path / "corpus.npy", "--quiet", "--out"]
    code, _, _ = run(capsys, *common, tmp_path / "within", "--groups", tmp_path / "labels.npy")
    assert code == 0
    found = MiningResult.load(tmp_path / "within")
    assert np.array_equal(found.ids, mine_hard_negatives(None, corpus, groups=labels).ids)
    asked = [*common, tmp_path / "asked", "--queries", tmp_path / "queries.npy", "--rescore", "toy_scores:score"]
    code, _, _ = run(capsys, *asked, "--groups", tmp_path / "queries.txt", tmp_path / "corpus.txt")
    assert code == 0
    expected = mine_hard_negatives(queries, corpus, groups=(labels[:40] + 1, labels + 1), rescore=score)
    assert np.array_equal(MiningResult.load(tmp_path / "asked").ids, expected.ids)


def test_index_build_and_info(arrays, tmp_path, capsys, encoder):
    code, told, _ = run(
        capsys, "index", "build", "--vectors", tmp_path / "corpus.npy", "--out", tmp_path / "s",
        "--factory", "IVF4,Flat", "--fingerprint", "model-one",
    )  # fmt: skip
    assert code == 0
    assert "IVF4,Flat over 200 rows" in told
    code, told, _ = run(capsys, "index", "info", tmp_path / "s")
    assert "shape [200, 12], float32, 200 rows indexed" in told
    assert "model model-one" in told
    code, _, _ = run(
        capsys, "mine", "--corpus", tmp_path / "s", "--queries", tmp_path / "queries.npy", "--out", tmp_path / "m"
    )
    assert code == 0
    assert MiningResult.load(tmp_path / "m").recall > 0.9
    code, _, err = run(
        capsys, "mine", "--corpus", tmp_path / "s", "--queries", pairs_file(tmp_path), "--query-text", "answer",
        "--encoder", encoder, "--out", tmp_path / "x",
    )  # fmt: skip
    assert code == 2
    assert "rows of the model model-one" in err
    assert run(capsys, "index", "build", "--vectors", tmp_path / "corpus.npy", "--out", tmp_path / "s")[0] == 2
    assert run(capsys, "index", "info", tmp_path)[0] == 2


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["mine", "--out", "m"], 2, "mine needs --corpus, or --pairs"),
        (["mine", "--corpus", "nowhere.npy", "--out", "m"], 2, "nowhere.npy: no such file"),
        (["mine", "--corpus", "C", "--num-negatives", 0, "--out", "m"], 2, "num_negatives=0"),
        (["mine", "--corpus", "C", "--queries", "Q", "--positives", "P", "--out", "m"], 2, "rows are numbered from 0"),
        (["mine", "--corpus", "C", "--positives", "nowhere.csv", "--out", "m"], 2, "nowhere.csv: no such file"),
        (["mine", "--pairs", "T", "--text", "a", "--out", "m"], 2, "--pairs needs --text ANCHOR POSITIVE"),
        (["mine", "--pairs", "T", "--text", "a", "z", "--encoder", "E", "--out", "m"], 2, "no column 'z'; it has a, b"),
        (["mine", "--corpus", "T", "--text", "a", "--out", "m"], 2, "texts need --encoder"),
        (["mine", "--corpus", "T", "--encoder", "E", "--out", "m"], 2, "a table of texts needs --text"),
        (["mine", "--corpus", "C", "--out", "C"], 1, "cannot be written"),
        (["mine", "--corpus", "C", "--out", "m", "--export", "t.csv"], 2, "expected a path that ends in .jsonl"),
        (
            ["mine", "--pairs", "T", "--text", "a", "b", "--encoder", "no_such:thing", "--out", "m"],
            2,
            "encoder=no_such",
        ),
        (["refilter", "nowhere", "--out", "m"], 1, "is this a mining result"),
        (["mine", "--corpus", "C", "--out", "m", "--groups", "none.npy"], 2, "none.npy: no such file"),
        (["mine", "--corpus", "C", "--out", "m", "--groups", "P", "P", "P"], 2, "--groups: 3 files"),
        (["mine", "--corpus", "C", "--out", "m", "--groups", "L"], 2, "groups: labels of shapes"),
        (["mine", "--corpus", "C", "--out", "m", "--groups", "P"], 2, "p.csv: columns q, d; give a table of one"),
        (["mine", "--corpus", "C", "--queries", "Q", "--out", "m", "--groups", "L"], 2, "groups: queries are not"),
        (
            ["mine", "--pairs", "T", "--text", "a", "b", "--encoder", "E", "--out", "m", "--groups", "P"],
            2,
            "--pairs numbers its texts",
        ),
        (["mine", "--corpus", "C", "--out", "m", "--rescore", "no_such:thing"], 2, "rescore=no_such:thing"),
        (
            ["mine", "--corpus", "C", "--out", "m", "--rescore", "toy_encoder:WORDS"],
            2,
            "rescore=toy_encoder:WORDS: a list",
        ),
    ],
)
def test_bad_input_ends_with_one_message(arrays, tmp_path, capsys, encoder, arguments, code, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text("a,b\nred cat,red cat runs\n")
    (tmp_path / "p.csv").write_text("q,d\nx,y\n")
    (tmp_path / "l.txt").write_text("x\ny\n")
    names = {"L": "l.txt", "C": "corpus.npy", "Q": "queries.npy", "T": "t.csv", "P": "p.csv", "E": encoder}
    found, _, err = run(capsys, *[names.get(a, a) for a in arguments])
    assert message in err
    assert found == code
    assert "Traceback" not in err


def test_help_has_three_worked_examples_that_parse(capsys):
    from negbank.train.commands import parser

    with pytest.raises(SystemExit):
        main(["mine", "--help"])
    assert EXAMPLES in capsys.readouterr().out
    assert all(f"  {n}. " in EXAMPLES for n in (1, 2, 3))
    joined = EXAMPLES.replace("\\\n", " ").replace("torchrun --nproc-per-node 2 -m negbank", "negbank").splitlines()
    commands = [line.strip() for line in joined if line.strip().startswith("negbank ")]
    assert len(commands) == 4
    for command in commands:
        parser().parse_args(shlex.split(command)[1:])


def test_arguments_are_those_of_the_function():
    known = inspect.signature(mine_hard_negatives, eval_str=True).parameters
    assert set(RULES) | set(SEARCH) | {"rescore", "out", "exclude"} <= set(known)
    assert set(RULES) == set(Rules._fields)
    for name, choices in CHOICES.items():
        assert get_args(known[name].annotation) == choices
    for name, (kind, text) in {**RULES, **SEARCH}.items():
        default = known[name].default
        assert default is None or f"({default})" in text or f"({default});" in text, name
        assert default is None or isinstance(default, kind)


def test_help_needs_neither_torch_nor_numpy_nor_faiss():
    code = (
        "import sys\n"
        "from negbank.train.commands import main\n"
        "for verb in ('mine', 'refilter', 'index'):\n"
        "    try: main([verb, '--help'])\n"
        "    except SystemExit as found: assert not found.code\n"
        "assert not {'torch', 'numpy', 'faiss', 'numba'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_torchrun_writes_what_one_process_writes(arrays, tmp_path):
    command = ["mine", "--corpus", "corpus.npy", "--queries", "queries.npy", "--query-batch", "7", "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    run_ = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "negbank",
    ]
    subprocess.run([*run_, *command, "--out", "two"], cwd=tmp_path, env=environment, check=True, timeout=120)
    subprocess.run(
        [sys.executable, "-m", "negbank", *command, "--out", "one"],
        cwd=tmp_path,
        env=environment,
        check=True,
        timeout=120,
    )
    for name in ("indptr", "negatives", "scores", "candidates"):
        assert (tmp_path / "one" / f"{name}.npy").read_bytes() == (tmp_path / "two" / f"{name}.npy").read_bytes()
