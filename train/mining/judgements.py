"""Which corpus rows belong to a query, as files of the field say it: pairs, grades, TREC and BEIR qrels, JSON, CSR."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from negbank.train.mining.tables import SUFFIXES, decoded, delimited, lines, loaded, read_table

QUERIES = ("query-id", "query_id", "queryid", "qid", "query", "q", "anchor")
DOCUMENTS = (
    "corpus-id", "corpus_id", "corpusid", "doc-id", "doc_id", "docid", "docno", "did", "pid", "document", "doc", "d",
    "positive",
)  # fmt: skip
GRADES = ("score", "label", "relevance", "rel", "grade")
UNREAD = ("iteration", "iter", "0", "q0")


def read_links(path: Path, holds: Callable[[Any, Any], bool], name: str = "positives") -> Any:
    """Known positives or exclusions from a file, as `as_links` takes them.

    Pairs (P, 2) in .npy, CSR in .npz (indptr, ids), a dict of ids, lists or {id: grade} in .json, and judgements in
    .csv, .tsv, .jsonl, .parquet, .txt or .qrels: two columns of ids; a third of grades; or TREC's four, query,
    iteration, document, grade. A first line that has no number for a grade, or of two that are no ids, names the
    columns. Grades of 0 or less are no link.

    Args:
        holds: whether a query and a corpus row of these ids exist.
        name: of the argument, for errors.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: for another ending or form, naming the line.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{name}={path}: no such file")
    if path.suffix in (".npy", ".npz"):
        found = loaded(path)
        if isinstance(found, np.ndarray):
            return found
        if not {"indptr", "ids"} <= set(found):
            raise ValueError(f"{name}={path}: arrays {list(found)}, expected indptr and ids")
        return found["indptr"], found["ids"]
    if path.suffix == ".json":
        try:
            told = json.loads(decoded(path))
        except json.JSONDecodeError as error:
            raise ValueError(f"{name}={path}: no JSON ({error}); write it again") from None
        if not isinstance(told, dict):
            raise ValueError(f"{name}={path}: a {type(told).__name__}; expected an object, query id to corpus ids")
        return told
    if path.suffix in (".jsonl", ".parquet"):
        table = read_table(path)
        return _judged([list(table), *map(list, zip(*table.values()))], f"{name}={path}", holds, named=True)
    if path.suffix in (".csv", ".tsv"):
        return _judged(delimited(path), f"{name}={path}", holds)
    if path.suffix in (".txt", ".qrels"):
        return _judged([re.split("[ \t]+", line.strip(" \t")) for line in lines(path)], f"{name}={path}", holds)
    raise ValueError(f"{name}={path}: expected .npy, .npz, .json, .txt or .qrels (TREC), {', '.join(SUFFIXES)}")


def typed(links: Any, integers: tuple[bool, bool], name: str = "positives") -> Any:
    """Links of a file with the ids of queries and of corpus rows as integers, or as strings.

    Raises:
        ValueError: for an id that is no integer where rows are numbered, and for one that is no id.
    """

    def one(value: Any, side: int) -> Any:
        if isinstance(value, bool) or not isinstance(value, str | int | np.integer) or not str(value).strip():
            raise ValueError(f"{name}: {value!r} is no id; expected integers or strings")
        if not integers[side]:
            return str(value)
        if isinstance(value, str) and not re.fullmatch("-?[0-9]+", value):
            raise ValueError(
                f"{name}: {value!r} is no number; rows are numbered from 0 here, give --query-ids and --corpus-ids"
            )
        return int(value)

    if isinstance(links, np.ndarray):
        return (
            links if links.ndim != 2 or links.dtype.kind == "f" else [(one(q, 0), one(i, 1)) for q, i in links.tolist()]
        )
    if isinstance(links, tuple):
        ids = links[1] if links[1].dtype.kind == "f" else np.array([one(i, 1) for i in links[1].tolist()])
        return links[0], ids
    if not isinstance(links, dict):
        return [(one(q, 0), one(i, 1)) for q, i in links]
    found = {}
    for query, ids in links.items():
        if isinstance(ids, dict):
            entry: Any = {one(i, 1): grade for i, grade in ids.items()}
        else:
            entry = [one(i, 1) for i in (ids if isinstance(ids, list) else [ids])]
        found[one(query, 0)] = entry
    if len(found) < len(links):
        raise ValueError(f"{name}: two keys are the same number; name each query once")
    return found


def _judged(rows: list[list[Any]], where: str, holds: Callable[[Any, Any], bool], *, named: bool = False) -> list[Any]:
    """Pairs of the rows of a table whose grade is above 0."""
    width = len(rows[0])
    first = next((number for number, row in enumerate(rows, start=1) if len(row) != width), None)
    if first is not None:
        raise ValueError(f"{where}: line {first} has {len(rows[first - 1])} fields, the first {width}")
    head = [str(name).strip().lower() for name in rows[0]]
    if not named:
        named = not holds(*rows[0]) if width == 2 else width > 4 or _number(rows[0][-1]) is None
    if not named:
        if width not in (2, 3, 4):
            raise ValueError(
                f"{where}: {width} fields a line, expected TREC's four, or ids and a grade; name the columns"
            )
        at = [0, 2, 3] if width == 4 else list(range(width))
    else:
        graded = [i for i, name in enumerate(head) if name in GRADES]
        query = [i for i, name in enumerate(head) if name in QUERIES] or [0]
        document = [i for i, name in enumerate(head) if name in DOCUMENTS and i != query[0]]
        rest = [i for i in range(width) if i != query[0] and i not in graded and head[i] not in UNREAD]
        document = document or rest
        if len(document) != 1 or rest != document or len(graded) > 1:
            raise ValueError(
                f"{where}: columns {', '.join(head)}; expected a query id, a corpus id and no more than a score, "
                f"or TREC's four words; drop the others"
            )
        at = [query[0], document[0], *graded]
    pairs = []
    for number, row in enumerate(rows[named:], start=1 + named):
        grade = 1.0 if len(at) == 2 else _number(row[at[2]])
        if grade is None:
            raise ValueError(f"{where}: line {number} has the grade {row[at[2]]!r}; expected a number")
        if grade > 0:
            several = row[at[1]] if isinstance(row[at[1]], list) else [row[at[1]]]
            pairs += [(row[at[0]], one) for one in several]
    return pairs


def _number(value: Any) -> float | None:
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return None if math.isnan(found) or isinstance(value, bool) else found
