"""Every container at every door: read as the plain array of the same numbers is, or refused by name in one sentence.

Doors: queries and corpus of the miner, a snapshot, the queries of an index; ids and groups of the miner, groups of
`Exclusions`; positives and exclusions of the miner, positives of `Exclusions`. The oracle is a numpy array, or a list
of 2-tuples, at the same door.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from negbank import Exclusions, Snapshot, mine_hard_negatives

SEEDS = range(3)


def optional(name):
    """A package that some machines lack."""
    try:
        return __import__(name)
    except ImportError:
        return None


pl, pa = optional("polars"), optional("pyarrow")


def numbers(seed, rows=None, dim=None):
    """Rows whose numbers are whole in every floating type."""
    rng = np.random.default_rng(seed)
    shape = (rows or int(rng.integers(5, 12)), dim or int(rng.integers(2, 6)))
    return (rng.integers(-60, 60, shape) / 8 + 1 / 16).astype(np.float32)


def saved(x, folder, name="x.npy"):
    folder.mkdir(exist_ok=True)
    np.save(folder / name, x)
    return folder / name


def shards(x, folder):
    for number in range(len(x)):
        saved(x[number : number + 1], folder, f"shard-{number}.npy")  # 0, 1, 10, 2 by letters
    return folder


def objects(values):
    found = np.empty(len(values), dtype=object)
    found[:] = list(values)
    return found


ROWS = {
    "float64": lambda x, p: x.astype(np.float64),
    "float16": lambda x, p: x.astype(np.float16),
    "longdouble": lambda x, p: x.astype(np.longdouble),
    "big-endian": lambda x, p: x.astype(">f4"),
    "big-endian float64": lambda x, p: x.astype(">f8"),
    "Fortran order": lambda x, p: np.asfortranarray(x),
    "negative strides": lambda x, p: x[::-1, ::-1].copy()[::-1, ::-1],
    "read-only": lambda x, p: np.frombuffer(x.tobytes(), np.float32).reshape(x.shape),
    "every second": lambda x, p: np.repeat(x, 2, axis=0)[::2],
    "matrix": lambda x, p: np.matrix(x),
    "masked nowhere": lambda x, p: np.ma.masked_array(x, mask=False),
    "memory map": lambda x, p: np.load(saved(x, p), mmap_mode="r"),
    "path": saved,
    "path as text": lambda x, p: str(saved(x, p)),
    "big-endian file": lambda x, p: saved(x.astype(">f4"), p),
    "Fortran file": lambda x, p: saved(np.asfortranarray(x), p),
    "folder of shards": lambda x, p: shards(np.repeat(x, 1, 0), p),
    "list of paths": lambda x, p: [saved(x[:2], p, "a.npy"), saved(x[2:], p, "b.npy")],
    "tuple of shards": lambda x, p: (x[:2], torch.from_numpy(x[2:])),
    "list of maps": lambda x, p: [np.load(saved(x[:2], p, "a.npy"), "r"), np.load(saved(x[2:], p, "b.npy"), "r")],
    "list of rows": lambda x, p: list(x),
    "tuple of rows": lambda x, p: tuple(x),
    "list of tensors": lambda x, p: list(torch.from_numpy(x)),
    "array of rows": lambda x, p: objects(list(x)),
    "lists": lambda x, p: x.tolist(),
    "tensor": lambda x, p: torch.from_numpy(x),
    "bfloat16": lambda x, p: torch.from_numpy(x).bfloat16(),
    "tensor with a gradient": lambda x, p: torch.from_numpy(x.copy()).requires_grad_(),
    "transposed tensor": lambda x, p: torch.from_numpy(x.T.copy()).T,
    "pandas frame": lambda x, p: pd.DataFrame(x),
    "pandas column of rows": lambda x, p: pd.Series(list(x)),
    "polars frame": pl and (lambda x, p: pl.DataFrame(x)),
    "Arrow table": pa and (lambda x, p: pa.table({str(i): x[:, i] for i in range(x.shape[1])})),
    "polars column of lists": pl and (lambda x, p: pl.Series(x.tolist())),
    "Arrow lists": pa and (lambda x, p: pa.array(x.tolist())),
    "Arrow fixed lists": pa and (lambda x, p: pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), x.shape[1])),
}
NO_ROWS = {
    "masked": lambda x, p: np.ma.masked_array(x, mask=x > x.mean()),
    "sparse": lambda x, p: sp.csr_matrix(x),
    "sparse array": lambda x, p: sp.coo_array(x),
    "sparse tensor": lambda x, p: torch.from_numpy(x).to_sparse(),
    "integers": lambda x, p: x.astype(np.int64),
    "complex": lambda x, p: x.astype(np.complex64),
    "booleans": lambda x, p: x > 0,
    "one row": lambda x, p: x[0],
    "no dimension": lambda x, p: np.float32(1.0),
    "a vector a token": lambda x, p: x[:, None].repeat(3, 1),
    "list of token vectors": lambda x, p: [x, x],
    "list of shards": lambda x, p: [x[:2], torch.from_numpy(x[2:])],
    "ragged": lambda x, p: [x[0], x[1, :1]],
    "empty list": lambda x, p: [],
    "dict": lambda x, p: {"x": x},
    "generator": lambda x, p: (row for row in x),
    "objects": lambda x, p: objects([{"x": 1}, {"x": 2}]),
    "frame with ids": lambda x, p: pd.DataFrame(x).assign(id=range(len(x))),
    "frame with a column of rows": lambda x, p: pd.DataFrame({"id": range(len(x)), "vector": list(x)}),
    "text rows": lambda x, p: pd.DataFrame({"a": ["x"] * len(x)}),
    "no such path": lambda x, p: p / "none.npy",
    "npz": lambda x, p: np.savez(p / "x.npz", x=x) or p / "x.npz",
    "npz by another name": lambda x, p: np.savez(p / "x.npz", x=x) or (p / "x.npz").rename(p / "y.npy"),
    "torch file": lambda x, p: torch.save(torch.from_numpy(x), p / "x.pt") or p / "x.pt",
    "safetensors": lambda x, p: (p / "x.safetensors").write_bytes(b"x") and p / "x.safetensors",
    "parquet": lambda x, p: (p / "x.parquet").write_bytes(b"x") and p / "x.parquet",
    "faiss": lambda x, p: (p / "x.faiss").write_bytes(b"x") and p / "x.faiss",
    "gzip": lambda x, p: (p / "x.jsonl.gz").write_bytes(b"x") and p / "x.jsonl.gz",
    "folder with others": lambda x, p: np.savez(p / "b.npz", x=x) or saved(x, p).parent,
    "truncated": lambda x, p: (p / "t.npy").write_bytes(saved(x, p).read_bytes()[:-3]) and p / "t.npy",
    "pickle": lambda x, p: np.save(p / "o.npy", objects([{}]), allow_pickle=True) or p / "o.npy",
    "flat file": lambda x, p: saved(x[0], p),
}
FEW = {"num_negatives": 2, "range_max": 4}


def corpus_of(x):
    return numbers(len(x) + 77, dim=x.shape[1])


def index_of(x):
    return Snapshot.build(corpus_of(x), factory="exact").index


ROW_DOORS = {
    "queries": lambda given, x: mine_hard_negatives(given, corpus_of(x), [[]] * len(x), **FEW).ids.tolist(),
    "corpus": lambda given, x: mine_hard_negatives(corpus_of(x)[:3], given, [[]] * 3, **FEW).ids.tolist(),
    "vectors": lambda given, x: Snapshot.build(given, factory="exact").vectors.tolist(),
    "queries of an index": lambda given, x: index_of(x).search(given, 3).ids.tolist(),
}  # fmt: skip


def refused(door, name):
    """The one sentence that a door says."""
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        door()
    said = str(caught.value)
    assert type(caught.value) in (ValueError, FileNotFoundError), said
    assert said.startswith(name), said
    assert len(said) < 400, said
    return said


@pytest.mark.parametrize("door", ROW_DOORS)
@pytest.mark.parametrize("kind", ROWS)
def test_rows_are_read_alike_in_any_container(kind, door, tmp_path):
    if ROWS[kind] is None:
        pytest.skip("the package is missing")
    for seed in SEEDS:
        x = numbers(seed, rows=12 if kind == "folder of shards" else None)
        given = ROWS[kind](x, tmp_path / str(seed)) if kind != "folder of shards" else shards(x, tmp_path / str(seed))
        found, expected = ROW_DOORS[door](given, x), ROW_DOORS[door](x, x)
        assert found == expected


@pytest.mark.parametrize("door", ROW_DOORS)
@pytest.mark.parametrize("kind", NO_ROWS)
def test_what_holds_no_rows_is_refused_by_name(kind, door, tmp_path):
    x = numbers(1)
    given = NO_ROWS[kind](x, tmp_path)
    refused(lambda: ROW_DOORS[door](given, x), door.partition(" ")[0])


def some_ids(seed, count):
    rng = np.random.default_rng(seed)
    return [int(i) for i in rng.permutation(100)[:count]]


IDS = {
    "list": list,
    "tuple": tuple,
    "int8": lambda i: np.array(i, dtype=np.int8),
    "uint16": lambda i: np.array(i, dtype=np.uint16),
    "uint64": lambda i: np.array(i, dtype=np.uint64),
    "big-endian": lambda i: np.array(i, dtype=">i4"),
    "negative stride": lambda i: np.array(i[::-1])[::-1],
    "objects": lambda i: objects(i),
    "numpy scalars": lambda i: [np.int32(v) for v in i],
    "tensor": torch.tensor,
    "tensor of int32": lambda i: torch.tensor(i, dtype=torch.int32),
    "tensors": lambda i: [torch.tensor(v) for v in i],
    "masked nowhere": lambda i: np.ma.masked_array(i),
    "pandas": pd.Series,
    "pandas objects": lambda i: pd.Series(i, dtype=object),
    "pandas nullable": lambda i: pd.Series(i, dtype="Int64"),
    "pandas index": pd.Index,
    "polars": pl and pl.Series,
    "Arrow": pa and pa.array,
    "Arrow chunks": pa and (lambda i: pa.chunked_array([i[:2], i[2:]])),
}
NAMES = {
    "list": list,
    "tuple": tuple,
    "array": np.array,
    "objects": objects,
    "variable width": lambda i: np.array(i, dtype=np.dtypes.StringDType()),
    "pandas": pd.Series,
    "pandas objects": lambda i: pd.Series(i, dtype=object),
    "pandas categories": lambda i: pd.Series(i, dtype="category"),
    "polars": pl and pl.Series,
    "Arrow": pa and pa.array,
}
NO_IDS = {
    "floats": lambda i: np.array(i) / 2,
    "whole floats": lambda i: [float(v) for v in i],
    "booleans": lambda i: np.array(i) > 3,
    "python booleans": lambda i: [v > 3 for v in i],
    "a null": lambda i: [*i[:-1], None],
    "a null among strings": lambda i: [*map(str, i[:-1]), None],
    "not a number": lambda i: pd.Series([*map(str, i[:-1]), np.nan], dtype=object),
    "missing": lambda i: pd.Series([*i[:-1], None], dtype="Int64"),
    "mixed": lambda i: [*i[:-1], "x"],
    "beyond 64 bits": lambda i: np.array(i, dtype=np.uint64) + np.uint64(2**63),
    "far beyond": lambda i: [2**70 + v for v in i],
    "bytes": lambda i: np.array([str(v).encode() for v in i]),
    "two columns": lambda i: np.array([i, i]).T,
    "lists": lambda i: [[v] for v in i],
    "a number": lambda i: i[0],
    "no dimension": lambda i: np.array(i[0]),
    "text": lambda i: "abcdef",
    "set": set,
    "dict": lambda i: dict.fromkeys(i),
    "iterator": iter,
    "masked": lambda i: np.ma.masked_array(i, mask=[1] + [0] * (len(i) - 1)),
    "dates": lambda i: np.array(i, dtype="datetime64[D]"),
    "sparse": lambda i: sp.csr_matrix(np.array([i])),
    "nul": lambda i: [f"{v}\0" for v in i],
    "dropped": lambda i: i[1:],
    "nothing": lambda i: (),
    "three of them": lambda i: ([*i], [*i], [*i]),
}
X = numbers(5, rows=6, dim=4)
Y = numbers(6, rows=6, dim=4)


def by_groups(given):
    """Which of 6 rows are allowed to which."""
    exclude = Exclusions(6, groups=given)
    return exclude.allowed(torch.arange(6), torch.arange(6).expand(6, 6)).tolist()


ID_DOORS = {
    "query_ids": lambda given: mine_hard_negatives(X, Y, [[]] * 6, query_ids=given, **FEW).query_ids.tolist(),
    "corpus_ids": lambda given: mine_hard_negatives(X, Y, [[]] * 6, corpus_ids=given, **FEW).ids.tolist(),
    "groups": lambda given: mine_hard_negatives(None, X, groups=given, **FEW).ids.tolist(),
    "groups of Exclusions": by_groups,
}


@pytest.mark.parametrize("door", ID_DOORS)
@pytest.mark.parametrize(("kind", "make"), [*IDS.items(), *(("named " + k, m) for k, m in NAMES.items())])
def test_ids_and_labels_are_read_alike_in_any_container(kind, make, door):
    if make is None:
        pytest.skip("the package is missing")
    for seed in SEEDS:
        ids = some_ids(seed, 6)
        ids = [f"é{i}" for i in ids] if kind.startswith("named") else ids
        assert ID_DOORS[door](make(ids)) == ID_DOORS[door](np.array(ids))


@pytest.mark.parametrize("door", ID_DOORS)
@pytest.mark.parametrize("kind", NO_IDS)
def test_what_holds_no_ids_is_refused_by_name(kind, door):
    refused(lambda: ID_DOORS[door](NO_IDS[kind](some_ids(1, 6))), door.partition(" ")[0])


def columns(pairs):
    return {"q": [q for q, _ in pairs], "d": [d for _, d in pairs]}


def matrix(pairs, make):
    """With zeros that are said, as a relevance of 0."""
    zeros = [(q, d) for q in range(6) for d in range(6) if (q, d) not in set(pairs)][::5]
    rows, cols = zip(*pairs, *zeros)
    return make(sp.coo_matrix(([1] * len(pairs) + [0] * len(zeros), (rows, cols)), shape=(6, 6)))


def lists(pairs):
    return [[d for q, d in pairs if q == i] for i in range(6)]


LINKS = {
    "tuple of tuples": tuple,
    "array": np.array,
    "uint8": lambda p: np.array(p, dtype=np.uint8),
    "objects": lambda p: np.array(p, dtype=object),
    "tensor": torch.tensor,
    "lists": lists,
    "arrays": lambda p: [np.array(ids, dtype=int) for ids in lists(p)],
    "tensors": lambda p: [torch.tensor(ids, dtype=torch.int64) for ids in lists(p)],
    "sets": lambda p: [set(ids) for ids in lists(p)],
    "array of lists": lambda p: objects(lists(p)),
    "pandas lists": lambda p: pd.Series(lists(p)),
    "dict": lambda p: dict(enumerate(lists(p))),
    "numpy keys": lambda p: {np.int64(i): np.array(ids, int) for i, ids in enumerate(lists(p))},
    "grades": lambda p: {i: {d: (d in ids) * 2 for d in range(6)} for i, ids in enumerate(lists(p))},
    "grades by row": lambda p: [{d: float(d in ids) for d in range(6)} for ids in lists(p)],
    "CSR pair": lambda p: (np.cumsum([0, *map(len, lists(p))]), np.array([d for ids in lists(p) for d in ids])),
    "CSR": lambda p: matrix(p, sp.csr_matrix),
    "CSC": lambda p: matrix(p, sp.csc_matrix),
    "COO": lambda p: matrix(p, sp.coo_matrix),
    "CSR array": lambda p: matrix(p, sp.csr_array),
    "DOK": lambda p: matrix(p, sp.dok_matrix),
    "pandas frame": lambda p: pd.DataFrame(columns(p)),
    "polars frame": pl and (lambda p: pl.DataFrame(columns(p))),
    "Arrow table": pa and (lambda p: pa.table(columns(p))),
}
NO_LINKS = {
    "fractions": lambda p: [(q, d + 0.7) for q, d in p],
    "fractions in a dict": lambda p: {0: 3.7},
    "floats": lambda p: np.array(p, dtype=float),
    "booleans": lambda p: np.zeros((6, 6), dtype=bool),
    "three columns": lambda p: np.array([(q, d, 1) for q, d in p]),
    "frame of three": lambda p: pd.DataFrame({**columns(p), "score": 1}),
    "triples": lambda p: [(q, d, 1) for q, d in p],
    "lists of two": lambda p: [[0, 5], [1, 4], [2, 3], [3, 2], [4, 1], [5, 0]],
    "arrays of two": lambda p: [np.array([i, 5 - i]) for i in range(6)],
    "five lists": lambda p: [[1]] * 5,
    "a null": lambda p: [[1], [None], [], [], [], []],
    "unknown query": lambda p: [(6, 0)],
    "unknown query in a dict": lambda p: {-1: [0]},
    "grades that are text": lambda p: {0: {1: "high"}},
    "grades that are no number": lambda p: {0: {1: float("nan")}},
    "two lists": lambda p: ([0, 1], [2, 3]),
    "offsets that fall": lambda p: (np.array([0, 2, 1, 2, 2, 2, 2]), np.array([0, 1])),
    "masked": lambda p: np.ma.masked_array(p, mask=True),
    "matrix of other rows": lambda p: sp.csr_matrix((5, 6)),
    "sparse tensor": lambda p: torch.eye(6).to_sparse(),
    "text": lambda p: "0,1",
    "generator": lambda p: (pair for pair in p),
    "beyond 64 bits": lambda p: np.array(p, dtype=np.uint64) + np.uint64(2**63),
    "strings where rows are numbered": lambda p: [(str(q), str(d)) for q, d in p],
}


def positives(given):
    found = mine_hard_negatives(X, Y, given, **FEW)
    return [sorted(found.positives_of(i)[0].tolist()) for i in range(6)], found.ids.tolist()


def allowed(given):
    exclude = Exclusions(6, positives=given)
    return exclude.allowed(torch.arange(6), torch.arange(6).expand(6, 6)).tolist()


LINK_DOORS = {
    "positives": positives,
    "exclude": lambda given: mine_hard_negatives(X, Y, [[]] * 6, exclude=given, **FEW).ids.tolist(),
    "positives of Exclusions": allowed,
}


@pytest.mark.parametrize("door", LINK_DOORS)
@pytest.mark.parametrize("kind", LINKS)
def test_links_are_read_alike_in_any_container(kind, door):
    if LINKS[kind] is None:
        pytest.skip("the package is missing")
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        pairs = [(q, int(d)) for q in range(6) for d in rng.permutation(6)[: rng.integers(q == 0, 4)]]
        pairs = [p for p in pairs if p != (0, 5)] or [(0, 1)]
        pairs = [p for p in pairs if p[0] != 5] + [(5, 0), (5, 1), (5, 2)]  # never two a row in all of them
        assert LINK_DOORS[door](LINKS[kind](pairs)) == LINK_DOORS[door](pairs)


@pytest.mark.parametrize("door", LINK_DOORS)
@pytest.mark.parametrize("kind", NO_LINKS)
def test_what_holds_no_links_is_refused_by_name(kind, door):
    refused(lambda: LINK_DOORS[door](NO_LINKS[kind]([(0, 1), (2, 3)])), door.partition(" ")[0])
