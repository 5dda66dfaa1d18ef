"""Semantic textual similarity: do pairs of sentences that people find more alike have higher cosines?

    Spearman's ρ over all pairs: Pearson's correlation of the ranks of cosines and of scores, ties at their mean rank

The setting "all" of SimCSE (Gao, Yao & Chen 2021, appendix B): one correlation over every pair, no regression on top.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from negbank.bank import unit_rows
from negbank.bounds import Input, checked
from negbank.train.data.contract import Splits, origin, sides
from negbank.train.evaluate.measures import mean_cosine
from negbank.train.inference import Inference
from negbank.train.mining import tables

BLOCK = 512


class Sts:
    """Spearman correlation of cosines with people's scores of sentence pairs.

    Args:
        inference: of the towers; the first one reads both sentences.
        splits: texts, whose tokenizer reads the sentences.
        path: a table (.csv, .tsv, .jsonl, .parquet) with a pair and its score a row.
        first: column of the first sentences.
        second: column of the second ones.
        score: column of the scores.

    Raises:
        ValueError: for data of other things than texts, or a file that cannot be read.
    """

    @checked
    def __init__(
        self,
        inference: Sequence[Inference],
        splits: Splits,
        *,
        path: Annotated[str, Input()],
        first: str = "sentence1",
        second: str = "sentence2",
        score: str = "score",
    ) -> None:
        data, _ = origin(sides(splits.train)[0])
        if not hasattr(data, "tokenized"):
            raise ValueError("eval.type=sts: judges texts; take data.type=text, or another eval")
        file = Path(path)
        table = tables.read_table(file)
        sentences = [tables.joined(table, [name], file) for name in (first, second)]
        scores = [_number(value, f"{file}: record {n}") for n, value in enumerate(tables.column(table, score, file), 1)]
        rows = zip(*sentences, scores)
        kept = [(one, other, number) for one, other, number in rows if one is not None and other is not None]
        if len(kept) < 2:
            raise ValueError(f"eval.path={path}: {len(kept)} pairs of sentences; give at least two")
        self._inference, self._data = inference[0], data
        self._sentences, self._scores = [each[:2] for each in kept], torch.tensor([each[2] for each in kept])

    def baseline(self) -> dict[str, float]:
        """Nothing."""
        return {}

    def quick(self) -> dict[str, float]:
        """All of it."""
        return self.full()

    def full(self) -> dict[str, float]:
        """ρ in [−1, 1], and the mean cosine that tells a collapse."""
        one, other = (self._embedded([pair[side] for pair in self._sentences]) for side in (0, 1))
        return {"spearman": spearman((one * other).sum(1), self._scores), "mean_cosine": mean_cosine(one)}

    def _embedded(self, texts: Sequence[str]) -> Tensor:
        parts = [self._data.tokenized(texts[at : at + BLOCK]) for at in range(0, len(texts), BLOCK)]
        return unit_rows(torch.cat([self._inference.embed(part) for part in parts])).cpu()


def spearman(x: Tensor, y: Tensor) -> float:
    """Spearman's rank correlation of x (n,) and y (n,); NaN where one of them is constant."""
    return float(torch.corrcoef(torch.stack((_ranks(x), _ranks(y))))[0, 1])


def _ranks(values: Tensor) -> Tensor:
    """Mean rank of each value among those equal to it: (n,) float64."""
    _, place, counts = values.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2).double()[place]


def _number(value: object, where: str) -> float:
    try:
        return float(str(value))
    except ValueError:
        raise ValueError(f"{where}: {value!r} is no score; give numbers") from None
