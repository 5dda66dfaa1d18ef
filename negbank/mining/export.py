"""A mining result as training records, in the forms that sentence-transformers' losses take.

Columns come in the order anchor, positive, negatives, so that a trainer that goes by position reads them as they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from negbank.mining.result import MiningResult

FORMS = ("triplet", "n-tuple", "labeled-pair", "labeled-list", "ids")
Lookup = Mapping[Any, Any] | Sequence[Any] | Callable[[Any], Any]
ROWS = 4096
"""Rows turned into Python values at once."""
BATCH = 10_000
"""Records of a Parquet row group."""


class Records:
    """The records of a result, made anew at each iteration.

    Args:
        result: what was mined.
        form, lookup, scores: see `MiningResult.to`.

    Raises:
        ValueError: for an unknown form.
    """

    def __init__(
        self, result: MiningResult, form: str, lookup: Lookup | tuple[Lookup, Lookup] | None, scores: bool
    ) -> None:
        if form not in FORMS:
            raise ValueError(f"form={form!r}: expected one of {', '.join(FORMS)}")
        self._result, self._form, self._scores = result, form, scores
        pair = lookup if isinstance(lookup, tuple) and len(lookup) == 2 else (lookup, lookup)
        self._query, self._document = (_finder(one) for one in pair)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for first in range(0, len(self._result), ROWS):
            for row in self._result.rows(first, first + ROWS):
                yield from self._of_row(*row)

    def _of_row(
        self, query: Any, positives: list[Any], above: list[float], negatives: list[Any], below: list[float]
    ) -> Iterator[dict[str, Any]]:
        anchor = self._query(query)
        documents = [self._document(i) for i in negatives]
        if self._form == "ids":
            texts = [self._document(i) for i in positives]
            yield {
                "query": anchor,
                "positives": texts,
                "positive_scores": above,
                "negatives": documents,
                "scores": below,
            }
            return
        if self._form == "labeled-pair":
            pairs = [(i, s, 1) for i, s in zip(positives, above)] + [(i, s, 0) for i, s in zip(negatives, below)]
            for i, score, label in pairs:
                last = {"score": score} if self._scores else {"label": label}
                yield {"anchor": anchor, "document": self._document(i), **last}
            return
        for i, score in zip(positives, above):
            positive = self._document(i)
            if self._form == "triplet":
                for document, value in zip(documents, below):
                    record = {"anchor": anchor, "positive": positive, "negative": document}
                    yield record | {"scores": [score, value]} if self._scores else record
            elif self._form == "n-tuple":
                if len(negatives) == self._result.rules.num_negatives:
                    numbered = {f"negative_{n}": document for n, document in enumerate(documents, start=1)}
                    record = {"anchor": anchor, "positive": positive, **numbered}
                    yield record | {"scores": [score, *below]} if self._scores else record
            elif negatives:
                record = {"anchor": anchor, "documents": [positive, *documents]}
                labels = [1] + [0] * len(negatives)
                yield record | ({"scores": [score, *below]} if self._scores else {"labels": labels})


def export(records: Records, out: str | Path | None) -> Any:
    """An iterator, a path written, or a `datasets.Dataset`: see `MiningResult.to`."""
    if out is None:
        return iter(records)
    if out == "dataset":
        return _dataset(records)
    path = Path(out)
    if path.suffix == ".jsonl":
        with path.open("w", encoding="utf-8") as file:
            for record in records:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        return path
    if path.suffix == ".parquet":
        return _parquet(records, path)
    raise ValueError(f"out={str(out)!r}: expected None, 'dataset', or a path that ends in .jsonl or .parquet")


def _dataset(records: Records) -> Any:
    try:
        import datasets
    except ImportError:
        raise ImportError("out='dataset' needs the package `datasets`: pip install 'negbank[text]'") from None
    columns: dict[str, list[Any]] = {}
    for record in records:
        for name, value in record.items():
            columns.setdefault(name, []).append(value)
    return datasets.Dataset.from_dict(columns)


def _parquet(records: Records, path: Path) -> Path:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ImportError(f"out={path} needs the package `pyarrow`: pip install 'negbank[text]'") from None
    rows = iter(records)
    first = pa.Table.from_pylist(list(islice(rows, BATCH)))
    with pq.ParquetWriter(path, first.schema) as writer:
        writer.write_table(first)
        while batch := list(islice(rows, BATCH)):
            writer.write_table(pa.Table.from_pylist(batch, schema=first.schema))
    return path


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
