"""Candidates from an approximate index: the best k of D_i among what the index finds, scored from the rows.

An index knows nothing of D_i, so more is fetched than is wanted, and twice as much for queries that are left short.
Queries go to the index in runs that start at multiples of `RUN`: what shares a call could tip a tie between two cells.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from negbank.index import Index
from negbank.mining.forbidden import Forbidden
from negbank.mining.search import NO_ROW, Found, by_score_then_id

RUN = 256


def search_index(
    queries: Tensor,
    numbers: np.ndarray,
    index: Index,
    rows: np.ndarray | None,
    k: int,
    forbidden: Forbidden,
    rank: np.ndarray | None,
) -> Found:
    """As `search.search`, through an index.

    Args:
        rows: (n,) the index's ids of the corpus rows, ascending; None where they are the positions.
    """
    k = min(k, len(index))
    result = Found(
        np.full((len(queries), k), NO_ROW, dtype=np.int64), np.full((len(queries), k), -np.inf, dtype=np.float32)
    )
    for at in range(0, len(queries), RUN):
        run = np.arange(at, min(at + RUN, len(queries)))
        wide = min(len(index), k + forbidden.most(numbers[run]))
        wide = min(wide, 2 * k + 64)
        while len(run):
            found = index.search(queries[torch.from_numpy(run).to(queries.device)], wide)
            positions = found.ids.cpu().numpy()
            if rows is not None:
                positions = np.searchsorted(rows, positions)
            free = forbidden.allowed(numbers[run], positions)
            free &= free.cumsum(1) <= k
            scores = np.where(free, found.scores.cpu().numpy(), np.float32(-np.inf))
            best = by_score_then_id(Found(np.where(free, positions, NO_ROW), scores), rank)
            result.positions[run], result.scores[run] = best.positions[:, :k], best.scores[:, :k]
            run = run[free.sum(1) < k] if wide < len(index) else run[:0]
            wide = min(len(index), 2 * wide)
    return result


def recall(found: Found, truth: Found) -> float:
    """Share of the exact candidates that were found, over all queries."""
    hits = (truth.positions[:, :, None] == found.positions[:, None, :]).any(2) & (truth.positions != NO_ROW)
    return float(hits.sum() / max(1, (truth.positions != NO_ROW).sum()))
