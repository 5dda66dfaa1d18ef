"""Exact search in plain torch, on any device: the oracle that every other index is measured against."""

from __future__ import annotations

import torch
from torch import Tensor

from negbank.index.contract import (
    Cells,
    IndexReport,
    Neighbors,
    by_score_then_id,
    check_k,
    drop_excluded,
    exact_scores,
    row_graph,
)

BLOCK_SCORES = 1 << 25
"""Scores held at once: 128 MiB of float32."""


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
        """See `Index.search`. Memory beyond the result: `BLOCK_SCORES` scores.

        Raises:
            ValueError: when k rows are not left after `exclude`.
        """
        wide = k + (0 if exclude is None else exclude.shape[1])
        check_k(k, wide - k, len(self))
        queries = queries.to(device=self.vectors.device, dtype=torch.float32)
        block = max(1, BLOCK_SCORES // len(self))
        ids = torch.cat([self._top(part, wide) for part in queries.split(block)]) if len(queries) else None
        if ids is None:
            return Neighbors(torch.empty(0, k, dtype=torch.int64), torch.empty(0, k))
        if self._rows is not None:
            ids = self._rows[ids]
        return drop_excluded(by_score_then_id(ids, exact_scores(self.vectors, queries, ids)), k, exclude)

    def _top(self, queries: Tensor, k: int) -> Tensor:
        scores = queries @ self._searched.to(torch.float32).T
        best = scores.topk(k, dim=1)
        tied = (scores >= best.values[:, -1:]).sum(1) > k
        if bool(tied.any()):  # topk breaks ties as it likes; a stable sort breaks them by id
            best.indices[tied] = scores[tied].argsort(dim=1, descending=True, stable=True)[:, :k]
        return best.indices

    def graph(self, k: int) -> Neighbors:
        """See `Index.graph`."""
        rows = torch.arange(len(self), device=self.vectors.device) if self._rows is None else self._rows
        return row_graph(self, rows, k)
