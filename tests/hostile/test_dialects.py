"""Tables, judgements and lists in the dialects that people's files have, against Python's own `csv` and `json`."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from negbank.train.mining.judgements import read_links, typed
from negbank.train.mining.tables import as_text, is_table, joined, read_ids, read_table

CASES = settings(max_examples=200, deadline=None)
LETTERS = "ab é中\u2028\u00a0;,\"'\\|#-0."
CELLS = st.text(LETTERS + "\t\n", max_size=5)
RAW = st.text(LETTERS, max_size=5)
WORDS = st.text(LETTERS, min_size=1, max_size=5)
BOM = "\ufeff"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("dialects")


def tables(cells):
    """A header of distinct names, and rows."""
    return st.integers(2, 4).flatmap(
        lambda n: st.tuples(
            st.lists(WORDS, min_size=n, max_size=n, unique=True),
            st.lists(st.lists(cells, min_size=n, max_size=n), min_size=1, max_size=5),
        )
    )


def as_rows(table):
    return [list(table), *map(list, zip(*table.values()))]


def apart(table):
    """Whether no two names are one without its quotes: `"a"` beside `a`."""
    return len({name.replace('"', "") for name in table[0]}) == len(table[0])


@CASES
@given(tables(CELLS), st.booleans(), st.sampled_from(["\n", "\r\n"]), st.sampled_from([0, 1, 2]), st.integers(0, 2))
def test_csv_is_what_pythons_reader_reads(folder, table, mark, end, quoting, blank):
    """All that `csv.writer` writes, with or without a byte order mark and blank lines at the end."""
    text = io.StringIO()
    csv.writer(text, lineterminator=end, quoting=quoting).writerows([table[0], *table[1]])
    path = folder / "t.csv"
    path.write_bytes(((BOM if mark else "") + text.getvalue() + end * blank).encode())
    expected = [row for row in csv.reader(io.StringIO(text.getvalue(), newline="")) if row]
    assert as_rows(read_table(path)) == expected == [table[0], *table[1]]


@CASES
@given(tables(CELLS.filter(lambda c: not {"\t", "\n"} <= set(c))), st.booleans(), st.sampled_from(["\n", "\r\n"]))
def test_quoted_tsv_is_what_pythons_reader_reads(folder, table, mark, end):
    rows = [table[0], *table[1]]
    text = io.StringIO()
    csv.writer(text, delimiter="\t", lineterminator=end).writerows(rows)
    path = folder / "t.tsv"
    path.write_bytes(((BOM if mark else "") + text.getvalue()).encode())
    assert as_rows(read_table(path)) == rows


@CASES
@given(
    tables(st.text(LETTERS, max_size=5)).filter(apart), st.booleans(), st.sampled_from(["\n", "\r\n"]), st.booleans()
)
def test_raw_quotes_of_a_tsv_swallow_no_rows(folder, table, mark, end, last):
    """Fields as they are, between tabs. Quotes around a whole field may go, nothing else, and no row is lost."""
    lines = ["\t".join(row) for row in [table[0], *table[1]]]
    path = folder / "raw.tsv"
    path.write_bytes(((BOM if mark else "") + end.join(lines) + end * last).encode())
    found = as_rows(read_table(path))
    unquoted = [next(csv.reader([line], delimiter="\t")) for line in lines]
    assert found in ([line.split("\t") for line in lines], unquoted)


@pytest.mark.parametrize("seed", range(200))
def test_jsonl_is_what_pythons_reader_reads(seed, tmp_path):
    rng = np.random.default_rng(seed)
    names = ["query", "pos", "é", "n"]
    values = ["a", 'say "x"', "two\nlines", "\u2028", "", 3, 2.5, None, ["a", None], {"b": 1}, True, "中"]
    some = rng.integers(1, 6)
    records = [{n: values[rng.integers(len(values))] for n in names if rng.random() < 0.8} for _ in range(some)]
    end = ["\n", "\r\n", "\n\n"][rng.integers(3)]
    text = end.join(json.dumps(r, ensure_ascii=bool(rng.integers(2))) for r in records) + end * rng.integers(2)
    path = tmp_path / "t.jsonl"
    path.write_bytes((BOM * rng.integers(2) + text).encode())
    expected = [json.loads(line) for line in text.split("\n") if line.strip()]
    assert expected == records
    if not any(records):
        return
    table = read_table(path)
    assert list(table) == list(dict.fromkeys(name for r in records for name in r))
    assert [dict(zip(table, row)) for row in zip(*table.values())] == [{n: r.get(n) for n in table} for r in records]


def judged(rng):
    """{query: {document: grade}}, ids that are numbers or names, grades from −1 on."""
    named = bool(rng.integers(2))
    queries = [f"q{i}" if named else str(i) for i in rng.permutation(9)[: rng.integers(1, 5)]]
    documents = [f"d-{i}" if named else str(i) for i in rng.permutation(30)[:12]]
    told = {}
    for query in queries:
        some = rng.permutation(documents)[: rng.integers(1, 6)].tolist()
        told[query] = {document: int(rng.integers(-1, 4)) for document in some}
    return told, named


def written(told, form, rng, path):
    """The judgements in a form of the field."""
    flat = [(q, d, g) for q, grades in told.items() for d, g in grades.items()]
    end, mark = ["\n", "\r\n"][rng.integers(2)], BOM * int(rng.integers(2))
    kind, header = form.split(":")
    if kind in ("json", "jsonl", "npy"):
        if kind == "json":
            path.write_text(mark + json.dumps(told), encoding="utf-8")
        else:
            names = header.split(",")
            path.write_text(mark + "".join(json.dumps(dict(zip(names, row))) + "\n" for row in flat), encoding="utf-8")
        return
    between = {"csv": ",", "tsv": "\t", "txt": " ", "qrels": [" ", "\t", "  "][rng.integers(3)]}[kind]
    columns = len(header.split(",")) if header else 4
    iteration = ["0", "Q0"][rng.integers(2)]
    whole = {4: lambda q, d, g: (q, iteration, d, g), 3: lambda q, d, g: (q, d, g), 2: lambda q, d, g: (q, d)}[columns]
    graded = [whole(*each) for each in flat if columns > 2 or each[2] > 0]
    lines = [header.replace(",", between)] * (not header.startswith("-")) * bool(header)
    lines += [between.join(map(str, row)) for row in graded]
    path.write_bytes((mark + end.join(lines) + end * int(rng.integers(2))).encode())


FORMS = [
    "txt:", "qrels:", "tsv:", "csv:",  # TREC, whatever its name
    "tsv:query-id,corpus-id,score", "csv:query-id,corpus-id,score", "qrels:query-id,corpus-id,score",  # BEIR
    "tsv:-,-,-", "csv:-,-,-", "tsv:query_id,iter,doc_id,relevance", "csv:qid,docid,label", "csv:topic,paper,grade",
    "tsv:-,-", "csv:-,-", "tsv:query,document", "csv:topic,paper",
    "json:", "jsonl:query-id,corpus-id,score", "jsonl:q,d,rel",
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_judgements_say_the_same_in_every_dialect(form, tmp_path):
    """Of 12 random ones a form: exactly the pairs with a grade above 0, none lost to a header, none gained from a 0."""
    for seed in range(12):
        rng = np.random.default_rng(seed)
        told, named = judged(rng)
        path = tmp_path / f"{seed}.{form.partition(':')[0]}"
        written(told, form, rng, path)
        documents = {d for grades in told.values() for d in grades}
        expected = {(q, d) for q, grades in told.items() for d, g in grades.items() if g > 0}
        if not expected:
            continue
        links = typed(
            read_links(path, lambda q, d, known=(told, documents): q in known[0] and d in known[1]),
            (not named, not named),
        )
        if isinstance(links, dict):
            links = [(q, d) for q, grades in links.items() for d, grade in grades.items() if grade > 0]
        assert {(str(q), str(d)) for q, d in links} == expected
        assert len(links) == len(expected)
        assert all(isinstance(i, str if named else int) for pair in links for i in pair)


@CASES
@given(
    st.lists(WORDS.filter(lambda w: w.strip()), min_size=1, max_size=6), st.booleans(), st.booleans(),
    st.sampled_from(["\n", "\r\n"]), st.sampled_from(["txt", "csv", "jsonl"]),
)  # fmt: skip
def test_lists_of_ids_lose_none_and_count_no_header(folder, ids, mark, last, end, kind):
    path = folder / f"ids.{kind}"
    text = io.StringIO()
    if kind == "csv":
        csv.writer(text, lineterminator=end).writerows([["label"], *([i] for i in ids)])
    elif kind == "jsonl":
        text.writelines(json.dumps({"label": i}) + end for i in ids)
    else:
        text.write(end.join(ids) + end)
    path.write_bytes(((BOM if mark else "") + (text.getvalue() if last else text.getvalue().rstrip("\r\n"))).encode())
    assert read_ids(path).tolist() == ids


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "caf\xe9,b\n1,2\n".encode("cp1252"), "byte 3 is no UTF-8; save it as UTF-8"),
        ("a.jsonl", '{"a": "x"}\n'.encode("utf-16"), "UTF-16; save it as UTF-8"),
        ("a.csv", b'a,b\n"x,1\ny,2\n', "no CSV .* quote fields"),
        ("a.csv", b"a,b\n1,2,3\n", "row 2 has 3 fields, the header 2"),
        ("a.csv", b"a,a\n1,2\n", "name each once"),
        ("a.csv", b"a,b\n", "no rows below a header"),
        ("a.csv", b"", "no rows below a header"),
        ("a.jsonl", b'{"a": 1}\n{"a": \n', "line 2 is no JSON"),
        ("a.jsonl", b"[1]\n", "line 1 is no JSON object"),
        ("a.jsonl", b"\n\n", "no rows"),
        ("a.parquet", b"PAR1", "no complete Parquet file|needs pyarrow"),
    ],
)
def test_what_is_no_table_is_refused_by_name(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises((ValueError, ImportError), match=rf"{name}.*({message})"):
        read_table(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.json", b"{", "no JSON"),
        ("p.json", b"[[0, 1]]", "a list; expected an object"),
        ("p.json", b'{"0": [3.7]}', "3.7 is no id"),
        ("p.json", b'{"0": [true]}', "True is no id"),
        ("p.json", b'{"0": [null]}', "None is no id"),
        ("p.json", b'{"1": [2], "01": [3]}', "two keys are the same number"),
        ("p.csv", b"query,doc,score\n0,1,high\n", "line 2 has the grade 'high'"),
        ("p.csv", b"query,doc,score\n0,1,nan\n", "line 2 has the grade 'nan'"),
        ("p.csv", b"query,doc,comment\n0,1,x\n", "columns query, doc, comment; expected a query id"),
        ("p.csv", b"a,b,c,d\n0,1,2,3\n", "columns a, b, c, d"),
        ("p.txt", b"0 Q0 1 1 0.9 run\n", "expected a query id, .* or TREC's four words; drop"),
        ("p.txt", b"0 0 1 1\n0 0 1\n", "line 2 has 3 fields, the first 4"),
        ("p.txt", b"0 0 1 1\n\n0 0 2 1\n", "line 2 is empty"),
        ("p.txt", b"0 0 1_0 1\n", "'1_0' is no number"),
        ("p.csv", b"q,d\n0,\n", "'' is no id"),
        ("p.npz", b"PK", "no complete .npz file"),
        ("p.npy", b"\x93NUMPY", "no complete .npy file"),
        ("p.jsonl.gz", b"", r"expected .npy, .npz, .json"),
    ],
)
def test_what_is_no_judgement_is_refused_by_name(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        typed(read_links(tmp_path / name, lambda q, d: False), (True, True))
    assert "positives" in str(caught.value) or name in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("i.txt", b"a\n\nb\n", "line 2 is empty"),
        ("i.csv", b"id,label\n0,1\n", "columns id, label; give a table of one column"),
        ("i.jsonl", b'{"id": 3.7}\n', "3.7 is no id"),
        ("i.jsonl", b'{"id": null}\n', "None is no id"),
        ("i.csv", b'id\na\n""\n', "'' is no id"),
        ("i.json", b"[1]", "JSON; expected"),
        ("i.npz", b"PK", "an archive; expected"),
        ("i.npy", b"x", "no complete .npy file"),
    ],
)
def test_what_is_no_list_of_ids_is_refused_by_name(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}: .*{message}|{name}: {message}"):
        read_ids(tmp_path / name)


def test_a_cell_is_text_or_none_or_refused(tmp_path):
    for value in (None, float("nan"), "", "  \n", "\u00a0"):
        assert as_text(value, "x") is None
    assert [as_text(v, "x") for v in ("a", 3, 2.5)] == ["a", "3", "2.5"]
    for value in (["a"], {"a": 1}, True, "\ud800"):
        with pytest.raises(ValueError, match="x: "):
            as_text(value, "x")
    assert joined({"a": ["x", None, ""], "b": ["y", "z", None]}, ["a", "b"], tmp_path) == ["x y", "z", None]
    assert not is_table("corpus.jsonl.gz")
