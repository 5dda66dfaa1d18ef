"""A mining result as training records, in the forms that sentence-transformers' losses take.

Columns come in the order anchor, positive, negatives, so that a trainer that goes by position reads them as they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from negbank import files

Lookup = Mapping[Any, Any] | Sequence[Any] | Callable[[Any], Any]
BATCH = 10_000
"""Records of a Parquet row group."""


class Row(NamedTuple):
    """A row of a result: a query, its positives and its negatives, by id or by what the ids stand for."""

    query: Any
    positives: list[Any]
    positive_scores: list[float]
    negatives: list[Any]
    scores: list[float]


def _triplets(row: Row, scores: bool, wanted: int) -> Iterator[dict[str, Any]]:
    for positive, above in zip(row.positives, row.positive_scores):
        for negative, below in zip(row.negatives, row.scores):
            record = {"anchor": row.query, "positive": positive, "negative": negative}
            yield record | {"scores": [above, below]} if scores else record


def _tuples(row: Row, scores: bool, wanted: int) -> Iterator[dict[str, Any]]:
    numbered = {f"negative_{n}": document for n, document in enumerate(row.negatives, start=1)}
    for positive, above in zip(row.positives, row.positive_scores) if len(row.negatives) == wanted else ():
        record = {"anchor": row.query, "positive": positive, **numbered}
        yield record | {"scores": [above, *row.scores]} if scores else record


def _pairs(row: Row, scores: bool, wanted: int) -> Iterator[dict[str, Any]]:
    both = [(row.positives, row.positive_scores, 1), (row.negatives, row.scores, 0)]
    for documents, values, label in both:
        for document, value in zip(documents, values):
            yield {"anchor": row.query, "document": document} | ({"score": value} if scores else {"label": label})


def _lists(row: Row, scores: bool, wanted: int) -> Iterator[dict[str, Any]]:
    for positive, above in zip(row.positives, row.positive_scores) if row.negatives else ():
        last = {"scores": [above, *row.scores]} if scores else {"labels": [1] + [0] * len(row.negatives)}
        yield {"anchor": row.query, "documents": [positive, *row.negatives], **last}


def _ids(row: Row, scores: bool, wanted: int) -> Iterator[dict[str, Any]]:
    names = ("query", "positives", "positive_scores", "negatives", "scores")
    yield dict(zip(names, row))


FORMS: dict[str, Callable[[Row, bool, int], Iterator[dict[str, Any]]]] = {
    "triplet": _triplets,
    "n-tuple": _tuples,
    "labeled-pair": _pairs,
    "labeled-list": _lists,
    "ids": _ids,
}


def records(
    rows: Iterable[Row], form: str, lookup: Lookup | tuple[Lookup, Lookup] | None, scores: bool, wanted: int
) -> Iterator[dict[str, Any]]:
    """The records of rows with ids, with what these stand for: see `MiningResult.to`.

    Args:
        wanted: negatives of a whole row.

    Raises:
        ValueError: for an unknown form.
    """
    if form not in FORMS:
        raise ValueError(f"form={form!r}: expected one of {', '.join(FORMS)}")
    pair = lookup if isinstance(lookup, tuple) and len(lookup) == 2 else (lookup, lookup)
    query, document = (_finder(one) for one in pair)
    found = (
        Row(query(q), [document(i) for i in above], above_scores, [document(i) for i in below], below_scores)
        for q, above, above_scores, below, below_scores in rows
    )
    return (record for row in found for record in FORMS[form](row, scores, wanted))


def export(made: Iterator[dict[str, Any]], out: str | Path | None) -> Any:
    """The records as they are, in a file whose path is returned, or as a `datasets.Dataset`: see `MiningResult.to`."""
    if out is None:
        return made
    if out == "dataset":
        return _dataset(made)
    path = Path(out)
    if path.suffix == ".jsonl":
        files.write(path, lambda f: f.writelines((json.dumps(r, ensure_ascii=False) + "\n").encode() for r in made))
    elif path.suffix == ".parquet":
        _parquet(made, path)
    else:
        raise ValueError(f"out={str(out)!r}: expected None, 'dataset', or a path that ends in .jsonl or .parquet")
    return path


def _dataset(made: Iterator[dict[str, Any]]) -> Any:
    try:
        import datasets
    except ImportError:
        raise ImportError("out='dataset' needs the package `datasets`: pip install 'negbank[text]'") from None
    columns: dict[str, list[Any]] = {}
    for record in made:
        for name, value in record.items():
            columns.setdefault(name, []).append(value)
    return datasets.Dataset.from_dict(columns)


def _parquet(made: Iterator[dict[str, Any]], path: Path) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ImportError(f"out={path} needs the package `pyarrow`: pip install 'negbank[text]'") from None

    def fill(file: Any) -> None:
        first = pa.Table.from_pylist(list(islice(made, BATCH)))
        with pq.ParquetWriter(file, first.schema) as writer:
            writer.write_table(first)
            while batch := list(islice(made, BATCH)):
                writer.write_table(pa.Table.from_pylist(batch, schema=first.schema))

    files.write(path, fill)


def _finder(lookup: Lookup | None) -> Callable[[Any], Any]:
    if lookup is None:
        return lambda i: i
    if callable(lookup):
        return lookup

    def find(i: Any) -> Any:
        try:
            return lookup[i]
        except (KeyError, IndexError, TypeError):
            raise ValueError(f"lookup: has nothing for id {i!r}; give a text for every query and corpus id") from None

    return find
