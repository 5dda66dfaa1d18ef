"""Columns of CSV, TSV, JSONL and Parquet files, relevance judgements, and lists of ids."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


def is_table(path: str | Path) -> bool:
    """Whether the path names a table of columns rather than an array."""
    return Path(path).suffix in SUFFIXES


def read_table(path: Path) -> dict[str, list[Any]]:
    """All columns of a table: name → values, strings where the format has no types.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: for an empty file, rows of different lengths, or a line that is no JSON object.
        ImportError: for Parquet without pyarrow.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.suffix == ".parquet":
        try:
            import pyarrow.parquet as pq
        except ImportError:
            raise ImportError(f"{path}: reading Parquet needs pyarrow: pip install 'negbank[text]'") from None
        return dict(pq.read_table(path).to_pydict())
    if path.suffix == ".jsonl":
        return _columns_of(path)
    csv.field_size_limit(1 << 30)
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ","))
    if len(rows) < 2:
        raise ValueError(f"{path}: no rows below a header")
    for number, row in enumerate(rows, start=1):
        if len(row) != len(rows[0]):
            raise ValueError(f"{path}: row {number} has {len(row)} fields, the header {len(rows[0])}")
    return {name: [row[i] for row in rows[1:]] for i, name in enumerate(rows[0])}


def column(table: dict[str, list[Any]], name: str, path: Path) -> list[Any]:
    """One column.

    Raises:
        ValueError: naming the columns there are.
    """
    if name not in table:
        raise ValueError(f"{path}: no column {name!r}; it has {', '.join(table)}")
    return table[name]


def read_positives(path: Path) -> Any:
    """Known positives from a file.

    (P, 2) pairs in .npy, CSR in .npz, a dict of lists in .json, pairs of ids in the first two columns of a table (rows
    with a `score`, `label` or `relevance` of 0 or less are left out), or TREC qrels in .txt or .qrels.

    Raises:
        ValueError: for another ending or form.
    """
    if not path.is_file():
        raise FileNotFoundError(f"positives={path}: no such file")
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False)
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            if not {"indptr", "ids"} <= set(arrays.files):
                raise ValueError(f"positives={path}: arrays {arrays.files}, expected indptr and ids")
            return arrays["indptr"], arrays["ids"]
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    if path.suffix in (".txt", ".qrels"):
        judged = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        if any(len(words) != 4 for words in judged):
            raise ValueError(
                f"positives={path}: expected TREC qrels, four words a line: query, iteration, document, grade"
            )
        return [(words[0], words[2]) for words in judged if float(words[3]) > 0]
    if not is_table(path):
        raise ValueError(f"positives={path}: expected .npy, .npz, .json, .txt or .qrels (TREC), {', '.join(SUFFIXES)}")
    table = read_table(path)
    names = list(table)
    if len(names) < 2:
        raise ValueError(f"positives={path}: columns {names}, expected a query id and a corpus id")
    graded = next((name for name in names[2:] if name in ("score", "label", "relevance")), None)
    pairs = list(zip(table[names[0]], table[names[1]]))
    return pairs if graded is None else [pair for pair, grade in zip(pairs, table[graded]) if float(grade) > 0]


def read_ids(path: Path) -> np.ndarray:
    """Ids from a .npy array, or one a line of a text file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False)
    return np.array(path.read_text(encoding="utf-8").split("\n")[:-1] or [""])


def typed(pairs: Any, integers: bool) -> Any:
    """Pairs or a dict of ids with ids as integers, or as strings; arrays and CSR as they are.

    Raises:
        ValueError: for an id that is no integer where rows are numbered.
    """
    if isinstance(pairs, np.ndarray) or (isinstance(pairs, tuple) and isinstance(pairs[0], np.ndarray)):
        return pairs
    kind = int if integers else str
    try:
        if isinstance(pairs, dict):
            return {kind(q): [kind(i) for i in (ids if isinstance(ids, list) else [ids])] for q, ids in pairs.items()}
        return [(kind(q), kind(i)) for q, i in pairs]
    except ValueError as error:
        raise ValueError(
            f"positives: {error}; rows are numbered from 0 here, give --query-ids and --corpus-ids"
        ) from None


def _columns_of(path: Path) -> dict[str, list[Any]]:
    records = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}: line {number} is no JSON ({error})") from None
            if not isinstance(record, dict):
                raise ValueError(f"{path}: line {number} is no JSON object")
            records.append(record)
    if not records:
        raise ValueError(f"{path}: no rows")
    names = list(records[0])
    for number, record in enumerate(records, start=1):
        if missing := [name for name in names if name not in record]:
            raise ValueError(f"{path}: record {number} lacks {', '.join(missing)}")
    return {name: [record[name] for record in records] for name in names}


def joined(table: dict[str, list[Any]], names: Sequence[str], path: Path) -> list[str]:
    """Texts of one column, or of several joined by a space."""
    parts = [column(table, name, path) for name in names]
    return [" ".join(str(value) for value in row if value) for row in zip(*parts)]
