"""Search of a run's texts by meaning: its encoder, its documents, and words of your own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from negbank.bank import unit_rows
from negbank.index import ExactIndex
from negbank.train.data.contract import Data, Subset, sides
from negbank.train.run import restored


class Hit(NamedTuple):
    """A document found: its cosine to the query, and its text."""

    score: float
    text: str


def search(folder: Path, queries: Sequence[str], *, k: int = 5, best: bool = False) -> list[list[Hit]]:
    """The k documents nearest to each query, by the newest checkpoint of a run; of pairs those of the right side.

    Args:
        folder: of the run.
        queries: texts, read as the left side's are.
        k: at most; fewer where there are fewer documents.
        best: by the best checkpoint instead.

    Raises:
        RunError: where there is no run, or no checkpoint of it yet.
        ValueError: for a run of other things than texts, or a query without a word.
    """
    assembly = restored(folder, best=best).assembly
    found = assembly.splits.train, assembly.splits.test
    parts = [part for part in found if part is not None]
    asked, documents = _whole(sides(parts[0])[0]), [sides(part)[-1] for part in parts]
    texts = [_whole(each).texts[row] for each in documents for row in _rows(each) if hasattr(_whole(each), "texts")]
    if not hasattr(asked, "tokenized") or not texts:
        raise ValueError(f"{folder}: a run of data.type={assembly.config.data.type}, which has no texts to search")
    first, last = assembly.inference[0], assembly.inference[-1]
    rows = torch.cat([last.embeddings(each, torch.arange(len(each))) for each in documents])
    wanted = first.embed(asked.tokenized(list(queries)))
    near = ExactIndex(unit_rows(rows)).search(unit_rows(wanted), min(k, len(texts)))
    return [
        [Hit(float(score), texts[row]) for score, row in zip(*each)]
        for each in zip(near.scores.tolist(), near.ids.tolist())
    ]


def _whole(data: Data) -> Any:
    """The data that some of the rows of which this is."""
    return _whole(data.data) if isinstance(data, Subset) else data


def _rows(data: Data) -> list[int]:
    """Which rows of `_whole` these are."""
    rows = torch.arange(len(data))
    while isinstance(data, Subset):
        rows, data = data.rows[rows], data.data
    return rows.tolist()
