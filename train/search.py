"""Search of a run's texts by meaning: its encoder, its documents, and words of your own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from negbank.bank import unit_rows
from negbank.index import ExactIndex
from negbank.train.data.contract import origin, sides
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
    parts = [part for part in (assembly.splits.train, assembly.splits.test) if part is not None]
    (asked, _), documents = origin(sides(parts[0])[0]), [sides(part)[-1] for part in parts]
    found = [origin(each) for each in documents]
    texts = [data.texts[row] for data, rows in found if hasattr(data, "texts") for row in rows.tolist()]
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
