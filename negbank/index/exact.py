"""Exact search on any device: the oracle that every other index is measured against."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from negbank.index.contract import (
    MEMORY,
    Cells,
    Graph,
    IndexReport,
    Neighbors,
    asked,
    check_k,
    check_recall,
    drop_excluded,
)
from negbank.index.exact_graph import exact_graph
from negbank.index.products import lengths
from negbank.index.search import exact_search


class ExactIndex:
    """Brute force over unit rows.

    Args:
        vectors: (N, D) unit rows, kept as given (not copied).
        rows: (n,) ascending ids of the rows to index; all N by default.

    Ties at the k-th score go to the smaller id.
    """

    def __init__(self, vectors: Tensor, *, rows: Tensor | None = None) -> None:
        self.vectors = vectors
        self._rows = rows
        self._searched = vectors if rows is None else vectors[rows]
        self.report = IndexReport("exact", len(self), None, 1.0, 1, None, "none", 0.0, 0.0)

    @property
    def cells(self) -> Cells | None:
        """None: exact search has no cells."""
        return None

    def __len__(self) -> int:
        return len(self._searched)

    def search(self, queries: Tensor, k: int, *, exclude: Tensor | None = None) -> Neighbors:
        """See `Index.search`. Memory beyond the result: `MEMORY` bytes, and for many queries a copy of the rows.

        Raises:
            ValueError: when k rows are not left after `exclude`.
        """
        queries, wide = asked(self, queries, k, exclude)
        ids, scores = exact_search(self._searched.to(torch.float32), queries, wide, longest=self._longest)
        return drop_excluded(Neighbors(ids if self._rows is None else self._rows[ids], scores), k, exclude)

    @cached_property
    def _longest(self) -> Tensor:
        return lengths(self._searched).amax()

    def graph(self, k: int, *, target_recall: float = 0.99, memory: int = MEMORY) -> Graph:
        """See `Index.graph`: exact, whatever the target."""
        check_k(k, 1, len(self))
        check_recall(target_recall)
        return exact_graph(self._searched.to(torch.float32), self._rows, k, memory=memory)
