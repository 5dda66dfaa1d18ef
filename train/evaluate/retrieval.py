"""How well pairs find each other among all rows of the other side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from negbank.bank import unit_rows
from negbank.bounds import Ge, checked
from negbank.index import ExactIndex
from negbank.train.data.contract import Pairs, Splits
from negbank.train.evaluate.measures import mean_cosine
from negbank.train.inference import Inference

SEED = 20_240_415


class Retrieval:
    """Recall@k of every row's partner among the rows of the other side, both ways.

    Args:
        inference: of the two towers.
        splits: pairs; the held-out ones are judged, or the training ones where none are held out.
        ks: at which k.
        max_rows: pairs that are judged, a fixed random subset.

    Raises:
        ValueError: for data of one side, or a k beyond the pairs that are judged.
    """

    @checked
    def __init__(
        self,
        inference: Sequence[Inference],
        splits: Splits,
        *,
        ks: list[int] = (1, 5, 10),  # type: ignore[assignment]
        max_rows: Annotated[int, Ge(2)] = 10_000,
    ) -> None:
        pairs = splits.train if splits.test is None else splits.test
        if not isinstance(pairs, Pairs):
            raise ValueError("eval.type=retrieval: judges pairs; take data.type=pairs, or eval.type=features")
        self._inference, self._pairs, self._ks = inference, pairs, list(ks)
        order = torch.randperm(len(pairs.left), generator=torch.Generator().manual_seed(SEED))
        self._rows = order[:max_rows].sort().values
        if not ks or min(ks) < 1 or max(ks) > len(self._rows):
            raise ValueError(f"eval.ks={list(ks)}: expected 1..{len(self._rows)}, the pairs judged; lower them")

    def baseline(self) -> dict[str, float]:
        """Nothing."""
        return {}

    def quick(self) -> dict[str, float]:
        """Recall, and mean cosines that tell a collapse."""
        return self.full()

    def full(self) -> dict[str, float]:
        """The same: it is cheap."""
        left, right = (
            inference.embeddings(data, self._rows) for inference, data in zip(self._inference, self._pairs[:2])
        )
        groups = self._pairs.groups
        found = recall_both_ways(left, right, ks=self._ks, groups=None if groups is None else groups[self._rows])
        return {**found, "left_mean_cosine": mean_cosine(left), "right_mean_cosine": mean_cosine(right)}


def recall_both_ways(
    left: Tensor, right: Tensor, *, ks: Sequence[int] = (1, 5, 10), groups: Tensor | None = None
) -> dict[str, float]:
    """Recall@k of row i's partner among all rows of the other side, by exact search, from left to right and back.

    Args:
        left, right: (N, D) embeddings; row i of one is the partner of row i of the other.
        ks: at which k.
        groups: (N,) labels; every row of the query's label counts as its partner, one of them suffices.

    Returns:
        `left_to_right_at_k` and `right_to_left_at_k`, shares in [0, 1].

    Raises:
        ValueError: for embeddings of different shapes, or a k outside 1..N.
    """
    if left.shape != right.shape:
        raise ValueError(f"left, right: shapes {tuple(left.shape)} and {tuple(right.shape)}; expected one row a pair")
    if not ks or min(ks) < 1 or max(ks) > len(left):
        raise ValueError(f"ks={list(ks)}: expected values in 1..{len(left)}, the number of pairs; lower them")
    labels = torch.arange(len(left), device=left.device) if groups is None else groups.to(left.device)
    result: dict[str, float] = {}
    for name, queries, rows in (("left_to_right", left, right), ("right_to_left", right, left)):
        found = ExactIndex(unit_rows(rows)).search(unit_rows(queries), max(ks)).ids
        hit = labels[found] == labels[:, None]
        result |= {f"{name}_at_{k}": float(hit[:, :k].any(1).double().mean()) for k in ks}
    return result
