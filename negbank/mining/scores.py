"""What a score is, the order that scores give, and which rows are near-duplicates: rows whose score is high enough."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from negbank.index.contract import exact_scores
from negbank.mining.rows import Rows

NO_ROW = -1
EXACT = 1 - 1e-6
"""Cosine from which two rows count as the same: the same text under two ids is embedded to within rounding."""
DOUBT = 1e-5
"""How far a batched product can be from the score."""
GATHERED = 1 << 18
"""Numbers gathered at once to score rows: 1 MiB, so that they stay in a core's cache."""


class Found(NamedTuple):
    """positions (B, k) int64 and scores (B, k) float32 by (−score, id), padded by `NO_ROW` and −∞."""

    positions: np.ndarray
    scores: np.ndarray

    @classmethod
    def nothing(cls, queries: int, k: int) -> Found:
        """Padding alone."""
        return cls(np.full((queries, k), NO_ROW, dtype=np.int64), np.full((queries, k), -np.inf, dtype=np.float32))

    def put(self, at: np.ndarray, found: Found, rank: np.ndarray | None) -> None:
        """Set rows `at` (b,) to the best of found (b, n ≥ k)."""
        k = self.positions.shape[1]
        best = by_score_then_id(found, rank)
        self.positions[at], self.scores[at] = best.positions[:, :k], best.scores[:, :k]


def by_score_then_id(found: Found, rank: np.ndarray | None) -> Found:
    """Each query's rows in the order of (−score, id), padding last.

    Args:
        rank: (N,) place of each row's id; None when positions are in the order of ids.
    """
    place = found.positions if rank is None else np.where(found.positions == NO_ROW, NO_ROW, rank[found.positions])
    order = np.lexsort((place, -found.scores), axis=1)
    return Found(np.take_along_axis(found.positions, order, 1), np.take_along_axis(found.scores, order, 1))


def scores_of(queries: Tensor, corpus: Rows, positions: np.ndarray) -> np.ndarray:
    """Scores of queries (B, D) and their own rows at positions (B, n): (B, n) float32; `NO_ROW` gives −∞."""
    ids = torch.from_numpy(positions)
    if corpus.resident is not None:
        return exact_scores(corpus.resident, queries, ids.to(corpus.device)).cpu().numpy()
    scores = torch.empty(ids.shape)
    step = max(1, GATHERED // max(1, ids.shape[1] * queries.shape[1]))
    for at in range(0, len(ids), step):
        part = ids[at : at + step]
        rows = corpus.take(part.flatten().clamp(min=0))
        places = torch.arange(len(rows)).view(part.shape).masked_fill(part == NO_ROW, NO_ROW).to(rows.device)
        scores[at : at + step] = exact_scores(rows, queries[at : at + step].to(rows.device), places)
    return scores.numpy()


def near_rows(corpus: Rows, left: np.ndarray, right: np.ndarray, bound: float) -> np.ndarray:
    """Whether rows at left (b, m) and right (b, n) score `bound` or more: (b, m, n) bool; `NO_ROW` never does.

    Batched products say so, except for those that rounding could put on either side of the bound.
    """
    ours, theirs = (corpus.take(torch.from_numpy(positions.clip(min=0))) for positions in (left, right))
    similarity = torch.bmm(ours, theirs.transpose(1, 2)).cpu().numpy()
    found = similarity >= bound
    b, i, j = np.nonzero(np.abs(similarity - bound) < DOUBT)
    if len(b):
        place = [torch.from_numpy(at).to(ours.device) for at in (b, i, j)]
        exact = (ours[place[0], place[1]] * theirs[place[0], place[2]]).sum(-1).cpu().numpy()
        found[b, i, j] = exact >= np.float32(bound)
    return found & (left != NO_ROW)[:, :, None] & (right != NO_ROW)[:, None, :]
